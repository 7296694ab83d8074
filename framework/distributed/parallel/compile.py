"""torch.compile, layer by layer: equal layers share one piece of compiled code, whatever their number.

As with activation checkpointing a layer stays itself, with the same parameter names: only its class gets another
`forward`, so that a checkpoint of a run does not tell. Data parallelism wraps layers afterwards; its hooks run around
the compiled code, not in it.
"""

import functools
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

CompileBackend = Literal["none", "inductor", "aot_eager"]
"""Who makes the code: "inductor" generates kernels; "aot_eager" only traces, to find what a fault belongs to."""


def apply_compile(layers: Iterable[nn.Module], backend: Any) -> None:
    """Lets layers run compiled where a gradient is wanted, in place; after checkpointing, before sharding.

    Without gradients, in validation, a layer runs as it is: its batches keep their own shapes, and no second set of
    code has to be made. A layer whose code cannot be made as a whole is an error (`fullgraph`); so is a shape too many
    (torch's `recompile_limit`), so that slow code never runs unseen.

    Args:
        layers: `forward` takes positional arguments of fixed shapes.
        backend: A `CompileBackend`, or what else torch.compile takes; "none" leaves the layers alone.
    """
    if backend == "none":
        return
    for layer in layers:
        layer_class: Any = type(layer)
        layer.__class__ = _compiled(layer_class, backend)


@functools.cache
def _compiled(layer_class: type[nn.Module], backend: Any) -> type[nn.Module]:
    """One subclass and one compiled function for all layers of a class."""
    plain: Any = layer_class.forward
    compiled = torch.compile(plain, backend=backend, fullgraph=True, dynamic=False)

    def forward(self: nn.Module, *args: Any) -> Any:
        return compiled(self, *args) if torch.is_grad_enabled() else plain(self, *args)

    return type(f"Compiled{layer_class.__name__}", (layer_class,), {"forward": forward})
