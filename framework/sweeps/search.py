"""The sweeper of searches: Optuna (Akiba et al. 2019) chooses the values of each job from what earlier jobs reached."""

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

from framework.config.build import build_settings
from framework.config.plugins import PLUGIN_MODULE
from framework.config.schema import at_least
from framework.errors import ConfigError
from framework.sweeps.closing import close_sweep
from framework.sweeps.launcher import SweepLauncher
from framework.sweeps.outcome import Outcome
from framework.sweeps.plan import Job, Sweep, quoted
from framework.sweeps.results import record, say
from framework.sweeps.start import check_jobs, check_whole, done_before, sole
from framework.tasks.task import Task
from framework.tracking.console import open_console
from framework.tracking.study import PrunerName, create_study, import_optuna

if TYPE_CHECKING:
    import optuna

SamplerName = Literal["tpe", "random"]


class OptunaSweeper(Sweeper):
    """Hydra's sweeper `optuna`. The study lies in the sweep's folder, so that the same line started again goes on."""

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
        """Takes how the search goes.

        Args:
            trials: Jobs in all, over every start; one that failed does not count and is tried again by a new start.
            trials_at_once: Chosen together, and run by the launcher before the next ones are chosen.
            sampler: "tpe": tree-structured Parzen estimator (Bergstra et al. 2011); "random".
            pruner: What ends trials early; see `framework.tracking.study`.
            startup_trials: Chosen at random before "tpe" begins, and ended before "median" prunes.
            warmup_steps: Optimizer steps of a trial before which it is not pruned.
            seed: Of the sampler.
            params: What is searched, beside the command line.

        Raises:
            ConfigError: A value cannot be used.
        """
        self.trials, self.trials_at_once, self.startup_trials = trials, trials_at_once, startup_trials
        self.sampler, self.pruner, self.warmup_steps, self.seed = sampler, pruner, warmup_steps, seed
        self.params = dict(params or {})
        check_whole("hydra.sweeper", self, "trials", "trials_at_once", "startup_trials")
        at_least("hydra.sweeper", self, 0, "warmup_steps", "seed")
        for name, known in (("sampler", get_args(SamplerName)), ("pruner", get_args(PrunerName))):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"`hydra.sweeper.{name}` is {getattr(self, name)!r}, but it must be one of {', '.join(known)}."
                )

    @override
    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config, self.optuna = hydra_context, config, import_optuna()
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        if not isinstance(launcher, SweepLauncher) or not launcher.wait:
            raise ConfigError(
                "hydra/sweeper=optuna chooses trials by what earlier ones reached, so it needs a launcher that waits: "
                "hydra/launcher=torchrun, or slurm with hydra.launcher.wait=true."
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
                "hydra/sweeper=optuna has nothing to search; give at least one key several values or an interval, such "
                "as optimizer.lr='tag(log, interval(1e-5, 1e-3))'."
            )
        fixed = [f"{key}={each.get_value_element_as_str()}" for key, each in parsed.items() if key not in space]
        assert self.config is not None
        folder, console = Path(self.config.hydra.sweep.dir), open_console()
        search = _Search(self, folder, fixed, space)
        if self.config.check:
            console.print("check passed for the first job of the search; nothing was started")
            return []
        with sole(folder) as lock:
            search.run(lock, console)
        search.tell_best(console)
        return close_sweep(search.jobs_so_far, search.outcomes, console)

    def build_sampler(self, num_trials: int) -> Any:
        """Optuna's sampler, for a study that has so many trials: the next ones must not repeat their random numbers."""
        samplers = self.optuna.samplers
        if self.sampler == "random":
            return samplers.RandomSampler(seed=self.seed + num_trials)
        return samplers.TPESampler(seed=self.seed + num_trials, n_startup_trials=self.startup_trials)


