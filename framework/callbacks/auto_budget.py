"""Chooses the token budget of micro-batches after the model is in memory and before the first batch is built."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module. These hooks are for EncoderModule.

from typing import Any

import lightning.pytorch as pl
import torch
from typing_extensions import override

from framework.data.planning.auto_budget import (
    MEMORY_FRACTION,
    Trial,
    best_budget,
    trial_batch,
)
from framework.distributed.memory import DeviceMemory
from framework.distributed.reduce import max_over_ranks
from framework.modules.encoder_module import EncoderModule


class AutoBudget(pl.Callback):
    """Sets the budget of the data module. Each start of a run chooses it again, because a budget changes no result.

    Args:
        memory: Memory of the device; None on the CPU, where memory is not a limit.
    """

    def __init__(self, memory: DeviceMemory | None) -> None:
        self.memory = memory

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Runs trials and sets the budget; weights, optimizer and counters stay unchanged.

        Collective: all ranks must call.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        plan, smallest, memory = data.plans["train"], data.longest_sequence, self.memory
        if memory is None:
            data.set_budget(best_budget(plan, smallest, None))
            return

        def attempt(tokens: int) -> Trial:
            batch = trial_batch(plan.source, tokens, data.max_steps, data.shapes("train", tokens)).to(pl_module.device)
            before = memory.start()
            pl_module.runner.run_trial(batch)
            measured = torch.tensor([batch.num_tokens, memory.peak(), before], dtype=torch.float64)
            tokens_, peak, held = max_over_ranks(measured.to(pl_module.device)).tolist()
            trial = Trial(int(tokens_), peak, held)
            return trial if pl_module.build_graphs is None else trial.of_captured_step()

        limit = -max_over_ranks(
            torch.tensor(-MEMORY_FRACTION * memory.available(), dtype=torch.float64, device=pl_module.device)
        ).item()
        data.set_budget(best_budget(plan, smallest, attempt, limit))
