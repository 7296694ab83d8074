"""Ends a toy run at a hook of a step, as a kill would."""

import lightning.pytorch as pl


class CutError(RuntimeError):
    """Raised in place of a kill."""


class CutAt(pl.Callback):
    """Callback that ends the run at a hook of a step, as a kill would, except that failure hooks still run."""

    def __init__(self, hook: str, step: int) -> None:
        self.step = step
        setattr(self, hook, self._cut)

    def _cut(self, trainer: pl.Trainer, *unused: object) -> None:
        if trainer.global_step == self.step:
            raise CutError
