"""Lightning's Trainer as Cloze uses it: features of Lightning that Cloze implements itself are disabled."""

import logging
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import lightning.pytorch as pl
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import Strategy
from typing_extensions import override


class _NoProfiler(PassThroughProfiler):
    """Profiler without contexts. Lightning opens one for each hook of each callback, about 70 in a step."""

    _CONTEXT = nullcontext("")

    @override
    def profile(self, action_name: str) -> AbstractContextManager[str]:  # type: ignore[override]
        """Returns a context that does nothing."""
        return self._CONTEXT


def build_trainer(
    strategy: Strategy,
    accelerator: str,
    local_world_size: int,
    num_nodes: int,
    max_steps: int,
    validate_every_n_steps: int | None,
    callbacks: Sequence[pl.Callback],
) -> pl.Trainer:
    """Builds a Trainer that counts optimizer steps of the whole run.

    Args:
        strategy: Strategy from `framework.distributed.strategy.build_strategy`.
        accelerator: "cpu" or "cuda".
        local_world_size: Number of processes on this node.
        num_nodes: Number of hosts.
        max_steps: Optimizer steps of the whole run.
        validate_every_n_steps: Optimizer steps between two validations; None disables validation.
        callbacks: Callbacks in the order in which they run.
    """
    _quiet_lightning()
    return pl.Trainer(
        strategy=strategy,
        accelerator=accelerator,
        devices=local_world_size,
        num_nodes=num_nodes,
        max_steps=max_steps,
        max_epochs=-1,
        val_check_interval=validate_every_n_steps,
        check_val_every_n_epoch=None,
        limit_val_batches=0 if validate_every_n_steps is None else None,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        logger=False,
        profiler=_NoProfiler(),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        enable_autolog_hparams=False,
    )


_HIDDEN_WARNINGS = (
    ".*does not have many workers.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*`srun` command is available.*",  # also shown on login nodes; slurm/ explains how to submit jobs
)


def _quiet_lightning() -> None:
    """Hides Lightning's advertisements and its warnings about settings that are intended here."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for message in _HIDDEN_WARNINGS:
        warnings.filterwarnings("ignore", message)
