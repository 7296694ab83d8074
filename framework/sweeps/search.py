"""Sweeper of searches: Optuna (Akiba et al. 2019) chooses the values of each job from the results of earlier jobs."""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from rich.console import Console
from typing_extensions import override

from framework.config.plugins import PLUGIN_MODULE
from framework.config.shared_schema import at_least
from framework.errors import ConfigError, check_choice
from framework.runs.build import build_settings
from framework.sweeps.closing import close_sweep
from framework.sweeps.launcher import SweepLauncher
from framework.sweeps.outcome import Outcome
from framework.sweeps.plan import Job, Sweep, quoted
from framework.sweeps.results import print_progress, record
from framework.sweeps.start import check_jobs, check_positive_integers, earlier_outcome, sweep_lock
from framework.tasks.task import Task
from framework.tracking.console import open_console
from framework.tracking.study import PrunerName, create_study, import_optuna

if TYPE_CHECKING:
    import optuna

SamplerName = Literal["tpe", "random"]


class OptunaSweeper(Sweeper):
    """Hydra's sweeper `optuna`. The study is in the sweep folder, so the same command resumes the search."""

    __module__ = PLUGIN_MODULE

    def __init__(
        self,
        trials: int = 20,
        trials_at_once: int = 1,
        sampler: SamplerName = "tpe",
        pruner: PrunerName = "median",
        startup_trials: int = 5,
        warmup_steps: int = 0,
        seed: int = 0,
        params: Mapping[str, str] | None = None,
    ) -> None:
        """Stores and checks the settings of the search.

        Args:
            trials: Total number of jobs over all starts. A failed job does not count, and a new start retries it.
            trials_at_once: Number of trials that are chosen and run together, before the next ones are chosen.
            sampler: "tpe": tree-structured Parzen estimator (Bergstra et al. 2011); "random".
            pruner: Rule that ends trials early; see `framework.tracking.study`.
            startup_trials: Number of trials that are chosen at random before "tpe" begins, and that must end before
                "median" prunes.
            warmup_steps: Number of optimizer steps of a trial before it can be pruned.
            seed: Seed of the sampler.
            params: Searched values by key, in addition to those on the command line.

        Raises:
            ConfigError: A value is invalid.
        """
        self.trials, self.trials_at_once, self.startup_trials = trials, trials_at_once, startup_trials
        self.sampler, self.pruner, self.warmup_steps, self.seed = sampler, pruner, warmup_steps, seed
        self.params = dict(params or {})
        check_positive_integers("hydra.sweeper", self, "trials", "trials_at_once", "startup_trials")
        at_least("hydra.sweeper", self, 0, "warmup_steps", "seed")
        for name, known in (("sampler", get_args(SamplerName)), ("pruner", get_args(PrunerName))):
            check_choice(f"hydra.sweeper.{name}", getattr(self, name), known)

    @override
    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config, self.optuna = hydra_context, config, import_optuna()
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        if not isinstance(launcher, SweepLauncher) or not launcher.wait:
            raise ConfigError(
                "hydra/sweeper=optuna is combined with a launcher that does not wait for its jobs. A search needs the "
                "results of earlier trials. Choose hydra/launcher=torchrun, or hydra/launcher=slurm with "
                "hydra.launcher.wait=true."
            )
        self.job_launcher = launcher

    @override
    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        lines = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        parser = OverridesParser.create(config_loader=self.context.config_loader)
        parsed = {each.get_key_element(): each for each in parser.parse_overrides(lines)}
        space = {key: distribution(each, self.optuna) for key, each in parsed.items() if each.is_sweep_override()}
        if not space:
            raise ConfigError(
                "No key is searched. hydra/sweeper=optuna needs at least one key with several values or an interval. "
                "Add one, for example optimizer.lr='tag(log, interval(1e-5, 1e-3))'."
            )
        fixed = [f"{key}={each.get_value_element_as_str()}" for key, each in parsed.items() if key not in space]
        assert self.config is not None
        folder, console = Path(self.config.hydra.sweep.dir), open_console()
        search = _Search(self, folder, fixed, space)
        if self.config.check:
            console.print("check passed for the first job of the search; nothing was started")
            return []
        with sweep_lock(folder) as lock:
            search.run(lock, console)
        search.print_best(console)
        return close_sweep(search.jobs_so_far, search.outcomes, console)

    def build_sampler(self, num_trials: int) -> Any:
        """Builds Optuna's sampler.

        Args:
            num_trials: Number of trials in the study. It changes the seed, so that a new start draws new values.
        """
        samplers = self.optuna.samplers
        if self.sampler == "random":
            return samplers.RandomSampler(seed=self.seed + num_trials)
        return samplers.TPESampler(seed=self.seed + num_trials, n_startup_trials=self.startup_trials)


