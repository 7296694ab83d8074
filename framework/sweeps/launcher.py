"""What the launchers of sweeps have in common: the jobs are planned, the folder is locked, the results are shown."""

from abc import abstractmethod
from collections.abc import Sequence

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from rich.console import Console

from framework.sweeps.closing import close_sweep
from framework.sweeps.outcome import Outcome
from framework.sweeps.plan import Sweep, plan_sweep
from framework.sweeps.start import check_jobs, check_start, first_outcomes, sole
from framework.tracking.console import open_console


class SweepLauncher(Launcher):
    """Runs the jobs of sweeps; where and how, its subclasses say.

    Attributes:
        wait: `launch` returns when all jobs have ended, and not before.
    """

    wait: bool = True

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keeps what jobs are composed from; see `check_start` for what is refused."""
        del task_function  # each job is a command of its own
        check_start(config)
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs what is not finished yet of all jobs, and shows what all of them reached.

        Args:
            job_overrides: By job.
            initial_job_idx: Of a batch; sweeps are not cut into batches.

        Raises:
            ConfigError: A job cannot run, which shows before the first one starts.
            SweepError: Jobs failed.
        """
        assert initial_job_idx == 0
        console = open_console()
        sweep = self.plan(job_overrides)
        with sole(sweep.folder) as lock:
            outcomes = first_outcomes(sweep)
            missing = [job for job in sweep.jobs if outcomes[job.id].state == "waiting"]
            check_jobs(missing, self.processes_of_a_job)
            if self.config.check:
                console.print(f"check passed for {len(missing)} of {len(sweep.jobs)} jobs; nothing was started")
                return []
            self.run(sweep, outcomes, lock, console)
        return close_sweep(sweep, outcomes, console)

    def plan(self, job_overrides: Sequence[Sequence[str]]) -> Sweep:
        """See `plan_sweep`."""
        return plan_sweep(self.config, self.context, job_overrides, self.processes_of_a_job)

    @property
    @abstractmethod
    def processes_of_a_job(self) -> int:
        """Over all nodes."""

    @abstractmethod
    def run(self, sweep: Sweep, outcomes: dict[str, Outcome], lock: int, console: Console) -> None:
        """Runs the jobs that wait, and notes how they end.

        Args:
            sweep: All jobs.
            outcomes: By run id; changed here.
            lock: File descriptor of the lock of the sweep's folder.
            console: Where to tell.
        """
