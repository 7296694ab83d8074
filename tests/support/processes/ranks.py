"""Runs the ranks of a command as real processes, forked from one that has imported the command.

torchrun would start an interpreter for each rank, which takes ten times as long as the tiny runs themselves. Like
torchrun, `wait` ends the other ranks if one has failed. tests/integration tests kill -9 by torchrun itself.
"""

import importlib
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

from framework.config.command import Command, start
from tests.support.processes.workers import PRELOADED
from tests.support.tracking.blank_pictures import are_blank, use_blank_pictures

_GRACE_SECONDS = 20.0
"""Time that the remaining ranks have to report why they end."""

_POLL_SECONDS = 0.002

_SERVICE = "WANDB_SERVICE"
"""Variable with the address of wandb's service of this process, which the ranks must not share."""


def _run_rank(
    command: str,
    arguments: list[str],
    environment: dict[str, str],
    output: str,
    prepare: Callable[[], None] | None,
    folder: str,
    saves_blank: bool,
) -> None:
    """Runs one rank: starts a new session, redirects output to a file, and runs the command."""
    os.setsid()
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1, closefd=False), os.fdopen(2, "w", 1, closefd=False)
    os.environ.clear()  # the environment of the server is that of an earlier test
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [f"framework.{command}", *arguments]

    import torch

    torch.set_num_threads(1)
    if saves_blank:
        use_blank_pictures()
    if prepare is not None:
        prepare()
    run = getattr(importlib.import_module(f"framework.{command}"), command)
    if isinstance(run, Command):
        start(f"framework.{command}")
    else:
        run()


class Ranks:
    """One start of a command.

    Args:
        arguments: Arguments of the command.
        num_ranks: Number of processes.
        output: File to which all of them print.
        prepare: Function called in each process before the command. It may inject faults into framework code.
        command: Name of the command, such as "train" or "predict".
        folder: Working folder of the processes; None: the current one.
    """

    def __init__(
        self,
        arguments: list[str],
        num_ranks: int,
        output: Path,
        prepare: Callable[[], None] | None = None,
        command: str = "train",
        folder: Path | None = None,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.output = output
        environment = {name: value for name, value in os.environ.items() if name != _SERVICE}
        environment |= {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        self.processes: list[BaseProcess] = []
        for rank in range(num_ranks):
            own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
            variables = environment | {name: str(value) for name, value in own.items()}
            given = (command, arguments, variables, str(output), prepare, str(folder or Path.cwd()), are_blank())
            process = context.Process(target=_run_rank, args=given)
            process.start()
            self.processes.append(process)

    def send(self, number: int, rank: int | None = None) -> None:
        """Sends a signal to one rank, or to all at once."""
        for process in self.processes if rank is None else [self.processes[rank]]:
            if process.pid is not None and process.is_alive():
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)

    def wait(self, timeout: float) -> list[int | None]:
        """Waits until all ranks have ended, at most _GRACE_SECONDS longer than one that failed.

        Returns:
            Exit codes by rank; minus the signal's number for one that was killed.
        """
        deadline = time.monotonic() + timeout
        while any(process.is_alive() for process in self.processes):
            if any(process.exitcode not in (None, 0) for process in self.processes):
                deadline = min(deadline, time.monotonic() + _GRACE_SECONDS)
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
            time.sleep(_POLL_SECONDS)
        return [process.exitcode for process in self.processes]

    def wait_until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Waits for a condition while all ranks run. Returns False if a rank ended or the time was up before."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline or not all(process.is_alive() for process in self.processes):
                return condition()
            time.sleep(_POLL_SECONDS)
        return True

    def read_output(self) -> str:
        """Returns everything that the ranks have printed."""
        return self.output.read_text(encoding="utf-8", errors="replace") if self.output.exists() else ""


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
