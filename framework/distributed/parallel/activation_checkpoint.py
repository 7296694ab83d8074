"""Activation checkpointing: a layer keeps little of its forward pass and computes the rest again in the backward pass.

What is here knows no model beyond a list of layers. A layer stays itself, with the same parameter names: only its class
gets another `forward` (`fully_shard` changes classes in the same way), so that a checkpoint of a run does not tell.
Dropout is a hash of keys that are handed in, so that no state of a generator has to be kept for the second pass.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.attention.varlen  # registers torch_attn
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from framework.errors import ConfigError

KEPT_OPERATORS = [
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
"""What `selective` keeps: the outputs of all matrix products, of attention, and of tensor parallel's sums over ranks.

torchtitan long kept every second product. Here dropout, norms and the activation hold about as much as the products
do, so that keeping all of these saves about half already and multiplies nothing twice; and a rule that does not count
means the same in eager and in compiled code. Who needs more memory takes `full`.
"""

_full = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
# The compiler accepts a maker of contexts as a partial of torch's own function, bound to the call in advance.
_selective = functools.partial(
    _full, context_fn=functools.partial(create_selective_checkpoint_contexts, KEPT_OPERATORS)
)

_COMPUTE = {"full": _full, "selective": _selective}
"""By mode: runs a function, and runs it again when the backward pass needs what it did not keep."""


@dataclass(frozen=True)
class ActivationCheckpointing:
    """What layers keep of their forward pass for the backward pass. It changes memory and time, never a number.

    Attributes:
        mode: "none" all; "full" the layer's input; "selective" the input and the outputs of matrix products and
            attention.
        every_nth_layer: 1: all layers are checkpointed; 2: the first of each two; and so on.
    """

    mode: Literal["none", "full", "selective"] = "none"
    every_nth_layer: int = 1

    def __post_init__(self) -> None:
        if self.every_nth_layer < 1:
            raise ConfigError(
                f"`strategy.activation_checkpointing.every_nth_layer` is {self.every_nth_layer}, but it must be at "
                "least 1; raise it, or set `strategy.activation_checkpointing.mode` to none."
            )


KEEP_ALL = ActivationCheckpointing()


def apply_activation_checkpointing(layers: Iterable[nn.Module], settings: ActivationCheckpointing) -> None:
    """Makes layers checkpoint themselves, in place; before they are compiled or sharded.

    The first of each n layers is taken, so that the last one, whose backward pass comes first, is not computed twice
    while all the others still hold what they kept. With "selective" autocast may not cache what it casts (see
    `Precision.autocast`): a second pass would find the weights' bf16 copies made already, and torch would miss their
    making in the backward pass (it raises an error).

    Args:
        layers: In their order; `forward` takes positional arguments, the hidden states first.
        settings: Which of them keep what.
    """
    if settings.mode == "none":
        return
    for index, layer in enumerate(layers):
        if index % settings.every_nth_layer == 0:
            layer_class: Any = type(layer)
            layer.__class__ = _checkpointed(layer_class, settings.mode)


@functools.cache
def _checkpointed(layer_class: type[nn.Module], mode: str) -> type[nn.Module]:
    """One subclass for all equal layers, so that they stay equal to a compiler."""
    compute = _COMPUTE[mode]

    def forward(self: nn.Module, hidden_states: Tensor, *others: Any) -> Any:
        # Of an argument of `compute` the compiler of torch 2.11 guards all that is in it, so that each batch, with its
        # lengths on the host, would be compiled anew; of what a function has from around it only what it reads.
        return compute(lambda x: layer_class.forward(self, x, *others), hidden_states)

    return type(f"Checkpointed{layer_class.__name__}", (layer_class,), {"forward": forward})
