"""Hosts on this machine: network namespaces, each with its name, address and /etc/hosts, on one bridge.

They share the disk, as hosts of a cluster do. `start_ssh` starts an sshd on each.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes.apt import apt_install

PROGRAMS = ("ip", "nsenter", "unshare", "sshd", "ssh", "ssh-keygen")
_ENTER = 'hostname "$1"; mount --bind "$2" /etc/hosts; shift 2; exec "$@"'


def why_not() -> str | None:
    """Installs missing programs by apt. Returns what is still missing to create hosts, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if _missing():
        if shutil.which("apt-get") is None:
            return f"no {', '.join(_missing())}, and no apt-get"
        apt_install("iproute2", "util-linux", "openssh-server", "openssh-client")
    if _missing():
        return f"no {', '.join(_missing())}, and apt-get could not install them"
    tried = subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], check=False, capture_output=True)
    return None if tried.returncode == 0 else "this kernel makes no network namespaces"


def _missing() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


def _path() -> str:
    return os.environ["PATH"] + ":/usr/sbin:/sbin"


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PATH": _path()})


@dataclass(frozen=True)
class Host:
    """A host: a network namespace on the bridge.

    Attributes:
        name: vm0, vm1 and so on; all hosts can resolve it.
        address: IPv4 address.
        namespace: Name of the network namespace.
        port: Network interface on the bridge; taking it down acts like a cut cable.
        hosts_file: File that is /etc/hosts on this host.
    """

    name: str
    address: str
    namespace: str
    port: str
    hosts_file: Path

    def start(self, command: Sequence[str], variables: Mapping[str, str], output: Path) -> subprocess.Popen[bytes]:
        """Starts a command on the host in its own process group, with standard output and error in one file."""
        enter = ["nsenter", f"--net=/run/netns/{self.namespace}", "unshare", "--uts", "--mount", "bash", "-ec", _ENTER]
        with output.open("wb") as file:
            return subprocess.Popen(
                [*enter, "_", self.name, str(self.hosts_file), *command],
                env=os.environ | {"PATH": _path()} | variables,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def cut(self) -> None:
        """Drops all packets from and to the host, without any error to either end."""
        _run("ip", "link", "set", self.port, "down")

    def join(self) -> None:
        """Reconnects the host."""
        _run("ip", "link", "set", self.port, "up")


@contextmanager
def hosts(folder: Path, number: int) -> Iterator[list[Host]]:
    """Creates hosts vm0, vm1, ... and removes them at the end, with all processes that still run on them.

    Args:
        folder: Folder for the /etc/hosts files.
        number: Number of hosts.
    """
    mark = os.getpid() % 10000
    network = f"10.{100 + mark % 100}.{mark // 100}"
    bridge = f"czb{mark}"
    hosts_file = folder / "hosts"
    made = [Host(f"vm{i}", f"{network}.{10 + i}", f"cz{mark}-{i}", f"czp{mark}-{i}", hosts_file) for i in range(number)]
    hosts_file.write_text("127.0.0.1 localhost\n" + "".join(f"{host.address} {host.name}\n" for host in made))
    try:
        _run("ip", "link", "add", bridge, "type", "bridge")
        _run("ip", "link", "set", bridge, "up")
        for host in made:
            _run("ip", "netns", "add", host.namespace)
            _run("ip", "link", "add", host.port, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
            _run("ip", "link", "set", host.port, "master", bridge, "up")
            _run("ip", "-n", host.namespace, "link", "set", "lo", "up")
            _run("ip", "-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
            _run("ip", "-n", host.namespace, "link", "set", "eth0", "up")
        yield made
    finally:
        for host in made:
            _end_all_of(host)
            subprocess.run(["ip", "netns", "delete", host.namespace], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", bridge], check=False, capture_output=True)


def _end_all_of(host: Host) -> None:
    listed = subprocess.run(["ip", "netns", "pids", host.namespace], check=False, capture_output=True, text=True)
    for pid in map(int, listed.stdout.split()):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def start_ssh(folder: Path, machines: Sequence[Host], variables: Mapping[str, str]) -> str:
    """Starts an sshd on each host, and returns the ssh command that reaches them as root.

    Args:
        folder: Folder for keys and configs.
        machines: The hosts.
        variables: Environment variables that sshd sets for the commands it runs.
    """
    os.makedirs("/run/sshd", exist_ok=True)
    for name in ("host_key", "key"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
    shutil.copy(folder / "key.pub", folder / "authorized_keys")
    settings = " ".join(f'"{name}={value}"' for name, value in variables.items())
    lines = [
        *("Port 22", f"HostKey {folder / 'host_key'}", f"AuthorizedKeysFile {folder / 'authorized_keys'}"),
        *("PermitRootLogin prohibit-password", "PasswordAuthentication no", "StrictModes no", "UsePAM no"),
        *("PidFile none", f"SetEnv {settings}"),
    ]
    (folder / "sshd_config").write_text("\n".join(lines) + "\n")
    for host in machines:
        sshd = shutil.which("sshd", path=_path())
        assert sshd is not None
        host.start([sshd, "-D", "-e", "-f", str(folder / "sshd_config")], {}, folder / f"sshd-{host.name}.log")
        _wait_for_ssh(folder, host)
    client = ["Host *", "User root", f"IdentityFile {folder / 'key'}", "IdentitiesOnly yes"]
    client += [f"UserKnownHostsFile {folder / 'known_hosts'}", "StrictHostKeyChecking accept-new"]
    (folder / "ssh_config").write_text("\n".join(client) + "\n")
    return f"ssh -F {folder / 'ssh_config'}"


def _wait_for_ssh(folder: Path, host: Host) -> None:
    log = folder / f"sshd-{host.name}.log"
    deadline = time.monotonic() + 20
    while "Server listening" not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
