"""Nothing that is not finite is ever saved: a run that goes on from it could not be put right again."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from framework.distributed.processes.agreement import on_every_rank
from framework.errors import CheckpointError


def check_finite(tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Checks weights and optimizer state, each rank its own part; waits for the device once.

    Collective: all ranks must call. An update from a finite gradient can still overflow.

    Args:
        tensors: Of `checkpoint_tensors`, or copies of them.
        group: Of all ranks, on the host; None: the default group.

    Raises:
        CheckpointError: A value is not finite on any rank; on all ranks.
    """

    def check() -> None:
        local = {name: tensor.to_local() if isinstance(tensor, DTensor) else tensor for name, tensor in tensors.items()}
        measured = {name: _is_finite(tensor) for name, tensor in local.items() if tensor.numel()}
        flags = torch.stack(list(measured.values())).tolist() if measured else []
        for name, is_finite in zip(measured, flags, strict=True):
            if not is_finite:
                raise CheckpointError(
                    f"{name} is no longer finite although loss and gradient norm of every step were, so no checkpoint "
                    "is written; begin a new run.id with a lower learning rate, or with trainer.gradient_clip. Older "
                    "checkpoints are whole."
                )

    on_every_rank(check, group)


def _is_finite(tensor: Tensor) -> Tensor:
    """() bool; the extremes need no copy of the tensor, and NaN is an extreme."""
    least, greatest = tensor.detach().aminmax()
    return torch.isfinite(least) & torch.isfinite(greatest)
