"""Launcher of sweeps on SLURM: submits one SLURM job per job of the sweep, and waits for all of them."""

import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from typing_extensions import override

from framework.config.plugins import PLUGIN_MODULE
from framework.config.shared_schema import at_least
from framework.distributed.processes.stop_signals import StopSignals
from framework.errors import ConfigError
from framework.files import parse_json, write_private
from framework.runs.supervision import LOGS_FOLDER
from framework.sweeps.launcher import SweepLauncher
from framework.sweeps.outcome import FolderState, Outcome, classify_exit, folder_state, output_file
from framework.sweeps.plan import Job, Sweep, command_flags
from framework.sweeps.results import print_progress, progress_line, write_results
from framework.sweeps.slurm_queue import ENDED, UNKNOWN, job_states, submit
from framework.sweeps.slurm_script import batch_script
from framework.sweeps.slurm_time import check_limit
from framework.sweeps.start import check_positive_integers, tracking_variables
from framework.tracking.run_files import JOB_FILE

SCRIPT_FILE = "job.sbatch"


class SlurmLauncher(SweepLauncher):
    """Hydra's launcher `slurm`. It stores job numbers in the run folders, so a later start collects the same jobs."""

    __module__ = PLUGIN_MODULE

    def __init__(
        self,
        nodes: int = 1,
        processes: int = 1,
        gpus_per_node: int | None = None,
        cpus_per_process: int = 1,
        time: str | None = None,
        save_seconds: int = 120,
        max_requeues: int = 100,
        options: Sequence[str] = (),
        before: Sequence[str] = (),
        wait: bool = True,
        poll_seconds: float = 10.0,
    ) -> None:
        """Stores and checks the resources of each job.

        Args:
            nodes: Number of nodes of each job.
            processes: Number of processes on each node.
            gpus_per_node: Number of GPUs on each node; None requests no GPUs.
            cpus_per_process: Number of cores, and of threads, of each process.
            time: Time limit of one start in SLURM's format; None is the limit of the partition.
            save_seconds: Seconds before the limit at which a job is signalled to save and exit.
            max_requeues: Maximum number of requeues of a job that reached its time limit.
            options: Further options of sbatch.
            before: Shell lines that run first.
            wait: True to wait for all jobs; False to exit after submission.
            poll_seconds: Seconds between two queries of the queue.

        Raises:
            ConfigError: A value is invalid, a node has more processes than GPUs, or sbatch is not installed.
        """
        self.nodes, self.processes, self.gpus_per_node = nodes, processes, gpus_per_node
        self.cpus_per_process, self.time = cpus_per_process, time
        self.save_seconds, self.max_requeues = save_seconds, max_requeues
        self.options, self.before, self.wait, self.poll_seconds = list(options), list(before), wait, poll_seconds
        check_positive_integers("hydra.launcher", self, "nodes", "processes", "cpus_per_process", "save_seconds")
        at_least("hydra.launcher", self, 0.1, "poll_seconds")
        for name, lines, example in (("options", options, "--partition=gpu"), ("before", before, "module load cuda")):
            if isinstance(lines, str):
                raise ConfigError(
                    f"hydra.launcher.{name} is the text {lines!r}. It must be a list. Write "
                    f"'hydra.launcher.{name}=[\"{example}\"]'."
                )
        # sbatch takes the last of several limits.
        limits = [option.partition("=")[2] for option in self.options if option.startswith("--time=")]
        check_limit(limits[-1] if limits else time, save_seconds)
        if gpus_per_node is not None and gpus_per_node < processes:
            raise ConfigError(
                f"hydra.launcher.processes is {processes}, but gpus_per_node is {gpus_per_node}. Each process needs "
                "its own GPU. Raise gpus_per_node, or lower processes."
            )
        if shutil.which("sbatch") is None:
            raise ConfigError(
                "The command sbatch is not installed. hydra/launcher=slurm needs it. Start the sweep on a login "
                "node of a SLURM cluster, or choose hydra/launcher=torchrun."
            )

    @property
    @override
    def processes_of_a_job(self) -> int:
        return self.nodes * self.processes

    @override
    def run(self, sweep: Sweep, outcomes: dict[str, Outcome], lock: int, console: Console) -> None:
        numbers = self._submit_missing(sweep, outcomes, console)
        _follow(sweep, outcomes, numbers, console, self.poll_seconds if self.wait else None)

    def _submit_missing(self, sweep: Sweep, outcomes: dict[str, Outcome], console: Console) -> dict[str, int]:
        """Submits each waiting job that is not in SLURM yet. Returns the job numbers of all waiting jobs by run id."""
        for job in sweep.jobs:
            if outcomes[job.id].state == "finished":  # an earlier start submitted it and did not wait
                _job_file(job).unlink(missing_ok=True)
        missing = [job for job in sweep.jobs if outcomes[job.id].state == "waiting"]
        known = {job.id: number for job in missing if (number := _read_job_file(job)[0]) is not None}
        text = f"{len(missing)} of {len(sweep.jobs)} jobs to run, {len(known)} of them submitted before"
        print_progress(console, sweep, text)
        numbers = {}
        for job in missing:
            if job.id not in known:
                known[job.id] = self._submit(sweep, job, known.get(job.starts_from or ""))
                print_progress(console, sweep, f"submitted {job} as job {known[job.id]}; {output_file(job)}")
            numbers[job.id] = known[job.id]
            outcomes[job.id] = Outcome("pending")
        write_results(sweep, outcomes, "running")
        return numbers

    def _submit(self, sweep: Sweep, job: Job, after: int | None) -> int:
        """Submits a job, which starts after the job with the number `after` has succeeded."""
        logs = job.folder.absolute() / LOGS_FOLDER
        logs.mkdir(parents=True, exist_ok=True)
        before = folder_state(job)
        script = logs / SCRIPT_FILE
        training = ["-m", "framework.train", *command_flags(self.config), *job.overrides]
        text = batch_script(
            job.folder.absolute(),
            sys.executable,
            training,
            self.nodes,
            self.processes,
            self.cpus_per_process,
            self.save_seconds,
            self.max_requeues,
            self.before,
        )
        write_private(script, text)  # the command line may hold secrets
        number = submit(
            [*self._options(job, output_file(job).absolute(), after), str(script)], tracking_variables(sweep, job)
        )
        record = {"job": number, "before": asdict(before)}
        _job_file(job).write_text(json.dumps(record) + "\n", encoding="utf-8")
        return number

    def _options(self, job: Job, output: Path, after: int | None) -> list[str]:
        """Returns the options of sbatch for a job."""
        values = {
            "job-name": job.id,
            "output": str(output).replace("%", "%%"),
            "open-mode": "append",
            "nodes": self.nodes,
            "ntasks-per-node": 1,
            "cpus-per-task": self.processes * self.cpus_per_process,
            "gpus-per-node": self.gpus_per_node,
            "time": self.time,
            "signal": f"B:USR1@{self.save_seconds}",
            "dependency": None if after is None else f"afterok:{after}",
            "kill-on-invalid-dep": None if after is None else "yes",
        }
        return [
            "--requeue",
            *(f"--{name}={value}" for name, value in values.items() if value is not None),
            *self.options,
        ]


