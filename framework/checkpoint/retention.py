"""Which checkpoints of a run stay."""

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
"""Key of state.json: the metrics of the validation that was made at that step, where one was."""


@dataclass(frozen=True)
class Retention:
    """The newest stay, one every so many steps, and the best; a checkpoint stays for any of these reasons.

    Attributes:
        keep_last: Newest checkpoints that stay, at least 1.
        keep_every_n_steps: Checkpoints of these steps stay forever; None: of none.
        keep_best: How many of the best validations stay.
        best_key: Metric key by which they are compared, such as "val/loss".
        best_mode: "min" or "max".
        newest_of_every: The newest checkpoint at a multiple of it stays, whatever was saved since; None: none does.
    """

    keep_last: int = 2
    keep_every_n_steps: int | None = None
    keep_best: int = 0
    best_key: str = "val/loss"
    best_mode: str = "min"
    newest_of_every: int | None = None

    def kept(self, validations: Mapping[int, Mapping[str, float]]) -> set[int]:
        """The steps that stay.

        Args:
            validations: For each complete checkpoint its step and the metrics of that step's validation, empty where
                none was made. Of equal values the earlier step is the better.
        """
        steps = sorted(validations)
        kept = set(steps[-max(self.keep_last, 1) :])
        if self.keep_every_n_steps is not None:
            kept |= {step for step in steps if step % self.keep_every_n_steps == 0}
        if self.newest_of_every is not None:
            kept |= set([step for step in steps if step % self.newest_of_every == 0][-1:])
        sign = 1 if self.best_mode == "min" else -1
        values = {step: validations[step].get(self.best_key, math.nan) for step in steps}
        ranked = sorted((sign * value, step) for step, value in values.items() if math.isfinite(value))
        return kept | {step for _, step in ranked[: self.keep_best]}

    def prune(self, checkpoints: Location) -> None:
        """Deletes the others, and what is left of writes and deletions that a kill cut short.

        Call it on one rank, after a save. The newest complete checkpoint stays, and what is newer.
        """
        folders = {step_of(folder): folder for folder in complete_checkpoints(checkpoints)}
        kept = self.kept({step: _validation(folder) for step, folder in folders.items()})
        for step, folder in folders.items():
            if step not in kept:
                remove(folder)
        remove_leftovers(checkpoints)


def _validation(folder: Location) -> dict[str, float]:
    """Metrics of a checkpoint's own validation; one that cannot be read has none."""
    try:
        metrics = read_json(folder / STATE).get(VALIDATION)
    except DamagedError:
        return {}
    if not isinstance(metrics, dict):
        return {}
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}
