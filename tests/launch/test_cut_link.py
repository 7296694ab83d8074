"""Tests of a link cut during a run: detected within the configured time; one host continues, and the other rejoins.

CLOZE_SLOW_TESTS=1 also tests a host that starts the others.
"""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands.multi_node import SCRIPT, VARIABLES, WAIT_SECONDS, finish, line
from tests.support.needs import machine, slow
from tests.support.processes.hosts import Host, hosts, start_ssh, why_not
from tests.support.training.tiny_run import arguments, make_store, rows

pytestmark = machine(why_not)

TIMEOUT_SECONDS = 10
LEAVES, JOINS, STEPS = 10, 25, 120
LENGTH = (f"trainer.max_steps={STEPS}", "trainer.val_every_n_steps=60", "trainer.checkpoint_every_n_steps=5")
SLOW = ("task._target_=tests.support.tasks.faulty_task.SlowTask", f"trainer.timeout_seconds={TIMEOUT_SECONDS}")


def wait_until(is_so: Callable[[], bool], process: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_so():
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.02)


def times_in_log(run: Path, text: str) -> int:
    log = run / "logs" / "rank_00000.log"
    return log.read_text(encoding="utf-8").count(text) if log.exists() else 0


def start_by_lines(machines: list[Host], training: list[str], folder: Path) -> list[subprocess.Popen[bytes]]:
    command = line(machines, "cut", training, "1:2")
    return [host.start(command, VARIABLES, folder / host.name) for host in machines]


def start_over_ssh(machines: list[Host], training: list[str], folder: Path) -> list[subprocess.Popen[bytes]]:
    (folder / "list").write_text("".join(f"{host.name}\n" for host in machines))
    variables = VARIABLES | {"CLOZE_SSH": start_ssh(folder, machines, VARIABLES | {"TMPDIR": str(folder)})}
    command = [SCRIPT, "--hosts", str(folder / "list"), "--nodes", "1:2", "--id", "cut", "--processes", "1", *training]
    return [machines[0].start(command, variables, folder / "vm0")]


@pytest.mark.parametrize("begin", [start_by_lines, pytest.param(start_over_ssh, marks=slow)])
def test_a_cut_link_costs_one_host_until_it_is_back(begin, tmp_path: Path) -> None:
    store = make_store(tmp_path / "text")
    training = arguments(store, store, "cut", "ddp", *SLOW, *LENGTH)
    run = store / "cut"
    with hosts(tmp_path, 2) as machines:
        started = begin(machines, training, tmp_path)
        head, output = started[0], tmp_path / "vm0"
        wait_until(lambda: len(rows(run)) >= LEAVES, head, output)
        machines[1].cut()
        cut = time.monotonic()
        wait_until(
            lambda: times_in_log(run, f"hangs: no progress within trainer.timeout_seconds={TIMEOUT_SECONDS}") > 0,
            head,
            output,
        )
        noticed = time.monotonic() - cut
        wait_until(lambda: times_in_log(run, "rank 0 of 1") == 1, head, output)
        alone = time.monotonic() - cut
        wait_until(lambda: len(rows(run)) >= JOINS, head, output)
        machines[1].join()
        back = time.monotonic()
        wait_until(lambda: times_in_log(run, "rank 0 of 2") == 2, head, output)
        print(
            f"noticed after {noticed:.1f} s, alone after {alone:.1f} s, two again {time.monotonic() - back:.1f} s later"
        )
        for process, name in zip(started, ("vm0", "vm1"), strict=False):
            finish(process, tmp_path / name)
    assert [row["step"] for row in rows(run)] == list(range(1, STEPS + 1))
