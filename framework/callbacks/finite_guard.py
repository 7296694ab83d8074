"""Stops a run whose loss or gradient is no longer finite, before the update."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module; ours are for one.

import lightning.pytorch as pl
import torch
from torch.optim import Optimizer
from typing_extensions import override

from framework.constants import DUMMY_SEQUENCE_ID
from framework.errors import FrameworkError
from framework.modules.encoder_module import EncoderModule


class FiniteGuard(pl.Callback):
    """Looks at the loss and the gradient norm of each step, between the backward and the update.

    Both are global, so all ranks decide the same without another message, and weights and optimizer state stay as they
    were. Cost: the host reads one boolean a step. On a CPU that is free; on a GPU the queue runs empty just before the
    update, and what is lost is the time to launch it.
    """

    @override
    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: EncoderModule, optimizer: Optimizer) -> None:
        """Checks the step that is about to be applied.

        Raises:
            FrameworkError: The loss or the gradient norm is not finite.
        """
        loss = pl_module.step_metrics["train/loss"]
        grad_norm = pl_module.step_metrics["optim/grad_norm"]
        if bool(torch.isfinite(loss) & torch.isfinite(grad_norm)):
            return
        raise FrameworkError(
            f"Step {trainer.global_step + 1}: the loss is {float(loss):g} and the gradient norm {float(grad_norm):g}, "
            f"but both must be finite; the update was not applied. {_sequences(pl_module)} Lower the learning rate, "
            "lengthen the warm-up or look at those sequences, then start again from the last checkpoint."
        )


def _sequences(pl_module: EncoderModule) -> str:
    """Which sequences this rank held."""
    assert pl_module.step_batch is not None
    ids = torch.cat([micro_batch.sequence_ids for micro_batch in pl_module.step_batch.micro_batches])
    ids = ids[ids != DUMMY_SEQUENCE_ID]
    if not len(ids):
        return "This rank held no sequence."
    return f"This rank held sequence ids {int(ids.min())} to {int(ids.max())}."
