"""Operations that a training step gives to CUDA, counted on fake tensors without a GPU.

The step is `StepRunner.run`. Its tensors are fake and on the CPU but report a CUDA device to the product's
code, which therefore takes every branch for CUDA. Triton kernels are replaced by counters, and autocast follows the
rules of the CPU. Copies from the host, compiled layers and CUDA graphs are not counted.
"""

from collections import Counter, defaultdict
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from framework.batch import StepBatch
from framework.data.planning.plan import StepPlan
from framework.distributed.processes.position import POSITION
from framework.modules.encoder_module import EncoderModule
from framework.planning.fake_cuda import CUDA, fake_cuda
from framework.planning.fake_world import fake_batch
from tests.support.training.workloads import SEED, DrawnSource, Workload, build_task, module_arguments

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
        step = StepBatch(0, 0, (fake_batch(batch, mode),))
        counts = _Counts()
        with fake_cuda(counts.add), counts:
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
