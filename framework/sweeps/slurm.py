"""The launcher of sweeps on SLURM: each job is one of SLURM's, and this process waits for all of them."""

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
from framework.config.schema import at_least
from framework.config.supervision import LOGS_FOLDER
from framework.distributed.processes.stop_signals import StopSignals
from framework.errors import ConfigError
from framework.files import parse_json
from framework.sweeps.launcher import SweepLauncher
from framework.sweeps.outcome import Before, Outcome, judge, look, output_file
from framework.sweeps.plan import Job, Sweep, command_flags
from framework.sweeps.results import progress_line, say, write_results
from framework.sweeps.slurm_queue import ENDED, UNKNOWN, job_states, submit
from framework.sweeps.slurm_script import batch_script
from framework.sweeps.slurm_time import check_limit
from framework.sweeps.start import check_whole, tracking
from framework.tracking.run_files import JOB_FILE

SCRIPT_FILE = "job.sbatch"


class SlurmLauncher(SweepLauncher):
    """Hydra's launcher `slurm`. What it submitted stays in the run folders, so that any later start finds it again."""

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
        """Takes what each job asks for.

        Args:
            nodes: Of each job.
            processes: On each node.
            gpus_per_node: None: no GPUs are asked for.
            cpus_per_process: Cores, and threads.
            time: Limit of one start, in SLURM's way of writing it; None: that of the partition.
            save_seconds: How long before the limit a job is asked to save and leave.
            max_requeues: How often a job whose time was up is queued again.
            options: More options of sbatch.
            before: Lines of shell that run first.
            wait: Wait for all jobs; else submit and leave.
            poll_seconds: Between two looks at the queue.

        Raises:
            ConfigError: A value cannot be used, more processes than GPUs are asked for, or SLURM is not there.
        """
        self.nodes, self.processes, self.gpus_per_node = nodes, processes, gpus_per_node
        self.cpus_per_process, self.time = cpus_per_process, time
        self.save_seconds, self.max_requeues = save_seconds, max_requeues
        self.options, self.before, self.wait, self.poll_seconds = list(options), list(before), wait, poll_seconds
        check_whole("hydra.launcher", self, "nodes", "processes", "cpus_per_process", "save_seconds")
        at_least("hydra.launcher", self, 0.1, "poll_seconds")
        check_limit(time, save_seconds)
        for name, lines, example in (("options", options, "--partition=gpu"), ("before", before, "module load cuda")):
            if isinstance(lines, str):
                raise ConfigError(
                    f"hydra.launcher.{name} is the text {lines!r}, but it must be a list. Write "
                    f"'hydra.launcher.{name}=[\"{example}\"]'."
                )
        if gpus_per_node is not None and gpus_per_node < processes:
            raise ConfigError(
                f"hydra.launcher.processes={processes} on each node need as many GPUs, but gpus_per_node is "
                f"{gpus_per_node}; raise it, or lower processes."
            )
        if shutil.which("sbatch") is None:
            raise ConfigError(
                "hydra/launcher=slurm needs the command sbatch, which is not found; start the sweep on a login node of "
                "a SLURM cluster, or choose hydra/launcher=torchrun."
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
        """Submits each job that is not done, unless SLURM has it; returns the number of each such job by run id."""
        for job in sweep.jobs:
            if outcomes[job.id].state == "finished":  # since an earlier start left it to SLURM
                _file(job).unlink(missing_ok=True)
        missing = [job for job in sweep.jobs if outcomes[job.id].state == "waiting"]
        known = {job.id: number for job in missing if (number := _read(job)[0]) is not None}
        say(console, sweep, f"{len(missing)} of {len(sweep.jobs)} jobs to run, {len(known)} of them submitted before")
        numbers = {}
        for job in missing:
            if job.id not in known:
                known[job.id] = self._submit(sweep, job)
                say(console, sweep, f"submitted {job} as job {known[job.id]}; {output_file(job)}")
            numbers[job.id] = known[job.id]
            outcomes[job.id] = Outcome("pending")
        write_results(sweep, outcomes, "running")
        return numbers

    def _submit(self, sweep: Sweep, job: Job) -> int:
        logs = job.folder.absolute() / LOGS_FOLDER
        logs.mkdir(parents=True, exist_ok=True)
        before = look(job)
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
        script.write_text(text, encoding="utf-8")
        number = submit([*self._options(job, output_file(job).absolute()), str(script)], tracking(sweep, job))
        record = {"job": number, "before": asdict(before)}
        _file(job).write_text(json.dumps(record) + "\n", encoding="utf-8")
        return number

    def _options(self, job: Job, output: Path) -> list[str]:
        """What sbatch is asked for."""
        asked = {
            "job-name": job.id,
            "output": str(output).replace("%", "%%"),
            "open-mode": "append",
            "nodes": self.nodes,
            "ntasks-per-node": 1,
            "cpus-per-task": self.processes * self.cpus_per_process,
            "gpus-per-node": self.gpus_per_node,
            "time": self.time,
            "signal": f"B:USR1@{self.save_seconds}",
        }
        return [
            "--requeue",
            *(f"--{name}={value}" for name, value in asked.items() if value is not None),
            *self.options,
        ]


def _follow(
    sweep: Sweep, outcomes: dict[str, Outcome], numbers: dict[str, int], console: Console, poll_seconds: float | None
) -> None:
    """Notes the end of each job, until all have ended or this process is asked to leave; the queue keeps the others.

    Args:
        sweep: All jobs.
        outcomes: By run id; changed here.
        numbers: SLURM's, by run id; those that have ended are taken out.
        console: Where to tell.
        poll_seconds: Between two looks; None: one look only.
    """
    jobs = {job.id: job for job in sweep.jobs}
    signals, begun, shown = StopSignals(), time.monotonic(), dict[str, str]()
    signals.install()
    try:
        while numbers and signals.received is None:
            states = job_states(list(numbers.values()))
            for run, number in list(numbers.items()):
                state = states.get(number, UNKNOWN)
                if state in ENDED:
                    del numbers[run]
                    outcomes[run] = _collect(jobs[run], number, state)
                    say(console, sweep, progress_line(jobs[run], outcomes[run], time.monotonic() - begun))
                    write_results(sweep, outcomes, "running")
                elif shown.get(run) != state:
                    shown[run] = state
                    outcomes[run] = Outcome("pending" if state == "PENDING" else "running")
                    write_results(sweep, outcomes, "running")
                    say(console, sweep, f"{state.lower():9} {jobs[run]}, job {number}")
            if poll_seconds is None:
                break
            _sleep(poll_seconds if numbers else 0.0, signals)
    finally:
        signals.restore()
    if numbers:
        say(console, sweep, f"{len(numbers)} jobs stay with SLURM; the same line started again collects them")


def _sleep(seconds: float, signals: StopSignals) -> None:
    until = time.monotonic() + seconds
    while signals.received is None and time.monotonic() < until:
        time.sleep(min(0.2, seconds))


def _collect(job: Job, number: int, state: str) -> Outcome:
    """How a job of SLURM ended; from here on a new start submits it anew."""
    _, before = _read(job)
    _file(job).unlink()
    return judge(job, state in ("COMPLETED", UNKNOWN), f"SLURM job {number}: {state}", before)


def _file(job: Job) -> Path:
    """Where the number is kept under which SLURM has a job."""
    return job.folder / LOGS_FOLDER / JOB_FILE


def _read(job: Job) -> tuple[int | None, Before]:
    """The number under which SLURM has a job, and what lay in its run folder before; None: it has none."""
    file = _file(job)
    if not file.is_file():
        return None, look(job)
    record = parse_json(file.read_text(encoding="utf-8"))
    return int(record["job"]), Before(**record["before"])
