"""The study of a search for hyperparameters, as Optuna keeps it: a journal in the folder of the sweep.

The sweep opens it to ask for trials and to tell what they reached; the run of a trial opens it to report each
validation and to hear whether the trial is worth going on. Any number of hosts may do so at once, on a file system that
they share.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from framework.distributed.processes.agreement import gather
from framework.distributed.processes.environment import process_info
from framework.errors import ConfigError

if TYPE_CHECKING:
    import optuna

JOURNAL_FILE = "study.journal"

PrunerName = Literal["median", "halving", "none"]

_PRUNER = "pruner"
"""User attribute: what makes the pruner, which Optuna does not keep."""


def import_optuna() -> Any:
    """The package.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import optuna
        from optuna.exceptions import ExperimentalWarning
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"a search needs Optuna, which is not installed ({error.name} is missing): pip install -e '.[optuna]'."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what it would say stands in the tables
    warnings.filterwarnings("ignore", category=ExperimentalWarning)
    warnings.filterwarnings("ignore", message="The reported value is ignored")  # a run that went on repeats a step
    return optuna


def create_study(folder: Path, direction: Literal["minimize", "maximize"], pruner: Mapping[str, Any]) -> "optuna.Study":
    """Opens the study of a sweep, or begins it.

    Args:
        folder: Of the sweep.
        direction: Of the metric.
        pruner: Arguments of `_pruner`.

    Raises:
        ConfigError: Optuna is not installed, or the study in the folder goes in the other direction.
    """
    optuna = import_optuna()
    study = optuna.create_study(
        study_name=folder.name,
        storage=_storage(folder / JOURNAL_FILE),
        direction=direction,
        load_if_exists=True,
    )
    if study.direction.name.lower() != direction:
        raise ConfigError(
            f"the study in {folder} has the direction {study.direction.name.lower()}, but the task's metric asks for "
            f"{direction}; name another sweep with hydra.sweep.dir."
        )
    study.set_user_attr(_PRUNER, dict(pruner))
    return study


class StudyTrial:
    """The trial that a run is of."""

    def __init__(self, folder: Path, number: int) -> None:
        """Opens the study on rank 0.

        Args:
            folder: Of the sweep.
            number: Of the trial in its study.

        Raises:
            ConfigError: Optuna is not installed, or there is no such trial.
        """
        self._trial: Any = None
        if process_info().rank > 0:
            return
        optuna = import_optuna()
        if not (folder / JOURNAL_FILE).is_file():
            raise ConfigError(
                f"`trial.folder` is {folder}, but there is no {JOURNAL_FILE}; let the sweep start its jobs."
            )
        study = optuna.load_study(study_name=folder.name, storage=_storage(folder / JOURNAL_FILE))
        if number >= len(study.trials):
            raise ConfigError(f"`trial.number` is {number}, but the study in {folder} has {len(study.trials)} trials.")
        study.pruner = _pruner(**study.user_attrs[_PRUNER])
        self._trial = optuna.trial.Trial(study, study.trials[number]._trial_id)

    def should_prune(self, value: float, step: int) -> bool:
        """Reports a validation; True where the trial should end. Collective: all ranks must call.

        Args:
            value: Of the task's metric, finite.
            step: After which it was measured.
        """
        decision = False
        if self._trial is not None:
            self._trial.report(value, step)
            decision = self._trial.should_prune()
        return gather(decision)[0]


def _storage(journal: Path) -> Any:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    return JournalStorage(JournalFileBackend(str(journal)))


def _pruner(name: PrunerName, startup_trials: int, warmup_steps: int) -> Any:
    """Optuna's pruner.

    Args:
        name: "median": a trial ends that is worse at a step than the median of the others there; "halving": only the
            best quarter passes each rung (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning").
        startup_trials: Trials that must have ended before "median" ends one.
        warmup_steps: Steps of a trial in which "median" does not end it; the first rung of "halving", 0: from the data.
    """
    optuna = import_optuna()
    if name == "none":
        return optuna.pruners.NopPruner()
    if name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=warmup_steps or "auto")
    return optuna.pruners.MedianPruner(n_startup_trials=startup_trials, n_warmup_steps=warmup_steps)
