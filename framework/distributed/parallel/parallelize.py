"""Functions that parallelize a model in one fixed order and then allocate and initialize its weights.

Model code is written for one device. A model is built on the meta device and parallelized. Only then does it get memory
and values, so that no rank ever holds more than its shard and one full parameter.
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
from framework.nn.embeddings import TokenEmbeddings
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
    """Applies the strategy in place. Collective if there is a mesh: all ranks must call.

    The order is float8, tensor parallel, activation checkpointing, compile, data parallel. `ddp`, `fsdp2` and `hsdp`
    use the same runtime with different placements of the parameters. A single data parallel rank has nothing to
    communicate, so its model stays a plain module unless its weights are offloaded.

    Args:
        model: Model on the meta device.
        mesh: Result of `build_mesh`; None for a single process.
        strategy: One of `framework.distributed.mesh.STRATEGIES`.
        precision: Dtype in which parameters are gathered; "float8" also makes layers compute in float8.
        activation_checkpointing: Settings of activation checkpointing.
        sharding: Times at which shards are gathered, and the memory that holds them. `ddp` ignores it.
        compile_backend: Backend that compiles the layers.

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
    offloads = sharding.cpu_offload and strategy != "ddp"
    if data_parallel is not None and (data_parallel.size() > 1 or offloads):
        _apply_data_parallel(model, data_parallel, strategy, precision, sharding, compile_backend != "none")
    return model


def transformer_layers(model: nn.Module) -> list[nn.Module]:
    """Returns the layers of the encoder and of the head's decoder, if any, in the order of computation."""
    return [module for module in model.modules() if isinstance(module, EncoderLayer | DecoderLayer)]


def _apply_data_parallel(
    model: TaskModel,
    mesh: DeviceMesh,
    strategy: str,
    precision: Precision,
    sharding: Sharding,
    has_compiled_layers: bool,
) -> None:
    """Wraps groups of modules: all norms if their dtype differs, each layer, and the root module.

    The root group contains the embeddings, the head and tied weights. A compiled layer is one graph, which cannot
    contain a hook of the norms' group. It is gathered as a whole in fp32, and autocast rounds to bf16 inside. The
    results are the same, but gathering sharded layers takes twice as many bytes.
    """
    # Pinned memory can be copied while the device computes. The CPU has no pinned memory.
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
        # Norms are small. They stay gathered from forward to backward, so each pass needs one collective for them.
        wrap(norms, precision.norm_policy, False)
    for layer in layers:
        policy = precision.norm_policy if has_compiled_layers else precision.weight_policy
        wrap(layer, policy, sharding.reshard_after_forward)
    wrap(model, precision.weight_policy, False)
    if strategy != "ddp":
        _set_prefetch(model, norms, sharding)


def _set_prefetch(model: nn.Module, norms: list[nn.Module], sharding: Sharding) -> None:
    """Sets the groups that are gathered in advance, if the config sets their number; otherwise torch decides."""
    root: Any = model
    layers: list[Any] = transformer_layers(model)
    if (count := sharding.forward_prefetch) is not None:
        # The norms come first, because the norm of the embeddings is needed before the first layer.
        root.set_modules_to_forward_prefetch([*norms[:1], *layers[:count]])
        for index, layer in enumerate(layers):
            layer.set_modules_to_forward_prefetch(layers[index + 1 : index + 1 + count])
    if (count := sharding.backward_prefetch) is not None:
        for index, module in enumerate([*layers, root]):
            module.set_modules_to_backward_prefetch(layers[max(0, index - count) : index][::-1])


def set_gradient_sync(model: nn.Module, is_last: bool, sharding: Sharding = DEFAULT_SHARDING) -> None:
    """Sets, before a backward pass, whether this pass reduces gradients.

    Weights that stay gathered from forward to backward (root, norms, and layers that are not resharded) also stay
    gathered until the next forward, except after the last backward pass of a step.

    Args:
        model: Model, parallelized or not.
        is_last: True for the last micro-batch of the step.
        sharding: Settings that `parallelize` was given. With `every`, each pass reduces over shards, but only the last
            pass reduces over copies.
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
    """Frees weights that a pass without backward left gathered, so that the next pass gathers the current weights.

    Call it when the weights change, unless a backward pass has run since the last forward pass.
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
    """Allocates a model on the meta device and sets its initial values and buffers; each rank keeps its own shard.

    There is no communication. Every rank creates one full parameter after the other and keeps its part, so that weights
    are the same at any world size. Tied parameters stay tied.

    Args:
        model: Model, parallelized or not.
        initial_values: Pairs of a name in `model.named_parameters()` and a function that returns the full value.
        device: Device on which the model computes.
        parameter_device: Device that stores the parameters, for example the CPU if they are offloaded. None: `device`.

    Raises:
        ValueError: The names of the values differ from those of the parameters, or a module with buffers has no
            `reset_buffers`.
    """
    makers = dict(initial_values)
    aliases = _tied_names(model)
    names = {name for name, _ in model.named_parameters()}
    if names != set(makers):
        raise ValueError(
            f"The names of initial values and parameters differ in {sorted(names ^ set(makers))}. Each parameter needs "
            "one initial value. Pass exactly the names of model.named_parameters()."
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
                f"The module {name} has buffers but no reset_buffers(). Buffers lose their values on the meta device. "
                "Define reset_buffers() to fill them."
            )
        module.reset_buffers()


def use_sparse_gradients(model: nn.Module) -> None:
    """Makes the gradients of embeddings sparse on a CPU, unless they are reduced over ranks.

    `CombinedOptimizer` and `clip_gradients` accept such gradients. All results are those of dense gradients, bit for
    bit. A decoder tied to the word embeddings makes their gradient dense.
    """
    for module in model.modules():
        if isinstance(module, TokenEmbeddings):
            for table in module.children():
                if isinstance(table, nn.Embedding):
                    table.sparse = table.weight.device.type == "cpu" and not isinstance(table.weight, DTensor)


def assign_full(parameter: Tensor, value: Tensor) -> None:
    """Copies a full tensor into a parameter, without communication. A sharded parameter takes its own part."""
    if isinstance(parameter, DTensor):
        value = value.to(parameter.to_local().device)
        part = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.to_local().copy_(part.to_local())
    else:
        parameter.copy_(value)


def _tied_names(model: nn.Module) -> dict[str, str]:
    """Maps each additional name of a tied parameter to its first name."""
    first: dict[int, str] = {}
    aliases = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            aliases[name] = first[id(parameter)]
        else:
            first[id(parameter)] = name
    return aliases
