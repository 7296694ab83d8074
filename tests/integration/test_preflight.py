"""Tests of the preflight check with three nodes, each a process: the check names the faulty node."""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes.ranks import Ranks


@dataclass(frozen=True)
class Faulty:
    """Function object that makes each rank a node, and injects a fault into the third.

    Attributes:
        fault: Kind of the fault; empty: none.
    """

    fault: str = ""

    def __call__(self) -> None:
        """Sets the node's environment, and replaces parts of the preflight check on the faulty node."""
        from framework.distributed.nodes import inspection, links

        os.environ |= {"SLURMD_NODENAME": f"gpu{os.environ['RANK']}", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        os.environ["CLOZE_NODES"] = "gpu0,gpu1,gpu2"
        if os.environ["RANK"] != "2":
            return
        if self.fault == "gone":
            os._exit(0)
        if self.fault == "clock":
            real = time.time
            time.time = lambda: real() + 7.0
            inspection.Inspection.__init__.__defaults__ = (time.time,)
        if self.fault == "other folder":
            os.chdir(os.environ["HOME"])
        if self.fault == "dead link":
            links.make_group = lambda *_: time.sleep(60)
        if self.fault == "slow link":
            exchange = links._exchange
            links._exchange = lambda *given: tuple(slowed(each) for each in exchange(*given))
        if self.fault == "stuck":
            inspection.measure_all_reduce = stuck


def slowed(step: Callable) -> Callable:
    def slow(tensor):
        time.sleep(0.5 if tensor.numel() > 1 else 0.0)
        step(tensor)

    return slow


def stuck(*_):
    from framework.errors import DistributedError

    raise DistributedError("the card fell off the bus")


def run_preflight(folder: Path, fault: str, *options: str) -> tuple[list[int | None], str]:
    """Runs the preflight check, and returns exit codes by rank and the output."""
    line = ["--folder", "shared", "--sizes", "0.1,0.2", "--min-link", "0.5", "--min-link-share", "0", *options]
    ranks = Ranks(line, 3, folder / "output.txt", Faulty(fault), command="preflight", folder=folder)
    return ranks.wait(120), ranks.read_output()


def test_healthy_nodes_are_shown_and_may_train(tmp_path):
    codes, output = run_preflight(tmp_path, "")
    assert codes == [0, 0, 0], output
    assert [line.split()[0] for line in output.splitlines() if re.match(" *gpu", line)] == ["gpu0", "gpu1", "gpu2"]
    assert re.search(r"all-reduce of 0\.2 MB: [\d,.]+ MB/s", output) and "error" not in output
    assert list((tmp_path / "shared").iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("gone", r"gpu2: it did not answer"),
        ("clock", r"gpu2: its clock is 7\.0 s ahead"),
        ("other folder", r"gpu2: it does not see the file of the first node in the folder, which all nodes must share"),
        ("dead link", r"gpu2: 2 of its 2 links are dead \(no answer within 6 s\)"),
        ("slow link", r"gpu2: 2 of its 2 links are slow, \d+\.\d MB/s, minimum 40\.0"),
        ("stuck", r"gpu2: all-reduce failed \(the card fell off the bus\)"),
    ],
)
def test_the_node_with_a_fault_is_named_in_one_line(tmp_path, monkeypatch, fault, message):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    options = ("--min-link", "40") if fault == "slow link" else ("--timeout", "6")
    codes, output = run_preflight(tmp_path, fault, *options)
    assert codes == [2, 2, 0 if fault == "gone" else 2], output
    errors = [line for line in output.splitlines() if line.startswith("error: preflight: ")]
    assert len(errors) == 1 and re.fullmatch(f"error: preflight: {message}", errors[0]), output
