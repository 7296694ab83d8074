"""Installs Debian packages that tests need, one process at a time."""

import fcntl
import os
import subprocess
import tempfile
from pathlib import Path


def apt_install(*packages: str) -> None:
    """Installs packages, with a second attempt after updating the lists. The caller checks the installed programs."""
    with (Path(tempfile.gettempdir()) / "cloze-tests-apt.lock").open("w") as lock:
        # Each worker of pytest-xdist collects all tests, so that several would run apt-get at the same time.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _run("install", "--yes", "--no-install-recommends", *packages):
            _run("update")
            _run("install", "--yes", "--no-install-recommends", *packages)


def _run(*arguments: str) -> bool:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(["apt-get", *arguments], env=environment, capture_output=True, check=False).returncode == 0
