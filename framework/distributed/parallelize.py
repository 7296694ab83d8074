"""The one function that applies parallelism to a model, in one stated order, and the one that gives it its weights.

Model code knows one device. A model is built on the meta device, parallelized, and only then gets memory and values, so
that no rank ever holds more than its shard and one full parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.distributed._composable.replicate_with_fsdp import replicate
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from framework.distributed.activation_checkpoint import (
    KEEP_ALL,
    ActivationCheckpointing,
    apply_activation_checkpointing,
)
from framework.distributed.precision import Precision
from framework.nn.norm import LayerNorm

if TYPE_CHECKING:
    from framework.tasks.task import TaskModel


def parallelize(
    model: TaskModel,
    mesh: DeviceMesh | None,
    strategy: str,
    precision: Precision,
    activation_checkpointing: ActivationCheckpointing = KEEP_ALL,
) -> TaskModel:
    """Applies the strategy in place. Collective where there is a mesh: all ranks must call.

    The order is: tensor parallel, activation checkpointing, compile, data parallel last (of which this version has the
    second and the last). `ddp` and `fsdp2` are the same runtime with another placement of the parameters.

    Args:
        model: On the meta device.
        mesh: Of `build_mesh`; None for a single process.
        strategy: "single", "ddp" or "fsdp2".
        precision: Decides in which dtype parameters are gathered.
        activation_checkpointing: What the encoder's layers keep for the backward pass.

    Returns:
        The same model.
    """
    apply_activation_checkpointing(model.encoder.layers, activation_checkpointing)
    if mesh is not None:
        _apply_data_parallel(model, mesh, strategy, precision)
    return model


def _apply_data_parallel(model: TaskModel, mesh: DeviceMesh, strategy: str, precision: Precision) -> None:
    """Groups: all norms where they differ in dtype, each layer, and the root with embeddings, head and what is tied."""

    def wrap(modules: nn.Module | list[nn.Module], policy: MixedPrecisionPolicy, reshard: bool) -> None:
        if strategy == "ddp":
            replicate(modules, mesh=mesh, mp_policy=policy)
        else:
            fully_shard(modules, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)

    if precision.norm_policy != precision.weight_policy:
        norms: list[nn.Module] = [module for module in model.modules() if isinstance(module, LayerNorm)]
        # Norms are small: they stay gathered from forward to backward, for one collective a pass.
        wrap(norms, precision.norm_policy, False)
    for layer in model.encoder.layers:
        wrap(layer, precision.weight_policy, True)
    wrap(model, precision.weight_policy, False)


def set_gradient_sync(model: nn.Module, enabled: bool) -> None:
    """Switches the reduction of gradients on or off for the next backward (off for all but the last micro-batch).

    While it is off, what stays gathered from forward to backward (root and norms) stays so until the next forward too.
    """
    if not isinstance(model, FSDPModule):
        return
    model.set_requires_gradient_sync(enabled)
    for module in model.modules():
        if isinstance(module, FSDPModule) and (module is model or isinstance(module, LayerNorm)):
            module.set_reshard_after_backward(enabled, recurse=False)


def materialize(
    model: nn.Module, initial_values: Iterable[tuple[str, Callable[[], Tensor]]], device: torch.device | str
) -> None:
    """Gives a model on the meta device its memory, initial values and buffers; each rank keeps its own shard.

    No communication: every rank makes each full parameter in turn and keeps its part, so that weights are the same at
    any world size. Tied parameters stay tied.

    Args:
        model: Parallelized or not.
        initial_values: Name as in `model.named_parameters()` and a maker of the full value.
        device: Where the parameters go.

    Raises:
        ValueError: The values do not cover the parameters, or a module with buffers has no `reset_buffers`.
    """
    makers = dict(initial_values)
    aliases = _tied_names(model)
    names = {name for name, _ in model.named_parameters()}
    if names != set(makers):
        raise ValueError(
            f"Initial values must be those of the model's parameters, but differ in {sorted(names ^ set(makers))}."
        )
    model.to_empty(device=torch.device(device))
    for alias, name in aliases.items():
        owner, _, attribute = alias.rpartition(".")
        setattr(model.get_submodule(owner), attribute, model.get_parameter(name))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, make in makers.items():
            assign_full(parameters[name], make())
    for name, module in model.named_modules():
        if next(module.buffers(recurse=False), None) is None:
            continue
        if not hasattr(module, "reset_buffers"):
            raise ValueError(
                f"The module {name} has buffers; it needs a reset_buffers() that fills them after the meta device."
            )
        module.reset_buffers()


def assign_full(parameter: Tensor, value: Tensor) -> None:
    """Copies a full tensor into a parameter; a sharded one takes its own part. No communication."""
    if isinstance(parameter, DTensor):
        value = value.to(parameter.to_local().device)
        part = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.to_local().copy_(part.to_local())
    else:
        parameter.copy_(value)


def _tied_names(model: nn.Module) -> dict[str, str]:
    """Maps each further name of a parameter to its first one."""
    first: dict[int, str] = {}
    aliases = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            aliases[name] = first[id(parameter)]
        else:
            first[id(parameter)] = name
    return aliases
