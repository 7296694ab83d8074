"""Tensor parallel: the ranks of one axis share each matrix product (Shoeybi et al. 2019, "Megatron-LM", section 3).

The input linear layers of a block are split by rows of their weight, so that a rank computes whole heads or its own
intermediate channels. The output linear layer is split by columns, so that a rank computes one summand of the result.
Each block then needs one all-reduce in the forward pass and one in the backward pass. Norms, output biases, position
embeddings and small task heads are replicated on each rank, and equal inputs give them equal gradients.

Weights become DTensors over the axis and keep their names. The class of a module changes to one with another `forward`
(`fully_shard` changes classes in the same way), which computes with the local tensors of its rank.
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
    local_part,
)
from framework.nn.attention import SelfAttention
from framework.nn.feed_forward import FeedForward, GatedFeedForward

if TYPE_CHECKING:
    from framework.tasks.task import TaskModel

_LINEAR_LAYERS: dict[type[nn.Module], tuple[tuple[str, ...], str]] = {
    SelfAttention: (("qkv",), "output"),
    FeedForward: (("up",), "down"),
    GatedFeedForward: (("gate", "up"), "down"),
}
"""Names of the input linear layers and of the output linear layer, by class of the block."""


class ColumnParallelLinear(nn.Linear):
    """Linear layer that computes the outputs of its own rank from an input that is equal on all ranks."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (tokens, in) to this rank's part of (tokens, out)."""
        return functional.linear(x, local_part(self.weight), None if self.bias is None else local_part(self.bias))


class RowParallelLinear(nn.Linear):
    """Linear layer that computes a summand of all outputs from its own rank's inputs. The bias is added to the sum."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps a part of (tokens, in) to (tokens, out) fp32. Collective: all ranks of the axis must call."""
        assert isinstance(self.weight, DTensor)
        group_name = self.weight.device_mesh.get_group().group_name
        total = sum_of_parts(functional.linear(x, local_part(self.weight)), group_name)
        return total if self.bias is None else total + self.bias


def apply_tensor_parallel(model: TaskModel, mesh: DeviceMesh) -> None:
    """Splits the blocks of all layers, the word embeddings and the decoders that share their weight, in place.

    Apply it before activation checkpointing, compile and data parallel. The number of ranks must divide the number of
    heads. If it does not divide the vocabulary or the intermediate size, the last parts are smaller.

    Args:
        model: Model on the meta device.
        mesh: 1-D mesh of the ranks that share matrix products. These ranks read the same data.
    """
    group_name = mesh.get_group().group_name
    for module in list(model.modules()):
        if type(module) in _LINEAR_LAYERS:
            input_names, output_name = _LINEAR_LAYERS[type(module)]
            for name in input_names:
                _split(module.get_submodule(name), {"weight": 0, "bias": 0}, ColumnParallelLinear, mesh)
            _split(module.get_submodule(output_name), {"weight": 1}, RowParallelLinear, mesh)
            module.register_forward_pre_hook(functools.partial(_share_first_input, group_name))
    _split_vocabulary(model, model.encoder.get_submodule("embeddings.word_embeddings"), mesh)


def _split_vocabulary(model: nn.Module, embedding: nn.Module, mesh: DeviceMesh) -> None:
    """Splits the embedding and, by the same rows, the modules with the same weight. All keep one shared parameter."""
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
    """Pre-forward hook of a block: two input linear layers then cost one all-reduce in the backward pass."""
    del module
    return (share_input(args[0], group_name), *args[1:])