def _follow(
    sweep: Sweep, outcomes: dict[str, Outcome], numbers: dict[str, int], console: Console, poll_seconds: float | None
) -> None:
    """Records the outcome of each job until all have ended or this process is signalled. Other jobs stay in the queue.

    Args:
        sweep: Sweep with all jobs.
        outcomes: Outcomes by run id, updated in place.
        numbers: Job numbers of SLURM by run id; ended jobs are removed.
        console: Console for progress lines.
        poll_seconds: Seconds between two queries of the queue; None for a single query.
    """
    jobs = {job.id: job for job in sweep.jobs}
    signals, begun, last_states = StopSignals(), time.monotonic(), dict[str, str]()
    signals.install()
    try:
        while numbers and signals.received is None:
            states = job_states(list(numbers.values()))
            for run, number in list(numbers.items()):
                state = states.get(number, UNKNOWN)
                if state in ENDED:
                    del numbers[run]
                    outcomes[run] = _collect(jobs[run], number, state)
                    print_progress(console, sweep, progress_line(jobs[run], outcomes[run], time.monotonic() - begun))
                    write_results(sweep, outcomes, "running")
                elif last_states.get(run) != state:
                    last_states[run] = state
                    outcomes[run] = Outcome("pending" if state == "PENDING" else "running")
                    write_results(sweep, outcomes, "running")
                    print_progress(console, sweep, f"{state.lower():9} {jobs[run]}, job {number}")
            if poll_seconds is None:
                break
            _sleep(poll_seconds if numbers else 0.0, signals)
    finally:
        signals.restore()
    if numbers:
        text = f"{len(numbers)} jobs stay in SLURM's queue; start the same command again to collect them"
        print_progress(console, sweep, text)


def _sleep(seconds: float, signals: StopSignals) -> None:
    until = time.monotonic() + seconds
    while signals.received is None and time.monotonic() < until:
        time.sleep(min(0.2, seconds))


def _collect(job: Job, number: int, state: str) -> Outcome:
    """Returns the outcome of a SLURM job that has ended, and deletes its number so that a new start can submit it."""
    _, before = _read_job_file(job)
    _job_file(job).unlink()
    return classify_exit(job, state in ("COMPLETED", UNKNOWN), f"SLURM job {number}: {state}", before)


def _job_file(job: Job) -> Path:
    """Returns the path of the file with the SLURM job number of a job."""
    return job.folder / LOGS_FOLDER / JOB_FILE


def _read_job_file(job: Job) -> tuple[int | None, FolderState]:
    """Returns the SLURM job number of a job, None if it has none, and the state of its run folder before submission."""
    file = _job_file(job)
    if not file.is_file():
        return None, folder_state(job)
    record = parse_json(file.read_text(encoding="utf-8"))
    return int(record["job"]), FolderState(**record["before"])
