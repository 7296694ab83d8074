"""Retention policy: selects the checkpoints of a run to keep, and deletes the others."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from framework.checkpoint.layout import (
    STATE,
    DamagedError,
    complete_checkpoints,
    read_json,
    remove,
    remove_leftovers,
    step_of,
)
from framework.checkpoint.storage import Location

VALIDATION = "validation"
"""Key of state.json that holds the metrics of the validation at that step, if there was one."""


@dataclass(frozen=True)
class Retention:
    """Rules by which checkpoints are kept. One matching rule is enough to keep a checkpoint.

    Attributes:
        keep_last: Number of newest checkpoints to keep. At least one is always kept.
        keep_every_n_steps: Interval in steps; checkpoints at its multiples are kept forever. None disables this rule.
        keep_best: Number of checkpoints to keep that have the best validation metric.
        best_key: Metric key that ranks checkpoints, such as "val/loss".
        best_mode: "min" or "max".
        newest_of_every: Interval in steps; the newest checkpoint at one of its multiples is kept, even if many were
            saved since. None disables this rule.
        always: Steps whose checkpoints are kept forever, such as the last ones of phases.
    """

    keep_last: int = 2
    keep_every_n_steps: int | None = None
    keep_best: int = 0
    best_key: str = "val/loss"
    best_mode: str = "min"
    newest_of_every: int | None = None
    always: frozenset[int] = frozenset()

    def steps_to_keep(self, validations: Mapping[int, Mapping[str, float]]) -> set[int]:
        """Returns the steps whose checkpoints are kept. Of equal metrics, the earlier step ranks higher.

        Args:
            validations: Validation metrics by step, for each complete checkpoint. Steps without a validation have an
                empty mapping.
        """
        steps = sorted(validations)
        kept = set(steps[-max(self.keep_last, 1) :]) | (self.always & set(steps))
        if self.keep_every_n_steps is not None:
            kept |= {step for step in steps if step % self.keep_every_n_steps == 0}
        if self.newest_of_every is not None:
            kept |= set([step for step in steps if step % self.newest_of_every == 0][-1:])
        sign = 1 if self.best_mode == "min" else -1
        values = {step: validations[step].get(self.best_key, math.nan) for step in steps}
        ranked = sorted((sign * value, step) for step, value in values.items() if math.isfinite(value))
        return kept | {step for _, step in ranked[: self.keep_best]}

    def prune(self, checkpoints: Location) -> None:
        """Deletes checkpoints that no rule keeps, and leftovers of interrupted saves and deletions.

        Call it on one rank, after a save. The newest complete checkpoint and newer folders are never deleted.
        """
        folders = {step_of(folder): folder for folder in complete_checkpoints(checkpoints)}
        kept = self.steps_to_keep({step: _validation(folder) for step, folder in folders.items()})
        for step, folder in folders.items():
            if step not in kept:
                remove(folder)
        remove_leftovers(checkpoints)


def _validation(folder: Location) -> dict[str, float]:
    """Returns the validation metrics of a checkpoint; empty if there are none or state.json cannot be read."""
    try:
        metrics = read_json(folder / STATE).get(VALIDATION)
    except DamagedError:
        return {}
    if not isinstance(metrics, dict):
        return {}
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}
