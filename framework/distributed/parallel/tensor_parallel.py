"""Tensor parallel: the ranks of one axis share each matrix product (Shoeybi et al. 2019, "Megatron-LM", section 3).

The maps into a block are split by rows of their weight, so that a rank computes whole heads or its own intermediate
channels; the map out of it by columns, so that a rank computes one summand of the result. That is one all-reduce a
block in the forward pass and one in the backward pass. Norms, output biases, positions and small heads are whole on
each rank, and equal inputs give them equal gradients.

Weights become DTensors over the axis, under their own names. A module gets another class with another `forward`
(`fully_shard` changes classes in the same way), which computes with the plain tensors of its rank.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn import functional

from framework.distributed.parallel.tensor_collectives import share_input, sum_of_parts
from framework.distributed.parallel.vocabulary_parallel import (
    VocabularyParallelDecoder,
    VocabularyParallelEmbedding,
    part_of,
)
from framework.nn.attention import SelfAttention
from framework.nn.feed_forward import FeedForward, GatedFeedForward

if TYPE_CHECKING:
    from framework.tasks.task import TaskModel

_MAPS: dict[type[nn.Module], tuple[tuple[str, ...], str]] = {
    SelfAttention: (("qkv",), "output"),
    FeedForward: (("up",), "down"),
    GatedFeedForward: (("gate", "up"), "down"),
}
"""By block: the linear maps into it, and the one out of it."""


class ColumnParallelLinear(nn.Linear):
    """Computes its own rank's outputs, from an input that all ranks share."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (tokens, in) to this rank's part of (tokens, out)."""
        return functional.linear(x, part_of(self.weight), None if self.bias is None else part_of(self.bias))


class RowParallelLinear(nn.Linear):
    """Computes a summand of all outputs, from its own rank's inputs; the sum gets the bias once."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps a part of (tokens, in) to (tokens, out) fp32. Collective: all ranks of the axis must call."""
        assert isinstance(self.weight, DTensor)
        total = sum_of_parts(functional.linear(x, part_of(self.weight)), self.weight.device_mesh.get_group().group_name)
        return total if self.bias is None else total + self.bias


def apply_tensor_parallel(model: TaskModel, mesh: DeviceMesh) -> None:
    """Splits the blocks of all layers, the word embeddings and the decoders that share these, in place.

    First of all that is applied to a model. A vocabulary or intermediate size that the ranks do not divide makes the
    last parts smaller; heads must be divided.

    Args:
        model: On the meta device.
        mesh: 1-D, the ranks that share products; they read the same data.
    """
    group_name = mesh.get_group().group_name
    for module in list(model.modules()):
        if type(module) in _MAPS:
            into, out_of = _MAPS[type(module)]
            for name in into:
                _split(module.get_submodule(name), {"weight": 0, "bias": 0}, ColumnParallelLinear, mesh)
            _split(module.get_submodule(out_of), {"weight": 1}, RowParallelLinear, mesh)
            module.register_forward_pre_hook(functools.partial(_share_first_input, group_name))
    _split_vocabulary(model, model.encoder.get_submodule("embeddings.word_embeddings"), mesh)


def _split_vocabulary(model: nn.Module, embedding: nn.Module, mesh: DeviceMesh) -> None:
    """Splits the embedding and, by the same rows, what is tied to it; both keep one parameter."""
    whole = embedding.weight
    _split(embedding, {"weight": 0}, VocabularyParallelEmbedding, mesh)
    for module in model.modules():
        if getattr(module, "weight", None) is whole:
            module.weight = embedding.weight
            _split(module, {"bias": 0}, VocabularyParallelDecoder, mesh)


def _split(module: nn.Module, dims: dict[str, int], parallel_class: type[nn.Module], mesh: DeviceMesh) -> None:
    """Shards parameters on the given dims and gives the module its parallel class."""
    for name, dim in dims.items():
        parameter = getattr(module, name)
        if parameter is not None:
            part = distribute_tensor(parameter.detach(), mesh, [Shard(dim)], src_data_rank=None)
            setattr(module, name, nn.Parameter(part, requires_grad=parameter.requires_grad))
    module.__class__ = parallel_class


def _share_first_input(group_name: str, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A hook that runs before a block, so that two maps into it cost one all-reduce in the backward pass."""
    del module
    return (share_input(args[0], group_name), *args[1:])
