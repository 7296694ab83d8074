"""Real SLURM on this machine for the duration of a test: munged, slurmctld, a slurmd for each node, no accounting.

All nodes are this machine under different names. Each has 4 CPUs and declares 2 GPUs. Jobs of the partition `high`
preempt jobs of `main`, which have 15 seconds to end and are then requeued.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from tests.support.processes.apt import apt_install

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue")
LOST_SECONDS = 20
"""Time without an answer after which a node counts as lost."""

_PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")

_CONFIG = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5,socket={folder}/munge.socket
SlurmctldPort={controller}
StateSaveLocation={folder}/state
SlurmdSpoolDir={spool}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2,requeue_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmctldTimeout=60
SlurmdTimeout={lost}
InactiveLimit=0
KillWait=5
MinJobAge=600
SlurmdParameters=config_overrides
GresTypes=gpu
"""


@cache
def why_not() -> str | None:
    """Installs SLURM's packages. Returns what is still missing to start SLURM, or None."""
    if os.geteuid() != 0:
        return "SLURM's daemons need root"
    if _missing() and shutil.which("apt-get") is not None:
        apt_install(*_PACKAGES)
    return f"no {', '.join(_missing())}, and apt-get could not install {', '.join(_PACKAGES)}" if _missing() else None


class Cluster:
    """The servers of a SLURM cluster.

    Args:
        folder: Folder of config, state and logs.
        num_nodes: Number of nodes, called node0, node1 and so on.
    """

    def __init__(self, folder: Path, num_nodes: int) -> None:
        self.folder = folder
        # The path of a socket has at most 107 bytes, and slurmd puts sockets of jobs here.
        self.spool = Path(tempfile.mkdtemp(prefix="slurmd-"))
        self.nodes = [f"node{index}" for index in range(num_nodes)]

    def start_node(self, name: str) -> None:
        """Starts the daemon of a node."""
        (self.spool / name).mkdir(exist_ok=True)
        subprocess.run(["slurmd", "-N", name], check=True)

    def lose_node(self, name: str) -> None:
        """Kills everything on a node at once, as a power cut does: the daemon, its steps and their processes."""
        doomed = [int((self.folder / f"slurmd.{name}.pid").read_text())]
        for file in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                variables = file.read_bytes().split(b"\0")
                if f"SLURMD_NODENAME={name}".encode() in variables and self._variable in variables:
                    doomed.append(int(file.parent.name))
        doomed += self._step_daemons(name)
        for pid in doomed:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @property
    def _variable(self) -> bytes:
        return f"SLURM_CONF={self.folder / 'slurm.conf'}".encode()

    def _step_daemons(self, name: str) -> list[int]:
        """Returns the process ids of the daemons that run a node's steps; they write to its log."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (process / "comm").read_text().strip() == "slurmstepd":
                    targets = [os.readlink(each) for each in (process / "fd").iterdir()]
                    if str(self.folder / f"slurmd.{name}.log") in targets:
                        found.append(int(process.name))
        return found

    def wait_until_idle(self, seconds: float = 60.0) -> None:
        """Waits until every node is idle."""
        wait_until(lambda: self._states() == ["idle"] * len(self.nodes), seconds, self.log)

    def log(self) -> str:
        """Returns the end of the controller's log."""
        return (self.folder / "slurmctld.log").read_text()[-3000:]

    def _states(self) -> list[str]:
        command = ["sinfo", "--noheader", "--Node", "--partition=main", "--format=%T"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()


def wait_until(condition, seconds: float, message) -> None:
    """Waits for a condition. Fails with the text of `message()` when the time is up."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, message()
        time.sleep(0.1)


def job_state(job: int | str) -> str:
    """Returns the state of a job, such as RUNNING."""
    command = ["squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"]
    return subprocess.check_output(command, text=True).strip()


@contextmanager
def slurm(folder: Path, num_nodes: int = 1) -> Iterator[Cluster]:
    """Starts the servers and sets SLURM_CONF to their config. Ends them and all jobs afterwards."""
    before = {name: os.environ.get(name) for name in ("SLURM_CONF", "PATH")}
    cluster = Cluster(folder, num_nodes)
    (folder / "state").mkdir(parents=True)
    (folder / "munge.key").write_bytes(os.urandom(64))
    (folder / "munge.key").chmod(0o400)
    os.environ["PATH"] = _path()
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    host = socket.gethostname()
    lines = [_CONFIG.format(folder=folder, spool=cluster.spool, host=host, controller=_free_port(), lost=LOST_SECONDS)]
    hardware = f"NodeHostname={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=4000 Gres=gpu:2 State=UNKNOWN"
    lines += [f"NodeName={name} {hardware} Port={_free_port()}\n" for name in cluster.nodes]
    everywhere = f"Nodes={','.join(cluster.nodes)} MaxTime=INFINITE State=UP"
    lines.append(f"PartitionName=main {everywhere} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=15\n")
    lines.append(f"PartitionName=high {everywhere} PriorityTier=10 PreemptMode=OFF\n")
    (folder / "slurm.conf").write_text("".join(lines))
    for index in range(2):
        (folder / f"gpu{index}").touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-1]\n")
    try:
        options = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        munge = [f"--{name}={folder}/munge.{end}" for name, end in options.items()]
        subprocess.run(["munged", "--force", *munge], check=True)
        subprocess.run(["slurmctld", "-c"], check=True)
        for name in cluster.nodes:
            cluster.start_node(name)
        cluster.wait_until_idle()
        yield cluster
    finally:
        subprocess.run(["scancel", f"--user={pwd.getpwuid(os.geteuid()).pw_name}"], check=False, capture_output=True)
        with suppress(AssertionError):
            wait_until(lambda: not _queue(), 15, str)
        for name in (*(f"slurmd.{node}" for node in cluster.nodes), "slurmctld", "munge"):
            _end(folder / f"{name}.pid")
        shutil.rmtree(cluster.spool, ignore_errors=True)
        for variable, value in before.items():
            os.environ.pop(variable, None)
            if value is not None:
                os.environ[variable] = value


def _queue() -> str:
    return subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=False).stdout


def _end(pid_file: Path) -> None:
    if not pid_file.is_file():
        return
    pid = int(pid_file.read_text())
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        for _ in range(100):
            os.kill(pid, 0)
            time.sleep(0.1)
        os.kill(pid, signal.SIGKILL)


def _missing() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


def _path() -> str:
    """Returns PATH extended by the folders in which Debian installs daemons."""
    return os.environ["PATH"] + ":/usr/sbin:/sbin"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
