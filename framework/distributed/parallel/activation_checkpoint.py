"""Activation checkpointing: a layer saves little of its forward pass and recomputes the rest in the backward pass.

The code needs only a list of layers, whatever the model. A layer remains the same object with the same parameter names.
Only its class changes to one with another `forward` (`fully_shard` changes classes in the same way), so checkpoints of
a run do not depend on it. Dropout is a hash of keys that are passed in, so no generator state has to be saved for the
recomputation.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from framework.errors import ConfigError


@dataclass(frozen=True)
class ActivationCheckpointing:
    """Settings of activation checkpointing. They change memory and time, but no result.

    Attributes:
        mode: Tensors of the forward pass that a layer keeps for the backward pass. "none": all tensors. "full": the
            layer's input. "selective": the input and the outputs of matrix products and attention.
        every_nth_layer: Layers that are checkpointed. 1: all layers; n: the first of each n layers.
    """

    mode: Literal["none", "full", "selective"] = "none"
    every_nth_layer: int = 1

    def __post_init__(self) -> None:
        if self.every_nth_layer < 1:
            raise ConfigError(
                f"`strategy.activation_checkpointing.every_nth_layer` is {self.every_nth_layer}. It must be at least "
                "1. Raise it, or set `strategy.activation_checkpointing.mode` to none."
            )


KEEP_ALL = ActivationCheckpointing()


def apply_activation_checkpointing(layers: Iterable[nn.Module], settings: ActivationCheckpointing) -> None:
    """Enables activation checkpointing in layers, in place. Call it before layers are compiled or sharded.

    The first of each n layers is checkpointed. The backward pass begins at the last layer, which is then not recomputed
    while all other layers still hold their activations. With "selective", autocast must not cache casts (see
    `Precision.autocast`). Otherwise the recomputation would reuse cached bf16 weights, and torch would raise an error
    because it misses the casts.

    Args:
        layers: Layers in order. Their `forward` takes positional arguments, with the hidden states first.
        settings: Mode and selection of layers.
    """
    if settings.mode == "none":
        return
    for index, layer in enumerate(layers):
        if index % settings.every_nth_layer == 0:
            layer_class: Any = type(layer)
            layer.__class__ = _checkpointed(layer_class, settings.mode)


def kept_operators() -> list[Any]:
    """Returns the operators whose outputs `selective` keeps: products, attention, all-reduces of tensor parallel.

    torchtitan kept every second product for a long time. Here dropout, norms and the activation function hold about as
    much memory as the products. Keeping all products therefore saves about half of the memory and repeats no product. A
    rule that does not count products also selects the same operators in eager and in compiled code. Use `full` to save
    more memory.
    """
    import torch.nn.attention.varlen  # registers torch_attn; it imports torch's compiler, which takes a second

    return [
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
        torch.ops.torch_attn._varlen_attn.default,
        torch.ops._c10d_functional.all_reduce.default,
    ]


def _checkpoint_function(mode: str) -> Any:
    """Returns a function that runs a function and recomputes in the backward pass what was not kept."""
    full = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    if mode == "full":
        return full
    # The compiler accepts a context function only as a partial of torch's own function that is bound in advance.
    kept = functools.partial(create_selective_checkpoint_contexts, kept_operators())
    return functools.partial(full, context_fn=kept)


@functools.cache
def _checkpointed(layer_class: type[nn.Module], mode: str) -> type[nn.Module]:
    """Returns a checkpointed subclass. All layers of a class share it, so that a compiler treats them as equal."""
    compute = _checkpoint_function(mode)

    def forward(self: nn.Module, hidden_states: Tensor, *others: Any) -> Any:
        # The compiler of torch 2.11 guards the whole content of each argument of `compute`. Batches contain lengths on
        # the host, so each batch would be compiled again. Of closure variables it guards only the values that are read.
        return compute(lambda x: layer_class.forward(self, x, *others), hidden_states)

    return type(f"Checkpointed{layer_class.__name__}", (layer_class,), {"forward": forward})
