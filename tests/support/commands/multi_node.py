"""Starts launch/multi_node.sh on the hosts of a test."""

import subprocess
import sys
from pathlib import Path

from tests.support.processes.hosts import Host

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = str(ROOT / "launch" / "multi_node.sh")
WAIT_SECONDS = 300
VARIABLES = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def finish(process: subprocess.Popen[bytes], output: Path) -> str:
    code = process.wait(timeout=WAIT_SECONDS)
    text = output.read_text(encoding="utf-8")
    assert code == 0, text
    return text


def line(machines: list[Host], identity: str, training: list[str], nodes: str = "2") -> list[str]:
    return [SCRIPT, "--nodes", nodes, "--head", machines[0].name, "--id", identity, "--processes", "1", *training]
