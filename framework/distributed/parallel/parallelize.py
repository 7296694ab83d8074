"""The one function that applies parallelism to a model, in one stated order, and the one that gives it its weights.

Model code knows one device. A model is built on the meta device, parallelized, and only then gets memory and values, so
that no rank ever holds more than its shard and one full parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed._composable.replicate_with_fsdp import replicate
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from framework.distributed.mesh import TENSOR, data_parallel_mesh
from framework.distributed.parallel.activation_checkpoint import (
    KEEP_ALL,
    ActivationCheckpointing,
    apply_activation_checkpointing,
)
from framework.distributed.parallel.compile import CompileBackend, apply_compile
from framework.distributed.parallel.float8 import apply_float8
from framework.distributed.parallel.precision import Precision
from framework.distributed.parallel.sharding import DEFAULT_SHARDING, Sharding
from framework.distributed.parallel.tensor_parallel import apply_tensor_parallel
from framework.nn.decoder_layer import DecoderLayer
from framework.nn.layer import EncoderLayer
from framework.nn.norm import LayerNorm

if TYPE_CHECKING:
    from framework.tasks.task import TaskModel


def parallelize(
    model: TaskModel,
    mesh: DeviceMesh | None,
    strategy: str,
    precision: Precision,
    activation_checkpointing: ActivationCheckpointing = KEEP_ALL,
    sharding: Sharding = DEFAULT_SHARDING,
    compile_backend: CompileBackend = "none",
) -> TaskModel:
    """Applies the strategy in place. Collective where there is a mesh: all ranks must call.

    The order is: float8, tensor parallel, activation checkpointing, compile, data parallel last. `ddp`, `fsdp2` and
    `hsdp` are the same runtime with another placement of the parameters.

    Args:
        model: On the meta device.
        mesh: Of `build_mesh`; None for a single process.
        strategy: One of `framework.distributed.mesh.STRATEGIES`.
        precision: Decides in which dtype parameters are gathered, and whether layers compute in float8.
        activation_checkpointing: What layers keep for the backward pass.
        sharding: When shards are gathered and where they lie; `ddp` takes no notice of it.
        compile_backend: Who compiles the layers.

    Returns:
        The same model.
    """
    layers = transformer_layers(model)
    if precision.name == "float8":
        apply_float8(layers)
    if mesh is not None and TENSOR in (mesh.mesh_dim_names or ()):
        apply_tensor_parallel(model, mesh[TENSOR])
    apply_activation_checkpointing(layers, activation_checkpointing)
    apply_compile(layers, compile_backend)
    data_parallel = data_parallel_mesh(mesh)
    if data_parallel is not None:
        _apply_data_parallel(model, data_parallel, strategy, precision, sharding, compile_backend != "none")
    return model


def transformer_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of the encoder and of the head's decoder, where there is one, in the order in which they compute."""
    return [module for module in model.modules() if isinstance(module, EncoderLayer | DecoderLayer)]


def _apply_data_parallel(
    model: TaskModel,
    mesh: DeviceMesh,
    strategy: str,
    precision: Precision,
    sharding: Sharding,
    has_compiled_layers: bool,
) -> None:
    """Groups: all norms where they differ in dtype, each layer, and the root with embeddings, head and what is tied.

    A compiled layer is one piece, with no hook of a norm's group in it: it is gathered as a whole in fp32, and rounded
    to bf16 by autocast inside. The numbers are the same; sharded layers are gathered in twice as many bytes.
    """
    # Pinned memory is copied while the device computes; the CPU has none.
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda") if sharding.cpu_offload else OffloadPolicy()

    def wrap(modules: nn.Module | list[nn.Module], policy: MixedPrecisionPolicy, reshard: bool | int) -> None:
        if strategy == "ddp":
            replicate(modules, mesh=mesh, mp_policy=policy)
        else:
            fully_shard(modules, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard, offload_policy=offload)

    layers = transformer_layers(model)
    norms: list[nn.Module] = []
    if precision.norm_policy != precision.weight_policy:
        compiled = {module for layer in layers for module in layer.modules()} if has_compiled_layers else set()
        norms = [module for module in model.modules() if isinstance(module, LayerNorm) and module not in compiled]
        # Norms are small: they stay gathered from forward to backward, for one collective a pass.
        wrap(norms, precision.norm_policy, False)
    for layer in layers:
        policy = precision.norm_policy if has_compiled_layers else precision.weight_policy
        wrap(layer, policy, sharding.reshard_after_forward)
    wrap(model, precision.weight_policy, False)
    if strategy != "ddp":
        _set_prefetch(model, norms, sharding)


def _set_prefetch(model: nn.Module, norms: list[nn.Module], sharding: Sharding) -> None:
    """Says which groups are gathered ahead of which, where the config says so; else torch decides."""
    root: Any = model
    layers: list[Any] = transformer_layers(model)
    if (count := sharding.forward_prefetch) is not None:
        # The norms first: the one of the embeddings is needed before the first layer.
        root.set_modules_to_forward_prefetch([*norms[:1], *layers[:count]])
        for index, layer in enumerate(layers):
            layer.set_modules_to_forward_prefetch(layers[index + 1 : index + 1 + count])
    if (count := sharding.backward_prefetch) is not None:
        for index, module in enumerate([*layers, root]):
            module.set_modules_to_backward_prefetch(layers[max(0, index - count) : index][::-1])


def set_gradient_sync(model: nn.Module, is_last: bool, sharding: Sharding = DEFAULT_SHARDING) -> None:
    """Says before a backward pass whether it is the step's last, and so whether gradients are reduced in it.

    Until the last one, what stays gathered from forward to backward (root, norms, and layers that are not resharded)
    stays so until the next forward too.

    Args:
        model: Parallelized or not.
        is_last: This is the last micro-batch of the step.
        sharding: As given to `parallelize`; `every` reduces over shards each time, and over copies only the last time.
    """
    if not isinstance(model, FSDPModule):
        return
    model.set_requires_gradient_sync(is_last or sharding.gradient_sync == "every")
    model.set_requires_all_reduce(is_last)
    for module in model.modules():
        stays = module is model or isinstance(module, LayerNorm) or sharding.reshard_after_forward is False
        if isinstance(module, FSDPModule) and stays:
            module.set_reshard_after_backward(is_last, recurse=False)


def drop_gathered(model: nn.Module) -> None:
    """Lets go of what a pass without backward left gathered, so that the next pass sees the weights as they are then.

    A change of the weights needs it, unless a backward came before.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def materialize(
    model: nn.Module,
    initial_values: Iterable[tuple[str, Callable[[], Tensor]]],
    device: torch.device | str,
    parameter_device: torch.device | str | None = None,
) -> None:
    """Gives a model on the meta device its memory, initial values and buffers; each rank keeps its own shard.

    No communication: every rank makes each full parameter in turn and keeps its part, so that weights are the same at
    any world size. Tied parameters stay tied.

    Args:
        model: Parallelized or not.
        initial_values: Name as in `model.named_parameters()` and a maker of the full value.
        device: Where the model computes.
        parameter_device: Where the parameters lie meanwhile: the CPU where they are offloaded; None: on the device.

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
    model.to_empty(device=torch.device(device if parameter_device is None else parameter_device))
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
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
