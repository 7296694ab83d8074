"""Launcher of sweeps on this machine: starts each job as one Python process or one torchrun."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from typing_extensions import override

from framework.config.plugins import PLUGIN_MODULE
from framework.distributed.processes.stop_signals import StopSignals
from framework.errors import ConfigError
from framework.machine import usable_cores
from framework.sweeps.launcher import SweepLauncher
from framework.sweeps.outcome import (
    FolderState,
    Outcome,
    classify_exit,
    describe_exit,
    failed_start,
    folder_state,
    may_start,
    output_file,
)
from framework.sweeps.plan import Job, Sweep, command_flags
from framework.sweeps.results import print_progress, progress_line, write_results
from framework.sweeps.start import check_positive_integers, tracking_variables

_POLL_SECONDS = 0.2
_MARK = "CLOZE_SWEEP_JOB"


class TorchrunLauncher(SweepLauncher):
    """Hydra's launcher `torchrun`."""

    __module__ = PLUGIN_MODULE

    def __init__(self, processes: int = 1, jobs_at_once: int = 1, leave_seconds: int = 600) -> None:
        """Stores and checks the settings of the launcher.

        Args:
            processes: Number of processes of each job; 1 starts Python without torchrun.
            jobs_at_once: Number of jobs that run at the same time. On GPUs each job has its own.
            leave_seconds: Seconds that ranks have to save and exit after a signal, before torchrun kills them.

        Raises:
            ConfigError: A value is not an integer of at least 1, or the jobs need more GPUs than there are.
        """
        self.processes = processes
        self.jobs_at_once = jobs_at_once
        self.leave_seconds = leave_seconds
        check_positive_integers("hydra.launcher", self, "processes", "jobs_at_once", "leave_seconds")
        gpus = visible_gpus()
        if gpus and processes * jobs_at_once > len(gpus):
            raise ConfigError(
                f"hydra.launcher.processes={processes} and jobs_at_once={jobs_at_once} need {processes * jobs_at_once} "
                f"GPUs, but this process sees {len(gpus)}. Each process needs its own GPU. Lower one of them."
            )

    @property
    @override
    def processes_of_a_job(self) -> int:
        return self.processes

    @override
    def run(self, sweep: Sweep, outcomes: dict[str, Outcome], lock: int, console: Console) -> None:
        _Children(self, sweep, outcomes, lock).run(console)

    def command(self, job: Job, flags: Sequence[str]) -> list[str]:
        """Returns the command line of a job."""
        training = ["-m", "framework.train", *flags, *job.overrides]
        if self.processes == 1:
            return [sys.executable, *training]
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.processes)]
        return [sys.executable, *torchrun, *training]

    def environment(self, sweep: Sweep, job: Job, slot: int) -> dict[str, str]:
        """Returns the environment of a job.

        Args:
            sweep: Sweep, whose name is the default W&B group.
            job: Job, whose combination is the default W&B job type.
            slot: Index of the job's set of GPUs, 0 to `jobs_at_once` - 1.
        """
        # By default every process starts a thread on each core, and waiting threads slow down the other jobs.
        threads = max(1, usable_cores() // (self.processes * self.jobs_at_once))
        own = {
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(self.leave_seconds),
            _MARK: job_mark(job),
        }
        gpus = visible_gpus()
        if gpus:
            own["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[slot * self.processes : (slot + 1) * self.processes])
        return {**tracking_variables(sweep, job), **os.environ, **own}


@dataclass
class _Child:
    job: Job
    process: subprocess.Popen[bytes]
    before: FolderState
    started: float


class _Children:
    """Processes of one start of a sweep."""

    def __init__(self, launcher: TorchrunLauncher, sweep: Sweep, outcomes: dict[str, Outcome], lock: int) -> None:
        self.launcher = launcher
        self.flags = command_flags(launcher.config)
        self.sweep = sweep
        self.outcomes = outcomes
        self.lock = lock
        self.running: dict[int, _Child] = {}
        self.is_signalled = False

    def run(self, console: Console) -> None:
        """Runs all waiting jobs, `jobs_at_once` at a time."""
        waiting = deque(job for job in self.sweep.jobs if self.outcomes[job.id].state == "waiting")
        print_progress(console, self.sweep, f"{len(waiting)} of {len(self.sweep.jobs)} jobs to run")
        write_results(self.sweep, self.outcomes, "running")
        signals = StopSignals()
        signals.install()
        try:
            while self.running or (waiting and signals.received is None):
                if signals.received is not None and not self.is_signalled:
                    text = f"{signals.received.name}: {len(self.running)} jobs save and exit"
                    print_progress(console, self.sweep, text)
                    self._send(signal.SIGTERM)
                    self.is_signalled = True
                free = [slot for slot in range(self.launcher.jobs_at_once) if slot not in self.running]
                job = None if self.is_signalled or not free else self._take(waiting, console)
                if job is not None:
                    self.running[free[0]] = self._start(job, free[0])
                    print_progress(console, self.sweep, f"started   {job}; {output_file(job)}")
                    continue
                if not self.running and not self.is_signalled:
                    break  # the rest starts from jobs that were preempted
                self._collect(console)
                time.sleep(_POLL_SECONDS)
        finally:
            self._send(signal.SIGTERM)
            signals.restore()

    def _take(self, waiting: deque[Job], console: Console) -> Job | None:
        """Removes and returns the first job that may start, if there is one. Jobs whose start failed fail too."""
        for job in list(waiting):
            failed = failed_start(job, self.outcomes)
            if failed is not None:
                waiting.remove(job)
                self.outcomes[job.id] = failed
                print_progress(console, self.sweep, progress_line(job, failed, 0.0))
        ready = next((job for job in waiting if may_start(job, self.outcomes)), None)
        if ready is not None:
            waiting.remove(ready)
        return ready

    def _start(self, job: Job, slot: int) -> _Child:
        before = folder_state(job)
        output = output_file(job)
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("ab") as stream:
            process = subprocess.Popen(
                self.launcher.command(job, self.flags),
                env=self.launcher.environment(self.sweep, job, slot),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # this process forwards Ctrl-C once
                pass_fds=(self.lock,),  # a job that outlives a killed sweep keeps the folder locked
            )
        return _Child(job, process, before, time.monotonic())

    def _collect(self, console: Console) -> None:
        """Records the outcomes of the jobs that have ended."""
        for slot, child in list(self.running.items()):
            code = child.process.poll()
            if code is None:
                continue
            if code < 0:
                kill_marked(job_mark(child.job))
            del self.running[slot]
            outcome = classify_exit(child.job, code == 0, describe_exit(code), child.before, self.is_signalled)
            self.outcomes[child.job.id] = outcome
            print_progress(console, self.sweep, progress_line(child.job, outcome, time.monotonic() - child.started))
            write_results(self.sweep, self.outcomes, "running")

    def _send(self, number: int) -> None:
        for child in self.running.values():
            with suppress(ProcessLookupError):
                child.process.send_signal(number)


def visible_gpus() -> list[str]:
    """Returns the GPUs that this process may use, in the notation of CUDA_VISIBLE_DEVICES."""
    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return named.split(",")[:count] if named else [str(index) for index in range(count)]


def job_mark(job: Job) -> str:
    """Returns the environment value by which the processes of a job, including its ranks, are recognized."""
    return f"{os.getpid()}:{job.id}"


def kill_marked(value: str) -> None:
    """Kills the ranks of a job whose torchrun was killed. They have their own sessions and would continue to train."""
    entry = f"{_MARK}={value}".encode()
    for file in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if entry in file.read_bytes().split(b"\0"):
                os.kill(int(file.parent.name), signal.SIGKILL)
