"""Training steps as CUDA graphs: the host starts one graph for each micro-batch instead of a thousand kernels.

A graph repeats kernels with the same arguments. All data of a captured pass therefore lies at fixed addresses: the
micro-batch, the counts, the dropout base, the gradients and the loss sums. Weights and optimizer state keep their
addresses for the whole run. Loading a checkpoint (at a start, or when `FiniteGuard` rolls back), swapping in averaged
weights for a validation, and updates all write in place. Validation runs between steps and not in a graph. Shapes that
are new or rare run as ordinary passes over the same memory.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from framework.batch import PackedBatch, StepBatch
from framework.distributed.processes.position import begin_activity
from framework.distributed.reduce import sum_over_data_ranks
from framework.modules.passes.model_passes import ModelPasses
from framework.modules.passes.static_batch import FlatGradients, Form, StaticBatch, form_of
from framework.modules.passes.sum_count import SumCountSteps
from framework.nn.dropout import dropout_base
from framework.tasks.task import Task

logger = logging.getLogger(__name__)

WARM_UP_RUNS = 2
"""Runs of a function before it is captured. They compile layers and kernels and create the workspaces of libraries."""
_TOLERANCE = 1e-2
"""Largest difference of a graph from an ordinary run, relative to the norm. Kernels of bf16 may sum in any order."""
_MOST_SHAPES = 8
"""Shapes of micro-batches that are captured. Steps of fixed shapes have fewer. Others run without a graph."""


class Graphs(Protocol):
    """Records functions without arguments and results. `CudaGraphs` is the implementation for CUDA.

    Attributes:
        warm_up_runs: Number of runs of a function before it is captured.
    """

    warm_up_runs: float

    def warm_up(self, function: Callable[[], None]) -> None:
        """Runs a function as it will be captured."""

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Records a function without running it; returns a function that repeats what was recorded.

        Raises:
            RuntimeError: The function does something that cannot be recorded, such as a wait for the device.
        """


class CudaGraphs:
    """CUDA graphs that share one pool of memory.

    No tensor outlives the graph that allocates it, so graphs may run in any order.

    Args:
        device: CUDA device of all tensors.
    """

    warm_up_runs: float = WARM_UP_RUNS

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[[], None]) -> None:
        """Runs a function on the stream of the capture, whose workspaces then exist."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            function()
        current.wait_stream(self._stream)

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Captures a function. Other threads, such as those that write a checkpoint, may go on using the device."""
        graph = torch.cuda.CUDAGraph()
        # After a failed capture torch (2.11 to 2.13) does not restore the stream, so an outer context does.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
        ):
            function()
        return graph.replay


class CapturedFunction:
    """Function that runs as it is at first, and as a graph once it is captured in its third call.

    If `accumulated` is given, the graph is first compared with an ordinary run in the fourth call, whose data is not
    that of the capture. A graph that differs is dropped. The host waits for the device once for this comparison.

    Args:
        name: Name for the log.
        function: Function whose data lies at fixed addresses. Its result, if any, has the same shape in each call.
        graphs: Recorder.
        accumulated: Tensor to which the function adds, besides its result; None: the graph is used unchecked.
    """

    def __init__(
        self, name: str, function: Callable[[], Tensor | None], graphs: Graphs, accumulated: Tensor | None = None
    ) -> None:
        self.name = name
        self._function = function
        self._graphs = graphs
        self._accumulated = accumulated
        self._result: Tensor | None = None
        self._num_runs = 0
        self._replay: Callable[[], None] | None = None
        self._is_checked = accumulated is None
        self._has_failed = False

    def __call__(self) -> Tensor:
        """Runs the function once; returns a copy of its result, or an empty tensor if it has none."""
        is_due = self._num_runs == self._graphs.warm_up_runs and not self._has_failed
        if is_due:
            self._capture()
        if self._replay is not None and self._is_checked:
            self._replay()
        elif self._replay is not None and not is_due:
            self._check(self._replay)
        else:
            self._num_runs += 1
            self._graphs.warm_up(self._run)
        return torch.empty(0) if self._result is None else self._result.clone()

    def _run(self) -> None:
        """Runs the function and stores its result at a fixed address."""
        result = self._function()
        if result is not None and self._result is None:
            self._result = result.clone()
        elif result is not None and self._result is not None:
            self._result.copy_(result)

    def _capture(self) -> None:
        try:
            self._replay = self._graphs.capture(self._run)
        except RuntimeError as error:  # torch's errors of capture, and of memory, are of this class
            self._has_failed = True
            # The end of a failed capture raises an error too.
            first = error.__context__ if isinstance(error.__context__, RuntimeError) else error
            reason = str(first).partition("\n")[0]
            logger.warning("%s is not captured as a CUDA graph and runs without one: %s", self.name, reason)
        else:
            logger.info("%s is captured as a CUDA graph", self.name)

    def _check(self, replay: Callable[[], None]) -> None:
        """Runs the function and its graph on the same data, and keeps the results of the function."""
        assert self._accumulated is not None
        before = self._accumulated.clone()
        self._graphs.warm_up(self._run)
        assert self._result is not None
        expected, total = self._result.clone(), self._accumulated.clone()
        self._accumulated.copy_(before)
        replay()
        pairs = ((self._result, expected), (self._accumulated - before, total - before))
        difference = max(_relative_difference(actual, ordinary) for actual, ordinary in pairs)
        self._result.copy_(expected)
        self._accumulated.copy_(total)
        if math.isnan(difference):
            return  # a step that is not finite says nothing about the graph
        self._is_checked = difference <= _TOLERANCE
        if not self._is_checked:
            self._replay, self._has_failed = None, True
            logger.warning(
                "%s runs without its CUDA graph, whose results differ by %.2g of their norm. Please report this with "
                "the config of the run; strategy.graph=false captures nothing.",
                self.name,
                difference,
            )


