"""Functions that parallelize a model on the meta device in one fixed order.

Model code is written for one device. `framework.distributed.parallel.materialization` gives a parallelized model its
memory and values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed._composable.replicate_with_fsdp import replicate
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

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
from framework.tasks.rewriting import RewritingHead

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
    """Returns the layers of the encoder and of the head, if it has any, in the order of computation."""
    head = getattr(model, "head", None)
    parts = [head, model] if isinstance(head, RewritingHead) else [model]
    modules = dict.fromkeys(module for part in parts for module in part.modules())
    return [module for module in modules if isinstance(module, EncoderLayer | DecoderLayer)]


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
    if norm_policy() != weight_policy(precision):
        compiled = {module for layer in layers for module in layer.modules()} if has_compiled_layers else set()
        norms = [module for module in model.modules() if isinstance(module, LayerNorm) and module not in compiled]
        # Norms are small. They stay gathered from forward to backward, so each pass needs one collective for them.
        wrap(norms, norm_policy(), False)
    for layer in layers:
        policy = norm_policy() if has_compiled_layers else weight_policy(precision)
        wrap(layer, policy, sharding.reshard_after_forward)
    wrap(model, weight_policy(precision), False)
    if strategy != "ddp":
        _set_prefetch(model, norms, sharding)


def weight_policy(precision: Precision) -> MixedPrecisionPolicy:
    """Returns the policy of groups with matrices: gathered in the compute dtype, gradients reduced in fp32.

    Inputs are not cast at module boundaries. Autocast selects the dtype per operation, as in a single process.
    """
    if precision.name == "fp32":
        return MixedPrecisionPolicy(cast_forward_inputs=False)
    return MixedPrecisionPolicy(
        param_dtype=precision.compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )


def norm_policy() -> MixedPrecisionPolicy:
    """Returns the policy of the group with the norms: fp32 throughout."""
    return MixedPrecisionPolicy(cast_forward_inputs=False)


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


def hold_gradients(model: nn.Module) -> None:
    """Makes the next backward pass reduce no gradients, whatever the sharding; `set_gradient_sync` ends this."""
    if not isinstance(model, FSDPModule):
        return
    set_gradient_sync(model, is_last=False)
    model.set_requires_gradient_sync(False)


def drop_gathered(model: nn.Module) -> None:
    """Frees weights that a pass without backward left gathered, so that the next pass gathers the current weights.

    Call it when the weights change, unless a backward pass has run since the last forward pass.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