class _Search:
    """State of one start of a search."""

    def __init__(self, sweeper: OptunaSweeper, folder: Path, fixed: Sequence[str], space: dict[str, Any]) -> None:
        """Checks the config of one possible job.

        Args:
            sweeper: Sweeper with the settings of the search.
            folder: Sweep folder.
            fixed: Overrides that all jobs share.
            space: Optuna's distributions by key.
        """
        self.sweeper, self.launcher = sweeper, sweeper.job_launcher
        self.folder, self.fixed, self.space = folder, fixed, space
        self.jobs: dict[str, Job] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.pending: list[tuple[int, dict[str, Any]]] = []
        self.num_failed = 0
        # Any job gives the metric. Its check also shows, before the study begins, that the config is valid.
        (job,) = self._plan({0: {key: _first_value(each) for key, each in space.items()}})
        check_jobs([job], self.launcher.processes_of_a_job)
        task: Task = build_settings(job.config, self.launcher.processes_of_a_job).task.build()
        self.metric = f"val/{task.best_metric}"
        self.direction: Literal["minimize", "maximize"] = "minimize" if task.best_mode == "min" else "maximize"

    @property
    def jobs_so_far(self) -> Sweep:
        """Sweep with the jobs that have been chosen so far."""
        return Sweep(self.folder, tuple(self.space), tuple(self.jobs.values()))

    def run(self, lock: int, console: Console) -> None:
        """Runs trials until enough have ended, or until the sweep is signalled to stop."""
        sweeper = self.sweeper
        pruner = {
            "name": sweeper.pruner,
            "startup_trials": sweeper.startup_trials,
            "warmup_steps": sweeper.warmup_steps,
        }
        self.study = create_study(self.folder, self.direction, pruner)
        self.study.sampler = sweeper.build_sampler(len(self.study.trials))
        self._restore_trials()
        while batch := self._next_batch():
            numbers = self._add_jobs(batch)
            chosen = f"trial {', '.join(str(number) for number in batch)}"
            print_progress(console, self.jobs_so_far, f"{chosen}; {self._num_done()} of {sweeper.trials} are done")
            self.launcher.run(self.jobs_so_far, self.outcomes, lock, console)
            if not self._report_to_study(numbers):
                return

    def print_best(self, console: Console) -> None:
        """Prints the best finished trial, if there is one."""
        with suppress(ValueError):  # Optuna raises it if no trial has finished
            best = self.study.best_trial
            values = ", ".join(f"{key}={value}" for key, value in best.params.items())
            text = f"best is trial {best.number} with {self.metric} {best.value:.4f}: {values}"
            print_progress(console, self.jobs_so_far, text)

    def _restore_trials(self) -> None:
        """Restores the trials of earlier starts: keeps finished ones, resumes interrupted ones, retries failed ones."""
        states = self.sweeper.optuna.trial.TrialState
        trials = self.study.get_trials(deepcopy=False)
        for trial in trials:
            self._check_same_space(trial)
        not_failed = [
            trial.params or trial.system_attrs.get("fixed_params") for trial in trials if trial.state != states.FAIL
        ]
        for trial in trials:
            if trial.state in (states.COMPLETE, states.PRUNED):
                self._add_jobs({trial.number: trial.params})
            elif trial.state == states.RUNNING:
                self.pending.append((trial.number, trial.params))
            elif trial.state == states.FAIL and trial.params not in not_failed:
                self.study.enqueue_trial(trial.params)
                not_failed.append(trial.params)

    def _next_batch(self) -> dict[int, dict[str, Any]]:
        """Returns the parameters of the next trials, by trial number."""
        size = min(self.sweeper.trials_at_once, self.sweeper.trials - self._num_done() - self.num_failed)
        batch: dict[int, dict[str, Any]] = {}
        while len(batch) < size:
            if self.pending:
                number, params = self.pending.pop(0)
            else:
                trial = self.study.ask(self.space)
                number, params = trial.number, trial.params
            batch[number] = params
        return batch

    def _num_done(self) -> int:
        states = self.sweeper.optuna.trial.TrialState
        return len(self.study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED)))

    def _add_jobs(self, batch: Mapping[int, dict[str, Any]]) -> dict[str, list[int]]:
        """Adds the jobs of trials; trials with the same values share one. Returns the trial numbers by run id."""
        numbers: dict[tuple[Any, ...], list[int]] = {}
        for number, params in batch.items():
            numbers.setdefault(tuple(params.items()), []).append(number)
        jobs = self._plan({each[0]: batch[each[0]] for each in numbers.values()})
        for job in jobs:
            self.jobs[job.id] = job
            self.outcomes.setdefault(job.id, earlier_outcome(job) or Outcome("waiting"))
        return {job.id: each for job, each in zip(jobs, numbers.values(), strict=True)}

    def _report_to_study(self, numbers: Mapping[str, Sequence[int]]) -> bool:
        """Reports the outcomes of jobs to the study. Returns False if a job has to resume at a later start."""
        states = self.sweeper.optuna.trial.TrialState
        all_ended = True
        for run, trials in numbers.items():
            value = self._best_value(run) if self.outcomes[run].state == "finished" else None
            if self.outcomes[run].state == "finished" and value is None:
                why = f"it has no finite {self.metric}, which a search needs; set data.validation"
                self.outcomes[run] = Outcome("failed", why, self.outcomes[run].summary)
            state = {"finished": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}.get(
                self.outcomes[run].state
            )
            if state is None:
                all_ended = False
                continue
            for number in trials:
                self.study.tell(number, value, state)
            self.num_failed += len(trials) if self.outcomes[run].state == "failed" else 0
        return all_ended

    def _best_value(self, run: str) -> float | None:
        """Returns the best value of the task's metric in a run; None if there is no finite one."""
        result = record(self.jobs[run], self.outcomes[run])
        value = result["best"] if result["metric"] == self.metric else None
        return value if value is not None and math.isfinite(value) else None

    def _plan(self, batch: Mapping[int, Mapping[str, Any]]) -> Sequence[Job]:
        folder = quoted(str(self.folder))
        overrides = [
            [
                *self.fixed,
                *(f"{key}={value}" for key, value in params.items()),
                f"trial={{folder: {folder}, number: {number}}}",
            ]
            for number, params in batch.items()
        ]
        return self.launcher.plan(overrides).jobs

    def _check_same_space(self, trial: "optuna.trial.FrozenTrial") -> None:
        """Raises ConfigError if a trial of an earlier start belongs to another search."""
        check = self.sweeper.optuna.distributions.check_distribution_compatibility
        if trial.params and trial.params.keys() != self.space.keys():
            searched, given = ", ".join(sorted(trial.params)), ", ".join(sorted(self.space))
            raise ConfigError(
                f"The study in {self.folder} searches {searched}, but this command searches {given}. A study has one "
                "set of keys. Choose another folder with hydra.sweep.dir."
            )
        for key, before in trial.distributions.items():
            try:
                check(before, self.space[key])
            except ValueError as error:
                raise ConfigError(
                    f"The study in {self.folder} searches other values of {key} ({error}). A study has one set of "
                    "values. Give the same values, or choose another folder with hydra.sweep.dir."
                ) from error


def distribution(override_: Override, optuna: Any) -> Any:
    """Returns Optuna's distribution of a swept override: an interval or a choice.

    Raises:
        ConfigError: The interval is empty, or it is logarithmic and begins at or below 0.
    """
    value = override_.value()
    if not isinstance(value, IntervalSweep):
        return optuna.distributions.CategoricalDistribution([str(each) for each in override_.sweep_string_iterator()])
    is_integer = isinstance(value.start, int) and isinstance(value.end, int)
    kind = optuna.distributions.IntDistribution if is_integer else optuna.distributions.FloatDistribution
    try:
        return kind(value.start, value.end, log="log" in value.tags)
    except ValueError as error:
        raise ConfigError(
            f"{override_.input_line} is no valid interval ({error}). An interval must not be empty, and a logarithmic "
            "one must begin above 0. Give another interval."
        ) from error


def _first_value(each: Any) -> Any:
    return each.choices[0] if hasattr(each, "choices") else each.low
