"""Reusable processes for multi-process tests. They import torch and lightning once; each call has a new gloo group.

`pool.run(function, world_size, *args)` runs a top-level function on ranks 0 to world_size - 1 and returns the results
by rank. The function runs with torchrun's environment (RANK, WORLD_SIZE, ...) and an initialized default process group.
"""

import importlib
import inspect
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_ROOT = Path(__file__).resolve().parents[3]
_COLLECTIVE_SECONDS = 60.0
PRELOADED = [
    "framework.train",
    "torch._dynamo",
    "framework.distributed.parallel.parallelize",
    "framework.data.store.sequence_index",
    "framework.tasks.pretraining.task",
    "tests.support.processes.ranks",
]
"""Modules that one process imports and forks the others with, workers of the pool and ranks of commands alike."""


class WorkerError(AssertionError):
    """Raised if a rank failed or hung; the message contains its traceback."""


class WorkerPool:
    """Processes that start when first needed and live until the test session ends."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="cloze-workers-")
        self._workers: list[tuple[BaseProcess, Connection]] = []
        self._num_calls = 0

    def run(self, function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120.0) -> list[Any]:
        """Runs a function on each of `world_size` ranks.

        Args:
            function: Function at the top level of an importable module.
            world_size: Number of ranks, at least 1.
            args: Picklable arguments, the same for every rank.
            timeout: Seconds after which the call fails and the processes are replaced.

        Returns:
            Results by rank. They must be picklable; tensors are copied.

        Raises:
            WorkerError: A rank raised, died or hung.
        """
        self._grow(world_size)
        self._num_calls += 1
        environ = self._environment(world_size)
        workers = self._workers[:world_size]
        import_path = _import_path(function)
        for rank, (_, connection) in enumerate(workers):
            connection.send((import_path, args, environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)}))
        answers: dict[int, tuple[bool, Any]] = {}
        deadline = time.monotonic() + timeout
        ranks = {connection: rank for rank, (_, connection) in enumerate(workers)}
        failed = False
        while len(answers) < world_size:
            waiting = [connection for connection, rank in ranks.items() if rank not in answers]
            ready = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                break
            for connection in ready:
                assert isinstance(connection, Connection)
                try:
                    answers[ranks[connection]] = connection.recv()
                except EOFError:
                    answers[ranks[connection]] = (False, "The process died.")
                if not answers[ranks[connection]][0] and not failed:
                    # Peers of a failed rank may wait for it in a collective, so they get little time.
                    failed = True
                    deadline = min(deadline, time.monotonic() + 3.0)
        if failed or len(answers) < world_size:
            self.stop()
            lines = [f"rank {rank}: {text}" for rank, (good, text) in sorted(answers.items()) if not good]
            hung = [rank for rank in range(world_size) if rank not in answers]
            if hung:
                lines.append(f"ranks {hung} gave no answer")
            raise WorkerError("\n".join(lines))
        return [answers[rank][1] for rank in range(world_size)]

    def stop(self) -> None:
        """Kills the processes. The next call starts new ones."""
        for process, connection in self._workers:
            connection.close()
            process.kill()
            process.join()
        self._workers.clear()

    def close(self) -> None:
        """Ends the pool and all of its processes."""
        self.stop()
        self._folder.cleanup()

    def _environment(self, world_size: int) -> dict[str, str]:
        return {
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "GROUP_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29500",
            "TORCHELASTIC_RUN_ID": "none",
            "TORCHELASTIC_RESTART_COUNT": "0",
            "CLOZE_TEST_STORE": str(Path(self._folder.name) / f"store-{self._num_calls}"),
        }

    def _grow(self, size: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        before = dict(os.environ)
        os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})
        try:
            while len(self._workers) < size:
                ours, theirs = context.Pipe()
                process = context.Process(target=_serve, args=(theirs, str(_ROOT)))
                process.start()
                theirs.close()
                self._workers.append((process, ours))
        finally:
            os.environ.clear()
            os.environ.update(before)


def _import_path(function: Callable[..., Any]) -> tuple[str, str]:
    """Returns module and name by which a worker imports a function, independent of pytest's name for the module."""
    path = Path(inspect.getfile(function)).resolve()
    if path.is_relative_to(_ROOT / "tests"):
        return ".".join(path.relative_to(_ROOT).with_suffix("").parts), function.__qualname__
    return function.__module__, function.__qualname__


def _serve(connection: Connection, root: str) -> None:
    """Answers calls until the other end closes the connection."""
    sys.path.insert(0, root)
    torch.set_num_threads(1)
    while True:
        try:
            (module, name), args, environ = connection.recv()
        except EOFError:
            return
        os.environ.update(environ)
        try:
            function = getattr(importlib.import_module(module), name)
            dist.init_process_group(
                "gloo",
                store=dist.FileStore(environ["CLOZE_TEST_STORE"], int(environ["WORLD_SIZE"])),
                rank=int(environ["RANK"]),
                world_size=int(environ["WORLD_SIZE"]),
                timeout=timedelta(seconds=_COLLECTIVE_SECONDS),
            )
            result = function(*args)
            dist.barrier()
            answer: tuple[bool, Any] = (True, result)
        except BaseException:  # noqa: BLE001  the caller gets it, whatever it is
            answer = (False, traceback.format_exc())
        if dist.is_initialized():
            dist.destroy_process_group()
        connection.send(answer)