def _relative_difference(actual: Tensor, expected: Tensor) -> float:
    """Returns the norm of the difference relative to that of the expected values; NaN if these are not finite."""
    norm = torch.linalg.vector_norm(expected.double())
    difference = torch.linalg.vector_norm(actual.double() - expected.double())
    if not torch.isfinite(norm):
        return math.nan
    return float(difference / norm.clamp(min=torch.finfo(torch.float32).tiny))


class CapturedSteps:
    """Runs the passes over micro-batches of fixed shapes as graphs, one for each shape.

    It takes the place of `SumCountSteps` for weights that are whole on every rank. Micro-batches are on the host. The
    parameters' gradients lie in memory that the next step overwrites. Ranks sum them with one all-reduce after all
    graphs of the step.

    Args:
        steps: Steps without regularization.
        graphs: Recorder.
    """

    def __init__(self, steps: SumCountSteps, graphs: Graphs) -> None:
        self.objective = steps.objective
        self._steps = steps
        self._graphs = graphs
        self._passes: ModelPasses | None = None
        self._shapes: dict[tuple[Form, int], tuple[StaticBatch, CapturedFunction]] = {}

    def counts(self, task: Task, step: StepBatch) -> Tensor:
        """Returns (terms,) float64 counts of this rank's share of a step, on the host."""
        return self._steps.counts(task, step)

    def run(self, passes: ModelPasses, step: StepBatch, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the gradients of a step, as `SumCountSteps.run`, without waiting for the device.

        Collective: all ranks must call.
        """
        if self._passes is None:
            self._allocate(passes, counts)
        self._gradients.zero()
        self._counts.copy_(counts)
        self._base.fill_(dropout_base(passes.seed, passes.step, 0))
        rows = []
        for number, batch in enumerate(step.micro_batches, start=1):
            begin_activity(f"runs micro-batch {number}")
            static, run = self._shape(batch)
            static.write(batch)
            rows.append(run())
        begin_activity("sums up the gradients")
        sum_over_data_ranks(self._gradients.flat, passes.mesh)
        self._gradients.attach()
        own = torch.stack(rows)
        return sum_over_data_ranks(own.sum(dim=0), passes.mesh), own

    def _allocate(self, passes: ModelPasses, counts: Tensor) -> None:
        self._gradients = FlatGradients(passes.model.parameters())
        self._counts = torch.zeros_like(counts)
        self._base = torch.zeros((), dtype=torch.int64, device=counts.device)
        # Without a mesh the loss is not multiplied by the number of ranks: gradients are summed, not averaged.
        self._passes = replace(passes, mesh=None, fixed_dropout_base=self._base, run_backward=self._gradients.add)

    def _shape(self, batch: PackedBatch) -> tuple[StaticBatch, CapturedFunction]:
        """Returns the memory for a micro-batch of this shape, and the passes over it."""
        form = form_of(batch)
        if form in self._shapes:
            return self._shapes[form]
        static = StaticBatch(batch, self._counts.device)
        name = f"a micro-batch of {len(batch.input_ids):,} tokens and {len(batch.lengths):,} sequences"
        shape = (
            static,
            CapturedFunction(name, lambda: self._run(static.batch), self._graphs, self._gradients.flat),
        )
        if len(self._shapes) < _MOST_SHAPES:
            self._shapes[form] = shape
        return shape

    def _run(self, batch: PackedBatch) -> Tensor:
        """Runs the passes over one micro-batch; returns (terms,) float64 sums."""
        assert self._passes is not None
        return self.objective.stack(self._steps.regularization.run(self._passes, batch, self._counts, is_last=True))
