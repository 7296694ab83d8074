"""The Trainer with which our steps run: what Lightning would do by itself and is done elsewhere is off."""

import logging
import warnings
from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch.strategies import Strategy


def build_trainer(
    strategy: Strategy,
    accelerator: str,
    local_world_size: int,
    num_nodes: int,
    max_steps: int,
    validate_every_n_steps: int | None,
    callbacks: Sequence[pl.Callback],
) -> pl.Trainer:
    """Builds a Trainer that counts in optimizer steps of the whole run.

    Args:
        strategy: Of `framework.distributed.strategy.build_strategy`.
        accelerator: "cpu" or "cuda".
        local_world_size: Processes of this node.
        num_nodes: Hosts.
        max_steps: Optimizer steps of the whole run.
        validate_every_n_steps: None: never.
        callbacks: In the order in which they act.
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
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        enable_autolog_hparams=False,
    )


_NOT_FOR_USERS = (
    ".*does not have many workers.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*`srun` command is available.*",  # a login node is a machine like any other; slurm/ says how jobs are submitted
)


def _quiet_lightning() -> None:
    """Drops Lightning's advertisements and the remarks on what is meant here as it is."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    for message in _NOT_FOR_USERS:
        warnings.filterwarnings("ignore", message)
