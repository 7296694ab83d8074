"""Docker engine for the duration of a test: the running engine, or a new one, which needs root and dockerd.

Also builds a base image without a registry: Debian by debootstrap, with this machine's certificates and pip settings.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.processes.apt import apt_install

_PROGRAMS = ("dockerd", "docker", "debootstrap", "iptables")
_SIDES = ("--iptables=false", "--ip6tables=false", "--bridge=none")


def docker(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs docker. `check` is True by default."""
    settings = {"check": True, "capture_output": True, "text": True} | options
    return subprocess.run(["docker", *arguments], **settings)  # type: ignore[call-overload,no-any-return]


def answers() -> bool:
    """Returns True if an engine is reachable."""
    return shutil.which("docker") is not None and docker("info", check=False).returncode == 0


def why_not() -> str | None:
    """Installs dockerd by apt if needed. Returns what is still missing for an engine, or None."""
    if answers():
        return None
    if os.geteuid() != 0:
        return "no Docker engine answers, and starting one needs root"
    if any(shutil.which(name) is None for name in _PROGRAMS) and shutil.which("apt-get") is not None:
        apt_install("docker.io", "debootstrap", "iptables")
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    return f"no Docker engine answers, and there is no {', '.join(missing)} to start one" if missing else None


@contextmanager
def engine(folder: Path) -> Iterator[None]:
    """Starts an engine and sets DOCKER_HOST while the block runs, unless an engine already answers."""
    if answers():
        yield
        return
    before = os.environ.get("DOCKER_HOST")
    os.environ["DOCKER_HOST"] = f"unix://{folder / 'docker.sock'}"
    paths = [
        "--data-root",
        str(folder / "data"),
        "--exec-root",
        str(folder / "exec"),
        "--pidfile",
        str(folder / "pid"),
    ]
    with (folder / "log").open("wb") as log:
        started = subprocess.Popen(
            ["dockerd", *_SIDES, *paths, "-H", os.environ["DOCKER_HOST"]], stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 60
        while not answers():
            assert started.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait(timeout=60)
        shutil.rmtree(folder / "data", ignore_errors=True)
        del os.environ["DOCKER_HOST"]
        if before is not None:
            os.environ["DOCKER_HOST"] = before


def debian_base(folder: Path, tag: str) -> None:
    """Builds a base image in which pip reaches the same package index as on this machine."""
    root = folder / "root"
    packages = "--include=ca-certificates,python3,python3-venv,python3-pip"
    subprocess.run(
        ["debootstrap", "--variant=minbase", packages, "bookworm", str(root)], check=True, capture_output=True
    )
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / "etc/ssl/certs/ca-certificates.crt")
    lines = ["[global]", "cert = /etc/ssl/certs/ca-certificates.crt"]
    wheels = os.environ.get("PIP_FIND_LINKS")
    if wheels is not None and Path(wheels).is_dir():
        shutil.copytree(wheels, root / wheels.lstrip("/"))
        lines.append(f"find-links = {wheels}")
    (root / "etc/pip.conf").write_text("\n".join(lines) + "\n")
    with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as packed:
        docker("import", "-", tag, stdin=packed.stdout)
    shutil.rmtree(root)