class _Search:
    """One start of a search."""

    def __init__(self, sweeper: OptunaSweeper, folder: Path, fixed: Sequence[str], space: dict[str, Any]) -> None:
        """Takes what is searched.

        Args:
            sweeper: Its settings.
            folder: Of the sweep.
            fixed: Overrides that all jobs have.
            space: Optuna's distributions by key.
        """
        self.sweeper, self.launcher = sweeper, sweeper.job_launcher
        self.folder, self.fixed, self.space = folder, fixed, space
        self.jobs: dict[str, Job] = {}
        self.outcomes: dict[str, Outcome] = {}
        self.pending: list[tuple[int, dict[str, Any]]] = []
        self.num_failed = 0
        # Any job will do: this one also shows, before the study begins, that the config can be run.
        (job,) = self._plan({0: {key: _first_value(each) for key, each in space.items()}})
        check_jobs([job], self.launcher.processes_of_a_job)
        task: Task = build_settings(job.config, self.launcher.processes_of_a_job).task.build()
        self.metric = f"val/{task.best_metric}"
        self.direction: Literal["minimize", "maximize"] = "minimize" if task.best_mode == "min" else "maximize"

    @property
    def jobs_so_far(self) -> Sweep:
        """The sweep, as far as its jobs are known."""
        return Sweep(self.folder, tuple(self.space), tuple(self.jobs.values()))

    def run(self, lock: int, console: Console) -> None:
        """Runs trials until there are enough, or the sweep is asked to leave."""
        sweeper = self.sweeper
        pruner = {
            "name": sweeper.pruner,
            "startup_trials": sweeper.startup_trials,
            "warmup_steps": sweeper.warmup_steps,
        }
        self.study = create_study(self.folder, self.direction, pruner)
        self.study.sampler = sweeper.build_sampler(len(self.study.trials))
        self._take_up()
        while batch := self._next_batch():
            numbers = self._enter(batch)
            chosen = f"trial {', '.join(str(number) for number in batch)}"
            say(console, self.jobs_so_far, f"{chosen}; {self._num_done()} of {sweeper.trials} are done")
            self.launcher.run(self.jobs_so_far, self.outcomes, lock, console)
            if not self._tell(numbers):
                return

    def tell_best(self, console: Console) -> None:
        """Prints the best trial, where one was run to its end."""
        with suppress(ValueError):  # there is none
            best = self.study.best_trial
            values = ", ".join(f"{key}={value}" for key, value in best.params.items())
            say(console, self.jobs_so_far, f"best is trial {best.number} with {self.metric} {best.value:.4f}: {values}")

    def _take_up(self) -> None:
        """Goes on where an earlier start has left: what it did is kept, what failed is tried again."""
        states = self.sweeper.optuna.trial.TrialState
        trials = self.study.get_trials(deepcopy=False)
        for trial in trials:
            self._check_same_space(trial)
        living = [
            trial.params or trial.system_attrs.get("fixed_params") for trial in trials if trial.state != states.FAIL
        ]
        for trial in trials:
            if trial.state in (states.COMPLETE, states.PRUNED):
                self._enter({trial.number: trial.params})
            elif trial.state == states.RUNNING:
                self.pending.append((trial.number, trial.params))
            elif trial.state == states.FAIL and trial.params not in living:
                self.study.enqueue_trial(trial.params)
                living.append(trial.params)

    def _next_batch(self) -> dict[int, dict[str, Any]]:
        """The parameters of the next trials, by number."""
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

    def _enter(self, batch: Mapping[int, dict[str, Any]]) -> dict[str, list[int]]:
        """Makes jobs of trials; trials that chose the same share one. Returns the numbers by run id."""
        numbers: dict[tuple[Any, ...], list[int]] = {}
        for number, params in batch.items():
            numbers.setdefault(tuple(params.items()), []).append(number)
        jobs = self._plan({each[0]: batch[each[0]] for each in numbers.values()})
        for job in jobs:
            self.jobs[job.id] = job
            self.outcomes.setdefault(job.id, done_before(job) or Outcome("waiting"))
        return {job.id: each for job, each in zip(jobs, numbers.values(), strict=True)}

    def _tell(self, numbers: Mapping[str, Sequence[int]]) -> bool:
        """Tells the study how jobs ended; False where one is to go on at a later start."""
        states = self.sweeper.optuna.trial.TrialState
        all_ended = True
        for run, trials in numbers.items():
            value = self._reached(run) if self.outcomes[run].state == "finished" else None
            if self.outcomes[run].state == "finished" and value is None:
                why = f"it reached no finite {self.metric}; a search needs data.validation"
                self.outcomes[run] = Outcome("failed", why, self.outcomes[run].summary)
            told = {"finished": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}.get(
                self.outcomes[run].state
            )
            if told is None:
                all_ended = False
                continue
            for number in trials:
                self.study.tell(number, value, told)
            self.num_failed += len(trials) if self.outcomes[run].state == "failed" else 0
        return all_ended

    def _reached(self, run: str) -> float | None:
        """The best value of the task's metric in a run; None without a finite one."""
        reached = record(self.jobs[run], self.outcomes[run])
        value = reached["best"] if reached["metric"] == self.metric else None
        return value if value is not None and math.isfinite(value) else None

    def _plan(self, batch: Mapping[int, Mapping[str, Any]]) -> Sequence[Job]:
        place = quoted(str(self.folder))
        overrides = [
            [
                *self.fixed,
                *(f"{key}={value}" for key, value in params.items()),
                f"trial={{folder: {place}, number: {number}}}",
            ]
            for number, params in batch.items()
        ]
        return self.launcher.plan(overrides).jobs

    def _check_same_space(self, trial: "optuna.trial.FrozenTrial") -> None:
        """Raises ConfigError where a trial of an earlier start was of another search."""
        check = self.sweeper.optuna.distributions.check_distribution_compatibility
        if trial.params and trial.params.keys() != self.space.keys():
            searched, asked = ", ".join(sorted(trial.params)), ", ".join(sorted(self.space))
            raise ConfigError(
                f"the study in {self.folder} searches {searched}, but this line {asked}; name another sweep with "
                "hydra.sweep.dir."
            )
        for key, before in trial.distributions.items():
            try:
                check(before, self.space[key])
            except ValueError as error:
                raise ConfigError(
                    f"the study in {self.folder} searches other values of {key} ({error}); give the same ones, or name "
                    "another sweep with hydra.sweep.dir."
                ) from error


def distribution(override_: Override, optuna: Any) -> Any:
    """Optuna's distribution of a swept override: an interval, or a choice.

    Raises:
        ConfigError: The interval is empty, or logarithmic and begins at or below 0.
    """
    value = override_.value()
    if not isinstance(value, IntervalSweep):
        return optuna.distributions.CategoricalDistribution([str(each) for each in override_.sweep_string_iterator()])
    is_whole = isinstance(value.start, int) and isinstance(value.end, int)
    kind = optuna.distributions.IntDistribution if is_whole else optuna.distributions.FloatDistribution
    try:
        return kind(value.start, value.end, log="log" in value.tags)
    except ValueError as error:
        raise ConfigError(f"{override_.input_line} cannot be searched ({error}); give another interval.") from error


def _first_value(each: Any) -> Any:
    return each.choices[0] if hasattr(each, "choices") else each.low
