"""Tests of multi_node.sh on separate hosts: two train as one does, and unusable hosts are named."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands.multi_node import ROOT, SCRIPT, VARIABLES, WAIT_SECONDS, finish, line
from tests.support.needs import machine
from tests.support.processes.hosts import Host, hosts, start_ssh, why_not
from tests.support.training.tiny_run import arguments, make_store, rows, summary

LENGTH = ("trainer.max_steps=8", "trainer.val_every_n_steps=4", "trainer.checkpoint_every_n_steps=4")

pytestmark = machine(why_not)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return make_store(tmp_path_factory.mktemp("corpus") / "text")


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Iterator[list[Host]]:
    with hosts(tmp_path_factory.mktemp("hosts"), 2) as machines:
        yield machines


@pytest.fixture(scope="module")
def ssh(tmp_path_factory, two: list[Host]) -> dict[str, str]:
    """Returns the environment variables of a process that starts others over ssh."""
    folder = tmp_path_factory.mktemp("ssh")
    return VARIABLES | {"CLOZE_SSH": start_ssh(folder, two, VARIABLES | {"TMPDIR": str(folder)})}


@pytest.fixture(scope="module")
def expected(store: Path) -> list[dict[str, float]]:
    """Returns the rows of a run of two processes on one host."""
    command = [
        str(ROOT / "launch" / "torchrun.sh"),
        "--processes",
        "2",
        *arguments(store, store, "one", "ddp", *LENGTH),
    ]
    done = subprocess.run(command, env=os.environ | VARIABLES, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return rows(store / "one")


def test_the_same_line_on_two_hosts_trains_as_one_host_does(two, store, expected, tmp_path) -> None:
    command = line(two, "lines", arguments(store, store, "lines", "ddp", *LENGTH))
    # The head starts last; the other host reports that it waits.
    guest = two[1].start(command, VARIABLES, tmp_path / "vm1")
    deadline = time.monotonic() + WAIT_SECONDS
    while "vm1: The head vm0" not in (tmp_path / "vm1").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    head = two[0].start(command, VARIABLES, tmp_path / "vm0")
    finish(head, tmp_path / "vm0")
    output = finish(guest, tmp_path / "vm1")
    assert f"({two[0].address}, port 29400) is not reachable: Connection refused" in output
    assert rows(store / "lines") == expected
    assert {beat_host(store / "lines", rank) for rank in (0, 1)} == {"vm0", "vm1"}


def beat_host(run: Path, rank: int) -> str:
    log = (run / "logs" / f"rank_{rank:05d}.log").read_text(encoding="utf-8")
    return log.split("host ", 1)[1].split(",", 1)[0]


def test_one_host_starts_all_over_ssh(two, ssh, store, expected, tmp_path) -> None:
    (tmp_path / "list").write_text("# two of them\nvm0\n\nvm1  # the second\n")
    training = arguments(store, store, "ssh", "ddp", *LENGTH)
    command = [SCRIPT, "--hosts", str(tmp_path / "list"), "--id", "ssh", "--processes", "1", *training]
    text = finish(two[1].start(command, ssh, tmp_path / "out"), tmp_path / "out")
    assert rows(store / "ssh") == expected
    assert any(each.startswith("[vm0] ") and "8" in each for each in text.splitlines())
    assert {beat_host(store / "ssh", rank) for rank in (0, 1)} == {"vm0", "vm1"}


def test_sigterm_over_ssh_lets_the_run_save_and_leave(two, ssh, store, tmp_path) -> None:
    (tmp_path / "list").write_text("vm0\nvm1\n")
    slow = ("task._target_=tests.support.tasks.faulty_task.SlowTask", "trainer.max_steps=400")
    training = arguments(store, store, "left", "ddp", *slow, "trainer.checkpoint_every_n_steps=400")
    command = [SCRIPT, "--hosts", str(tmp_path / "list"), "--id", "left", "--processes", "1", *training]
    process = two[0].start(command, ssh, tmp_path / "out")
    wait_for_steps(process, store / "left", 3, tmp_path / "out")
    process.terminate()
    finish(process, tmp_path / "out")
    left = summary(store / "left")
    assert left["ended"] == "preempted" and "SIGTERM" in str(left["why"])
    assert (store / "left" / "checkpoints" / f"step_{left['steps']:08d}" / "COMPLETE").exists()


def wait_for_steps(process: subprocess.Popen[bytes], run: Path, steps: int, output: Path) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while len(rows(run)) < steps:
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.02)


def test_hosts_that_cannot_be_used_are_named_at_once(two, ssh, store, tmp_path) -> None:
    # The path of the interpreter is another Python on vm1. vm2 has an address but no host, vm3 has no address.
    training = arguments(store, store, "never", "ddp")
    other = tmp_path / "python"
    other.write_text(
        '#!/bin/sh\n[ "$(uname -n)" = vm0 ] || { echo 3.9.2; exit; }\nexec "$REAL" "$@"\n'.replace(
            "$REAL", sys.executable
        )
    )
    other.chmod(0o755)
    two[0].hosts_file.write_text(two[0].hosts_file.read_text() + "192.0.2.7 vm2\n")
    (tmp_path / "list").write_text("vm0\nvm1\nvm2\nvm3\n")
    command = [SCRIPT, "--hosts", str(tmp_path / "list"), "--id", "never", *training]
    process = two[0].start(command, ssh | {"PYTHON": str(other)}, tmp_path / "out")
    assert process.wait(timeout=WAIT_SECONDS) == 2
    lines = (tmp_path / "out").read_text().splitlines()
    assert lines[0].startswith("error: The host vm1 differs from vm0: Python 3.9.2;"), lines
    assert lines[1].startswith("error: The host vm2 is not usable: ssh: connect to host vm2"), lines
    assert lines[2].startswith("error: The host vm3 is not usable: ssh: Could not resolve hostname vm3"), lines
    assert len(lines) == 3
    assert not (store / "never").exists()
