"""Records what a step does: its collectives, its memory, its floating-point operations, and the bytes it moves."""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeGuard, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.distributed_c10d import _resolve_process_group
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from framework.distributed.processes.position import POSITION, begin_activity
from framework.planning.memory import LiveMemory, ResizeHook

_COLLECTIVES = ("c10d", "_c10d_functional")
_NOT_COLLECTIVE = ("wait_tensor", "barrier", "monitored_barrier_")
WORLD = "all"
"""Axis of a collective of all ranks of a mesh with several axes."""


@dataclass(frozen=True, slots=True)
class Collective:
    """Call of a collective.

    Attributes:
        name: Operator, for example "allgather_base".
        axis: Mesh axis of the ranks, or WORLD.
        num_ranks: Number of ranks.
        num_bytes: Bytes of its largest argument: the gathered tensor, or the tensor that is reduced or sent.
        nodes: Number of nodes on which the ranks are.
    """

    name: str
    axis: str
    num_ranks: int
    num_bytes: int
    nodes: int


@dataclass
class Work:
    """Work of a step on one rank.

    Attributes:
        collectives: Collectives in their order.
        flops: Floating-point operations of matrix products by dtype. A multiplication and an addition count as two.
        num_products: Number of matrix products by dtype. A batch of them is one.
        moved_bytes: Bytes that operators other than matrix products and views read and write.
        num_operators: Number of operators.
    """

    collectives: list[Collective] = field(default_factory=list)
    flops: Counter[str] = field(default_factory=Counter)
    num_products: Counter[str] = field(default_factory=Counter)
    moved_bytes: int = 0
    num_operators: int = 0

    def plus(self, other: "Work", times: int = 1) -> "Work":
        """Returns this work and another, which is done several times."""
        return Work(
            self.collectives + other.collectives * times,
            self.flops + _times(other.flops, times),
            self.num_products + _times(other.num_products, times),
            self.moved_bytes + times * other.moved_bytes,
            self.num_operators + times * other.num_operators,
        )


def _times(counts: Counter[str], times: int) -> Counter[str]:
    return Counter({key: times * count for key, count in counts.items()})


class StepRecorder(TorchDispatchMode):
    """Dispatch mode that records every operator within it, on real or on fake tensors.

    Attributes:
        work: Work of the step by the activity that `framework.distributed.processes.position` names.

    Args:
        memory: Memory in which the tensors are counted.
        mesh: Mesh of the strategy; None: a single process.
        gpus_per_node: Number of consecutive ranks on one node.
    """

    def __init__(self, memory: LiveMemory, mesh: DeviceMesh | None, gpus_per_node: int) -> None:
        super().__init__()
        self.memory = memory
        self.work: dict[str, Work] = defaultdict(Work)
        self._axes = _axes(mesh)
        self._gpus_per_node = gpus_per_node
        self._modules: list[str] = []

    def begin(self, is_second: bool = False) -> None:
        """Starts a new record, of a step or of a second run of the same step."""
        self.work = defaultdict(Work)
        begin_activity("starts a recorded step")  # the last activity of the step before is no part of this one
        self.memory.begin(is_second)

    @contextlib.contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Context in which the origins of tensors are named after the modules of a model."""
        names = {id(module): name or type(module).__name__ for name, module in model.named_modules()}

        def enter(module: nn.Module, _: Any) -> None:
            self._modules.append(names.get(id(module), self._modules[-1] if self._modules else ""))

        def leave(*_: Any) -> None:
            self._modules.pop()

        hooks = (register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True))
        try:
            with ResizeHook(self.memory.resized), self:
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(map(is_traceable_wrapper_subclass_type, types)):
            return NotImplemented  # the operators of a DTensor or a tensor of torchao on its own tensors come here
        kwargs = kwargs or {}
        if func.namespace in _COLLECTIVES:
            self._record_collective(func, args, kwargs)
        elif func.namespace == "fsdp":
            self._mark_shards(func, args, kwargs)
        out = func(*args, **kwargs)
        origin = self._modules[-1] if self._modules else POSITION.activity
        for leaf in tree_leaves(out):
            if _has_storage(leaf) and leaf.device.type != "meta":
                self.memory.add(leaf, origin)
        self._count(func, args, kwargs, out)
        return out

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        if func.namespace == "prim":  # reads an attribute, such as the device of a fake tensor
            return
        work = self.work[POSITION.activity]
        work.num_operators += 1
        packet = func._overloadpacket
        if packet in flop_registry:
            first = next(leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
            dtype = str(first.dtype).removeprefix("torch.")
            work.flops[dtype] += flop_registry[packet](*args, **kwargs, out_val=out)
            work.num_products[dtype] += 1
        elif func.namespace not in _COLLECTIVES and not func.is_view:
            leaves = tree_leaves((args, out))  # a tensor among the keywords is written, and is `out` too
            work.moved_bytes += sum(leaf.nbytes for leaf in leaves if _has_storage(leaf))

    def _mark_shards(self, func: Any, args: Any, kwargs: Any) -> None:
        """Marks buffers of FSDP's own operators."""
        is_gradient = func._schema.name.endswith("chunk_cat")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.memory.mark(tensors, "gradients" if is_gradient else "gathered weights")

    def _record_collective(self, func: Any, args: Any, kwargs: Any) -> None:
        name = func._schema.name.removeprefix(f"{func.namespace}::").strip("_")
        if name in _NOT_COLLECTIVE:
            return
        ranks = _ranks(args, kwargs)
        tensors = [[leaf for leaf in tree_leaves(each) if isinstance(leaf, Tensor)] for each in args]
        num_bytes = max(sum(leaf.nbytes for leaf in leaves) for leaves in tensors)
        axis = self._axes.get(ranks, WORLD)
        nodes = len({rank // self._gpus_per_node for rank in ranks})
        self.work[POSITION.activity].collectives.append(Collective(name, axis, len(ranks), num_bytes, nodes))
        flat = [leaf for leaves in tensors for leaf in leaves]
        if name.startswith(("allgather_base", "_allgather_base")):
            self.memory.mark(flat, "gathered weights")
        elif name.startswith(("reduce_scatter_base", "_reduce_scatter_base")):
            self.memory.mark(flat, "gradients")


def _has_storage(leaf: object) -> TypeGuard[Tensor]:
    """Returns True for a dense tensor. The indices and values of a sparse one are tensors of their own."""
    return isinstance(leaf, Tensor) and leaf.layout is torch.strided


def _ranks(args: Any, kwargs: Any) -> tuple[int, ...]:
    """Returns the global ranks of the group of a collective."""
    for leaf in tree_leaves((args, kwargs)):
        if isinstance(leaf, torch.ScriptObject) and "ProcessGroup" in str(leaf._type()):
            group = dist.ProcessGroup.unbox(leaf)
            return tuple(dist.get_process_group_ranks(group))
        if isinstance(leaf, str) and leaf not in ("sum", "avg", "max", "min"):
            return tuple(dist.get_process_group_ranks(_resolve_process_group(cast(Any, leaf))))
    return tuple(range(dist.get_world_size()))


def _axes(mesh: DeviceMesh | None) -> dict[tuple[int, ...], str]:
    """Returns the name of the mesh axis of each group of ranks to which this rank belongs."""
    if mesh is None or mesh.mesh_dim_names is None:
        return {}
    return {
        tuple(dist.get_process_group_ranks(mesh.get_group(axis))): name for axis, name in enumerate(mesh.mesh_dim_names)
    }
