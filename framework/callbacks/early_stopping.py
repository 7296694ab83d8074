"""Ends a run whose validation no longer improves (Prechelt 1998, "Early Stopping - But When?", in LNCS 1524).

It also ends a run that is worse than the other trials of its search. Patience is counted in validations. Each
checkpoint stores the count, so that a killed and resumed run ends at the same step as an uninterrupted one.
"""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module. These hooks are for EncoderModule.

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from typing_extensions import override

from framework.modules.encoder_module import EncoderModule
from framework.tracking.rank_log import RUN_LOGGER
from framework.tracking.study import StudyTrial

logger = logging.getLogger(RUN_LOGGER)

_FAILURES = "validations_without_improvement"


@dataclass(frozen=True)
class Patience:
    """Limit on the number of validations without an improvement.

    Attributes:
        validations: Consecutive validations without an improvement after which the run ends; at least 1.
        min_delta: Smallest difference; a value must be better than the best one by more than this to be an improvement.
    """

    validations: int
    min_delta: float = 0.0

    def is_spent(self, callback_states: Mapping[str, Mapping[str, Any]]) -> bool:
        """Returns True if early stopping ended the run at a checkpoint.

        Args:
            callback_states: `callbacks` in state.json of the checkpoint.
        """
        return callback_states.get(EarlyStopping.__name__, {}).get(_FAILURES, 0) >= self.validations


class EarlyStopping(pl.Callback):
    """Counts validations without an improvement and requests a stop after a validation.

    Its position is after the callbacks that log and before the one that saves. It counts in every run, so that the
    patience can be added, removed or changed when a run resumes. Validation metrics are global, so all ranks decide the
    same without communication.
    """

    def __init__(self, patience: Patience | None, metric: str, mode: str, trial: StudyTrial | None = None) -> None:
        """Creates the callback.

        Args:
            patience: Limit on validations without an improvement; None: the run continues to its last step.
            metric: Validation metric without the `val/` prefix.
            mode: "min" or "max", for the better values of the metric.
            trial: Trial of a search that this run executes; None: the run belongs to no search.
        """
        self.patience = patience
        self.trial = trial
        self.key = f"val/{metric}"
        self.mode = mode
        self._best: float | None = None
        self._best_step = 0
        self._failures = 0
        self._pruned_at: str | None = None

    @property
    def is_pruned(self) -> bool:
        """True if the search ends the run."""
        return self._pruned_at is not None

    @property
    def why(self) -> str | None:
        """Reason for which the run ends here; None if it continues."""
        if self._pruned_at is not None:
            return f"pruned by the search: {self._pruned_at} is worse than the results of other trials"
        if self.patience is None or self._failures < self.patience.validations:
            return None
        delta = f" by more than {self.patience.min_delta:g}" if self.patience.min_delta else ""
        best = "a finite value" if self._best is None else f"{self._best:.4g} of step {self._best_step}{delta}"
        count = f"{self._failures} validation{'s' if self._failures > 1 else ''}"
        return f"early stopping: {self.key} did not improve on {best} in {count}"

    @property
    def may_end_next(self) -> bool:
        """True if the run ends with the next validation unless that is an improvement."""
        return self.patience is not None and self._failures + 1 >= self.patience.validations

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Requests the stop if the run had ended at the resumed checkpoint, which `Resume` has loaded before."""
        self._stop_if_spent(trainer)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Compares the metric with the best value; a value that is not finite is no improvement."""
        value = pl_module.validation_metrics.get(self.key, math.nan)
        if self._is_better(value):
            self._best, self._best_step, self._failures = value, trainer.global_step, 0
        else:
            self._failures += 1
        if self.trial is not None and math.isfinite(value) and self.trial.should_prune(value, trainer.global_step):
            self._pruned_at = f"{self.key} {value:.4g} at step {trainer.global_step}"
        self._stop_if_spent(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Returns the best value, its step, and the number of validations without an improvement after it."""
        return {"best": self._best, "best_step": self._best_step, _FAILURES: self._failures}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best value and the count."""
        self._best, self._best_step = state_dict["best"], state_dict["best_step"]
        self._failures = state_dict[_FAILURES]

    def _is_better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if self._best is None:
            return True
        gain = self._best - value if self.mode == "min" else value - self._best
        return gain > (0.0 if self.patience is None else self.patience.min_delta)

    def _stop_if_spent(self, trainer: pl.Trainer) -> None:
        if self.why is not None:
            logger.info("the run ends after this step: %s", self.why)
            trainer.should_stop = True
