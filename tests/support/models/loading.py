"""Fills materialized models, as a run does shard by shard, and saves them without a copy."""

from typing import Any

import torch
from torch import nn

from framework.checkpoint.save import write_checkpoint
from framework.checkpoint.storage import Location
from framework.checkpoint.tensors import checkpoint_tensors
from framework.optim.combined import CombinedOptimizer
from framework.published.pretrained import PretrainedWeights, match_parameters


def load_into(model: nn.Module, weights: PretrainedWeights) -> list[str]:
    """Copies weights into a model; returns the names of parameters that were not changed."""
    values, new = match_parameters(model, weights)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)
    return new


def save_checkpoint(
    checkpoints: Location, step: int, model: nn.Module, optimizer: CombinedOptimizer, extra: dict[str, Any]
) -> Location:
    """Writes the current model and optimizer. Collective: all ranks must call."""
    return write_checkpoint(checkpoints, step, checkpoint_tensors(model, optimizer), extra)
