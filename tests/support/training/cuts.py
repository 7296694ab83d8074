"""Ends a toy run at a hook of a step, as a kill would."""

import lightning.pytorch as pl


class CutError(RuntimeError):
    """Stands for a kill."""


class CutAt(pl.Callback):
    """Ends the process's run at a hook of a step, as a kill would, except that hooks of a failure still run."""

    def __init__(self, hook: str, step: int) -> None:
        self.step = step
        setattr(self, hook, self._cut)

    def _cut(self, trainer: pl.Trainer, *unused: object) -> None:
        if trainer.global_step == self.step:
            raise CutError
