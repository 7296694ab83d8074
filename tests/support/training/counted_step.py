"""Operations that a training step gives to CUDA, counted on fake tensors without a GPU.

The step is `StepRunner.run`. Its tensors are fake and on the CPU but report a CUDA device to the product's
code, which therefore takes every branch for CUDA. Triton kernels are replaced by counters, and autocast follows the
rules of the CPU. Copies from the host, compiled layers and CUDA graphs are not counted.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from framework.batch import PackedBatch, StepBatch
from framework.data.planning.plan import StepPlan
from framework.distributed.processes.position import POSITION
from framework.modules.encoder_module import EncoderModule
from framework.nn import dropout
from tests.support.training.workloads import SEED, DrawnSource, Workload, build_task, module_arguments

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")

Phases = dict[str, Counter[str]]
"""Number of calls of each operation, by the activity that `framework.distributed.processes.position` names."""

WITHOUT_KERNEL = frozenset(
    """
    _record_function_enter_new _record_function_exit _reshape_alias _unsafe_view alias as_strided detach device diagonal
    empty empty_like empty_strided expand is_same_size lift_fresh narrow new_empty new_empty_strided permute reshape
    select set_ slice split split_with_sizes squeeze t transpose unbind unflatten unsqueeze view
    """.split()  # noqa: SIM905  a list of strings would take 32 lines
)
"""Operations that make a view, allocate memory or only run on the host."""


class _Counts(TorchDispatchMode):
    """Counts operations and launches of Triton kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.phases: Phases = defaultdict(Counter)

    def add(self, name: str) -> None:
        self.phases[POSITION.activity][name] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        if name not in WITHOUT_KERNEL:
            self.add(name)
        return func(*args, **(kwargs or {}))


class _AsCuda(TorchFunctionMode):
    """Lets tensors report that they are on CUDA, and creates tensors for CUDA on the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]  # each access makes another object
            return True
        if func is Tensor.pin_memory:
            return args[0]
        if func is Tensor.backward:
            with self:
                return torch.autograd.backward(*args, **(kwargs or {}))
        on_cpu = {name: _on_cpu(value) for name, value in (kwargs or {}).items()}
        return func(*[_on_cpu(value) for value in args], **on_cpu)


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "cuda":
        return CPU
    return CPU if isinstance(value, str) and value.startswith("cuda") else value


def _device(fake: FakeTensor) -> torch.device:
    """Returns CUDA to the product's code, and the CPU to torch."""
    caller = sys._getframe(1).f_globals.get("__name__", "")
    return CUDA if caller.startswith("framework.") else _REAL_DEVICE.__get__(fake)


_REAL_DEVICE: Any = FakeTensor.device


def _triton(counts: _Counts) -> dict[str, Any]:
    """Returns modules that stand for Triton; a launch of a kernel is counted by the kernel's name."""

    def jit(function: Any = None, **_: Any) -> Any:
        if function is None:
            return jit
        kernel, name = MagicMock(), f"triton {function.__module__}.{function.__name__}"
        kernel.__getitem__.return_value = lambda *_, **__: counts.add(name)
        return kernel

    language = MagicMock(name="triton.language")
    triton = MagicMock(name="triton", jit=jit, language=language)
    return {"triton": triton, "triton.language": language}


@contextmanager
def _cuda_branches(counts: _Counts) -> Iterator[None]:
    """Context in which the product's code takes the branches of CUDA with fake tensors on the CPU."""
    autocast = torch.autocast
    is_enabled, dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
    with ExitStack() as stack:
        stack.enter_context(patch.dict(sys.modules, _triton(counts)))
        for name in [name for name in sys.modules if name.startswith("framework.nn.") and name.endswith("_cuda")]:
            del sys.modules[name]
        stack.enter_context(patch.object(dropout, "_HAS_TRITON", True))
        stack.enter_context(patch.object(dropout, "detect_fake_mode", lambda: None))
        stack.enter_context(patch.object(torch, "autocast", lambda _, **settings: autocast("cpu", **settings)))
        stack.enter_context(patch.object(torch, "is_autocast_enabled", lambda _: is_enabled("cpu")))
        stack.enter_context(patch.object(torch, "get_autocast_dtype", lambda _: dtype("cpu")))
        stack.enter_context(patch.object(FakeTensor, "device", property(_device)))
        stack.enter_context(counts)
        stack.enter_context(_AsCuda())
        yield


def _fake(batch: PackedBatch, mode: FakeTensorMode) -> PackedBatch:
    names = ("input_ids", "position_ids", "token_type_ids", "cu_seqlens", "sequence_ids")
    tensors = {name: mode.from_tensor(getattr(batch, name)) for name in names}
    return replace(batch, **tensors, targets={name: mode.from_tensor(value) for name, value in batch.targets.items()})


def count_step(drawn: Workload) -> Phases:
    """Counts the operations of one training step on CUDA, by activity.

    Args:
        drawn: Workload; its sizes matter little, because most operations do not depend on them.
    """
    task = build_task(drawn)
    plan = StepPlan(DrawnSource(drawn, drawn.sequences), SEED, drawn.sequences, drawn.micro_batch_tokens)
    (batch,) = plan.batches(0, 0)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        module = EncoderModule(**module_arguments(drawn, task, "cpu"))
        module.runner.device = CUDA
        step = StepBatch(0, 0, (_fake(batch, mode),))
        counts = _Counts()
        with _cuda_branches(counts):
            optimizer = module.configure_optimizers()
            counts.phases.clear()
            module.runner.run(step, optimizer, optimizer.step)
    return counts.phases


def total(phases: Phases) -> int:
    """Returns the number of operations of a step."""
    return sum(phase.total() for phase in phases.values())


def describe(phases: Phases) -> str:
    """Returns one line per phase: its operations, the most frequent ones first."""
    lines = []
    for activity, phase in phases.items():
        operations = ", ".join(f"{name} {count}" for name, count in phase.most_common(12))
        lines.append(f"{activity}: {phase.total()} operations: {operations}")
    return "\n".join(lines)
