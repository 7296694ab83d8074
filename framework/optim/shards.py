"""What an optimizer needs to know of a parameter that may be sharded."""

from torch import Tensor
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; a plain tensor is held whole. Shares memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
