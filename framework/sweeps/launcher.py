"""Base class of the sweep launchers: plans the jobs, locks the folder, prints the results."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from rich.console import Console

from framework.config.hydra_seams import write_no_sweep_config
from framework.sweeps.benchmark import with_starts, without_missing_files
from framework.sweeps.closing import close_sweep
from framework.sweeps.outcome import Outcome
from framework.sweeps.plan import Job, Sweep, check_folders, plan_sweep
from framework.sweeps.results import print_progress
from framework.sweeps.start import check_jobs, check_start, first_outcomes, sweep_lock
from framework.tracking.console import open_console


class HydraTraces:
    """Files that Hydra's sweeper writes into the folder of a sweep before it calls the launcher."""

    def __init__(self, folder: Path) -> None:
        """Notes what exists before.

        Args:
            folder: Folder of the sweep.
        """
        self.record = folder / "multirun.yaml"
        self.content = self.record.read_bytes() if self.record.is_file() else None
        self.new_folders = [each for each in (folder, *folder.parents) if not each.exists()]

    def remove(self) -> None:
        """Puts everything back."""
        if self.content is not None:
            self.record.write_bytes(self.content)
            return
        self.record.unlink(missing_ok=True)
        for each in self.new_folders:
            with suppress(OSError):  # it holds something else by now
                each.rmdir()


def _waiting(sweep: Sweep, outcomes: Mapping[str, Outcome]) -> list[Job]:
    return [job for job in sweep.jobs if outcomes[job.id].state == "waiting"]


class SweepLauncher(Launcher):
    """Runs the jobs of a sweep. Subclasses decide on which machines.

    Attributes:
        wait: True if `launch` returns only after all jobs have ended.
    """

    wait: bool = True

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Stores the config and Hydra's context, from which jobs are composed.

        Raises:
            ConfigError: This process may not start a sweep; see `check_start`.
        """
        del task_function  # each job is a command of its own
        check_start(config)
        write_no_sweep_config()
        self.context, self.config = hydra_context, config
        self.traces = HydraTraces(Path(config.hydra.sweep.dir))

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs all jobs that have not finished, and prints the results of all jobs.

        Args:
            job_overrides: Overrides of each job.
            initial_job_idx: Index of the first job of a batch, always 0: sweeps are not split into batches.

        Raises:
            ConfigError: A job cannot run. All jobs are checked before the first one starts.
            SweepError: Jobs failed.
        """
        assert initial_job_idx == 0
        console = open_console()
        if self.config.check:
            self._check(job_overrides, console)
            return []
        sweep = self.plan(job_overrides)
        for line in sweep.notes:
            print_progress(console, sweep, line)
        with sweep_lock(sweep.folder) as lock:
            outcomes = first_outcomes(sweep)
            check_jobs(_waiting(sweep, outcomes), self.processes_of_a_job)
            self.run(sweep, outcomes, lock, console)
        return close_sweep(sweep, outcomes, console)

    def _check(self, job_overrides: Sequence[Sequence[str]], console: Console) -> None:
        """Checks the jobs and leaves nothing on the disk."""
        try:
            sweep = self.plan(job_overrides)
            missing = _waiting(sweep, first_outcomes(sweep))
            check_jobs(missing, self.processes_of_a_job)
        finally:
            self.traces.remove()
        for line in sweep.notes:
            print_progress(console, sweep, line)
        console.print(f"check passed for {len(missing)} of {len(sweep.jobs)} jobs; nothing was started")

    def plan(self, job_overrides: Sequence[Sequence[str]]) -> Sweep:
        """Plans and checks the jobs; see `plan_sweep` and `framework.sweeps.benchmark`."""
        sweep = plan_sweep(self.config, self.context, job_overrides, self.processes_of_a_job)
        present, missing = without_missing_files(sweep.jobs)
        jobs, starts = with_starts(present)
        check_folders(jobs)
        notes = [*(f"{task} is left out, because {file} does not exist" for task, file in missing.items()), *starts]
        return replace(sweep, jobs=tuple(jobs), missing=missing, notes=tuple(notes))

    @property
    @abstractmethod
    def processes_of_a_job(self) -> int:
        """Number of processes of one job, over all nodes."""

    @abstractmethod
    def run(self, sweep: Sweep, outcomes: dict[str, Outcome], lock: int, console: Console) -> None:
        """Runs the jobs whose state is "waiting", and updates their outcomes.

        Args:
            sweep: Sweep with all jobs.
            outcomes: Outcomes by run id, updated in place.
            lock: File descriptor of the lock on the sweep folder.
            console: Console for progress lines.
        """
