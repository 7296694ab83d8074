"""Ends a run whose validation no longer gets better (Prechelt 1998, "Early Stopping - But When?", in LNCS 1524).

It also ends one that is worse than the other trials of its search. The patience is counted in validations, and what was
counted is kept in each checkpoint, so that a run that was killed ends at the same step as one that was not.
"""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module; ours are for one.

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
    """How long a run goes on without getting better.

    Attributes:
        validations: In a row without an improvement, after which the run ends; at least 1.
        min_delta: By how much more than this a value must be better than the best one to count as an improvement.
    """

    validations: int
    min_delta: float = 0.0

    def is_spent(self, callback_states: Mapping[str, Mapping[str, Any]]) -> bool:
        """Says whether the run of a checkpoint came to its end there.

        Args:
            callback_states: `callbacks` of its state.json.
        """
        return callback_states.get(EarlyStopping.__name__, {}).get(_FAILURES, 0) >= self.validations


class EarlyStopping(pl.Callback):
    """Counts validations, and asks for the stop after one. Stands after what logs and before what saves.

    It counts in every run, so that patience may be given, taken away or changed when a run goes on. Validation metrics
    are global, so that all ranks decide the same without another message.
    """

    def __init__(self, patience: Patience | None, metric: str, mode: str, trial: StudyTrial | None = None) -> None:
        """Takes what is compared.

        Args:
            patience: How long; None: the run goes on to its last step.
            metric: Of the validation, without the `val/` prefix.
            mode: "min" or "max".
            trial: Of the search that the run belongs to; None: it belongs to none.
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
        """Whether it is the search that ends the run."""
        return self._pruned_at is not None

    @property
    def why(self) -> str | None:
        """Why the run ends here; None where it goes on."""
        if self._pruned_at is not None:
            return f"pruned by the search: {self._pruned_at} is worse than what other trials had reached"
        if self.patience is None or self._failures < self.patience.validations:
            return None
        delta = f" by more than {self.patience.min_delta:g}" if self.patience.min_delta else ""
        best = "a finite value" if self._best is None else f"{self._best:.4g} of step {self._best_step}{delta}"
        count = f"{self._failures} validation{'s' if self._failures > 1 else ''}"
        return f"early stopping: {self.key} did not improve on {best} in {count}"

    @property
    def may_end_next(self) -> bool:
        """Whether the run ends with the next validation if that is no improvement."""
        return self.patience is not None and self._failures + 1 >= self.patience.validations

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Makes no step where the checkpoint that the run goes on from is its last; `Resume` has stood before."""
        self._stop_if_spent(trainer)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Compares; a value that is not finite is no improvement."""
        value = pl_module.validation_metrics.get(self.key, math.nan)
        if self._is_better(value):
            self._best, self._best_step, self._failures = value, trainer.global_step, 0
        else:
            self._failures += 1
        if self.trial is not None and math.isfinite(value) and self.trial.is_hopeless(value, trainer.global_step):
            self._pruned_at = f"{self.key} {value:.4g} at step {trainer.global_step}"
        self._stop_if_spent(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        """The best value, its step, and how many validations came after it without an improvement."""
        return {"best": self._best, "best_step": self._best_step, _FAILURES: self._failures}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on counting."""
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
            logger.info("ends after this step: %s", self.why)
            trainer.should_stop = True
