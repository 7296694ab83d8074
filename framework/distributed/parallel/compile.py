"""torch.compile per layer: equal layers share one piece of compiled code, whatever their number.

As with activation checkpointing, a layer remains the same object with the same parameter names. Only its class changes
to one with another `forward`, so checkpoints of a run do not depend on it. Data parallelism wraps layers afterwards.
Its hooks run around the compiled code, not in it.
"""

import functools
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

CompileBackend = Literal["none", "inductor", "aot_eager"]
"""Compiler backends. "inductor" generates kernels; "aot_eager" only traces, to find the cause of a fault."""


def apply_compile(layers: Iterable[nn.Module], backend: Any) -> None:
    """Makes layers run compiled when gradients are enabled, in place.

    Call it after activation checkpointing and before sharding. Without gradients, as in validation, a layer runs
    uncompiled: such batches keep their own shapes, and no second set of code is compiled. Torch raises an error for a
    layer that cannot be compiled as one graph (`fullgraph`) and for too many shapes (`recompile_limit`), so that slow
    code never runs unnoticed.

    Args:
        layers: Layers whose `forward` takes positional arguments of fixed shapes.
        backend: A `CompileBackend`, or any other backend of torch.compile; "none" does not change the layers.
    """
    if backend == "none":
        return
    for layer in layers:
        layer_class: Any = type(layer)
        layer.__class__ = _compiled(layer_class, backend)


@functools.cache
def _compiled(layer_class: type[nn.Module], backend: Any) -> type[nn.Module]:
    """Returns a compiled subclass. All layers of a class share it and its compiled function."""
    uncompiled: Any = layer_class.forward
    compiled = torch.compile(uncompiled, backend=backend, fullgraph=True, dynamic=False)

    def forward(self: nn.Module, *args: Any) -> Any:
        return compiled(self, *args) if torch.is_grad_enabled() else uncompiled(self, *args)

    return type(f"Compiled{layer_class.__name__}", (layer_class,), {"forward": forward})
