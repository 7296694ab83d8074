"""torch.compile per layer: equal layers share one piece of compiled code, whatever their number.

As with activation checkpointing, a layer remains the same object with the same parameter names. Only its class changes
to one with another `forward`, so checkpoints of a run do not depend on it. Data parallelism wraps layers afterwards.
Its hooks run around the compiled code, not in it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

if TYPE_CHECKING:
    from framework.distributed.parallel.precision import Precision

CompileBackend = Literal["auto", "none", "inductor", "aot_eager"]
"""Compiler backends. "inductor" generates kernels; "aot_eager" only traces, to find the cause of a fault; "auto" is one
of these (`resolve_compile`)."""

_RECOMPILE_LIMIT = 32
"""Variants of a layer. A run has up to three shapes for each of three kinds of layers (ModernBERT), and the trials of
`trainer.micro_batch_tokens=auto` up to five more. torch allows 8."""


def resolve_compile(
    backend: CompileBackend, device_type: str, precision: Precision, strategy: str, saves_memory: bool, pretrains: bool
) -> CompileBackend:
    """Resolves the backend of the config. "auto" compiles layers where this was tested and runs are long.

    These are runs of pre-training on CUDA in bf16 (or float8), without activation checkpointing and tensor parallelism.

    Args:
        backend: Backend of the config.
        device_type: "cpu" or "cuda".
        precision: Precision of the run.
        strategy: One of `framework.distributed.mesh.STRATEGIES`.
        saves_memory: True with activation checkpointing.
        pretrains: True if steps cross epoch ends, as in pre-training. The lengths of a short epoch's last step would
            need shapes of their own.
    """
    if backend != "auto":
        return backend
    is_tested = strategy in ("single", "ddp", "fsdp2", "hsdp") and not saves_memory
    has_code = device_type == "cuda" and precision.compute_dtype == torch.bfloat16
    return "inductor" if pretrains and is_tested and has_code else "none"


def apply_compile(layers: Iterable[nn.Module], backend: Any) -> None:
    """Makes layers run compiled when gradients are enabled, in place.

    Call it after activation checkpointing and before sharding. Without gradients, as in validation, a layer runs
    uncompiled: such batches keep their own shapes, and no second set of code is compiled. Torch raises an error for a
    layer that cannot be compiled as one graph (`fullgraph`) and for too many shapes (`recompile_limit`), so that slow
    code never runs unnoticed.

    Args:
        layers: Layers whose `forward` takes positional arguments of fixed shapes.
        backend: A resolved `CompileBackend`, or any other backend of torch.compile; "none" does not change the layers.
    """
    if backend == "none":
        return
    torch._dynamo.config.recompile_limit = _RECOMPILE_LIMIT
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
