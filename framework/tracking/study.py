"""Opens the Optuna study of a hyperparameter search, a journal file in the folder of the sweep.

The sweep opens it to create trials and to record their results. The run of a trial opens it to report each validation
and to check whether the trial should be pruned. Several hosts may do this at the same time on a shared file system.
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
"""User attribute with the arguments of the pruner, which Optuna itself does not store."""


def import_optuna() -> Any:
    """Imports the package `optuna` and silences its log and known warnings.

    Raises:
        ConfigError: Optuna is not installed.
    """
    try:
        import optuna
        from optuna.exceptions import ExperimentalWarning
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"Optuna is not installed ({error.name} is missing). A search needs it. Run pip install -e '.[optuna]'."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # the tables of the sweep show the same information
    warnings.filterwarnings("ignore", category=ExperimentalWarning)
    warnings.filterwarnings("ignore", message="The reported value is ignored")  # a resumed run repeats a step
    return optuna


def create_study(folder: Path, direction: Literal["minimize", "maximize"], pruner: Mapping[str, Any]) -> "optuna.Study":
    """Opens the study of a sweep, or creates it.

    Args:
        folder: Folder of the sweep.
        direction: Direction in which the metric improves.
        pruner: Arguments of `_pruner`.

    Raises:
        ConfigError: Optuna is not installed, or the study in the folder has the other direction.
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
            f"The study in {folder} has the direction {study.direction.name.lower()}, but the task's metric needs "
            f"{direction}. Choose another folder with hydra.sweep.dir."
        )
    study.set_user_attr(_PRUNER, dict(pruner))
    return study


class StudyTrial:
    """Trial that a run executes."""

    def __init__(self, folder: Path, number: int) -> None:
        """Opens the study on rank 0.

        Args:
            folder: Folder of the sweep.
            number: Index of the trial in its study.

        Raises:
            ConfigError: Optuna is not installed, or the study does not exist or has no such trial.
        """
        self._trial: Any = None
        if process_info().rank > 0:
            return
        optuna = import_optuna()
        if not (folder / JOURNAL_FILE).is_file():
            raise ConfigError(
                f"`trial.folder` is {folder}, but there is no {JOURNAL_FILE} in it. A sweep sets this key. Start the "
                "trial with its sweep."
            )
        study = optuna.load_study(study_name=folder.name, storage=_storage(folder / JOURNAL_FILE))
        if number >= len(study.trials):
            raise ConfigError(
                f"`trial.number` is {number}, but the study in {folder} has {len(study.trials)} trials. A sweep sets "
                "this key. Start the trial with its sweep."
            )
        study.pruner = _pruner(**study.user_attrs[_PRUNER])
        self._trial = optuna.trial.Trial(study, study.trials[number]._trial_id)

    def should_prune(self, value: float, step: int) -> bool:
        """Reports a validation and returns True if the trial should be pruned. Collective: all ranks must call.

        Args:
            value: Value of the task's metric, finite.
            step: Step after which it was measured.
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
    """Builds Optuna's pruner.

    Args:
        name: "median" prunes a trial that is worse at a step than the median of the others at this step. "halving" lets
            only the best quarter pass each rung (Li et al. 2020, "A System for Massively Parallel Hyperparameter
            Tuning"). "none" prunes no trial.
        startup_trials: Number of trials that must have ended before "median" prunes one.
        warmup_steps: Steps of a trial in which "median" does not prune it. For "halving" the step of the first rung; 0
            derives it from the data.
    """
    optuna = import_optuna()
    if name == "none":
        return optuna.pruners.NopPruner()
    if name == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=warmup_steps or "auto")
    return optuna.pruners.MedianPruner(n_startup_trials=startup_trials, n_warmup_steps=warmup_steps)
