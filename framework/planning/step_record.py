"""Runs the steps of a module under a recorder, on real or on fake tensors."""

import gc
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh

from framework.batch import PackedBatch, StepBatch
from framework.data.planning.auto_budget import Trial
from framework.distributed.parallel import parallelize as parallel
from framework.errors import ConfigError
from framework.modules.encoder_module import EncoderModule
from framework.modules.passes.captured import CapturedSteps
from framework.optim.shards import local
from framework.planning.fake_world import as_fake, fake_batch
from framework.planning.memory import LiveMemory, Peak
from framework.planning.recorder import StepRecorder, Work


@dataclass(frozen=True)
class StepRecord:
    """Memory and work of a training step on one rank.

    Attributes:
        weights_bytes: Bytes of this rank's part of the weights.
        optimizer_bytes: Bytes of this rank's part of the optimizer's state.
        buffers_bytes: Bytes of the buffers of the model.
        peak: Memory at the peak of the step.
        work: Work of the step.
        repeated: Part of the work that each micro-batch except the last one does. It is 0 in a step of one.
    """

    weights_bytes: int
    optimizer_bytes: int
    buffers_bytes: int
    peak: Peak
    work: Work
    repeated: Work


class PlannedGraphs:
    """Graphs that are never captured, but whose pool of memory is counted (`framework.modules.passes.captured.Graphs`).

    Args:
        memory: Memory in which the tensors of the steps are counted.
    """

    warm_up_runs = math.inf

    def __init__(self, memory: LiveMemory) -> None:
        self._memory = memory

    def warm_up(self, function: Callable[[], None]) -> None:
        """Runs a function, and lets the pool grow by what it allocates."""
        with self._memory.captured():
            function()

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Is never called.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(f"{function} cannot be captured. A plan runs every step as it is. Call `warm_up`.")


class RecordedModule:
    """Module whose weights and optimizer exist, and whose steps are recorded.

    Args:
        module: Module, its weights on the meta device.
        strategy: One of `framework.distributed.mesh.STRATEGIES`.
        mesh: Mesh of the strategy; None: a single process.
        device: Device on which the model computes.
        gpus_per_node: Number of consecutive ranks on one node.
        granularity: Bytes to a multiple of which a block of memory is rounded up.
        is_fake: False records real tensors, which shows that fake ones tell the truth.
    """

    def __init__(
        self,
        module: EncoderModule,
        strategy: str,
        mesh: DeviceMesh | None,
        device: torch.device,
        gpus_per_node: int,
        granularity: int = 1,
        is_fake: bool = True,
    ) -> None:
        self.module = module
        self.device = device
        self._mode = FakeTensorMode(allow_non_fake_inputs=True) if is_fake else None
        self.memory = LiveMemory(granularity)
        self.recorder = StepRecorder(self.memory, mesh, gpus_per_node)
        if is_fake:
            _take_shapes_only(module, device)
            module.runner.is_finite = lambda _: True  # fake tensors have no values
        # Layers are placed as compiled ones, but a compiler runs no fake tensors.
        with patch.object(parallel, "apply_compile", lambda *_: None):
            module.parallelize(strategy, mesh)  # computes ranks with tensors, which must have values
        with self._recording():
            module.materialize(device)
            module.place(strategy, mesh, device)
            _use_dense_gradients(module)
            self.optimizer = module.configure_optimizers()
        weights = dict(module.model.named_parameters())
        self._weights = list(weights.values())  # FSDP replaces them while they are gathered
        self.weights_bytes = self.memory.keep(_stored(weights), "weights")
        self.optimizer_bytes = self.memory.keep(_stored(self.optimizer.named_state()), "optimizer")
        self.buffers_bytes = self.memory.keep(_stored(dict(module.model.named_buffers())), "buffers")

    def capture(self) -> None:
        """Prepares steps as training does if it captures them. Trials of the token budget have ended by then."""
        if self.module.build_graphs is not None:
            with self._recording():
                self.module.runner.capture(PlannedGraphs(self.memory), self.optimizer)

    def record(self, step: StepBatch) -> StepRecord:
        """Runs a step three times: as a first step, which creates more; to find its peak; and to read the peak.

        Collective if there is a mesh: all ranks must call.
        """
        if self._mode is not None:
            step = as_fake(step, self._mode)
        with self._recording():
            self.module.runner.run(step, self.optimizer, self._update)
            gc.collect()
            # Captured steps copy micro-batches from the host to memory of their own.
            is_captured = isinstance(self.module.runner.steps, CapturedSteps)
            for batch in () if is_captured else step.micro_batches:
                tensors = {name: getattr(batch, name) for name in ("input_ids", "position_ids", "sequence_ids")}
                for tensor in (*tensors.values(), *batch.targets.values()):
                    self.memory.add(tensor, "loader")
                self.memory.keep({**tensors, **batch.targets}, "data")
            for is_second in (False, True):
                self.recorder.begin(is_second)
                self.module.runner.run(step, self.optimizer, self._update)
                gc.collect()
        peak = self.memory.read_peak()
        repeated_bytes = self.memory.peak + self.memory.pool
        if peak.num_bytes != repeated_bytes:
            raise RuntimeError(
                f"The peak of a step was {peak.num_bytes} bytes, and {repeated_bytes} when it was repeated. Equal "
                "steps must allocate equal memory."
            )
        work, repeated = Work(), Work()
        for activity, part in self.recorder.work.items():
            work = work.plus(part)
            if len(step.micro_batches) > 1 and activity.endswith(" of micro-batch 1"):
                repeated = repeated.plus(part)
        return StepRecord(self.weights_bytes, self.optimizer_bytes, self.buffers_bytes, peak, work, repeated)

    def run_trial(self, batch: PackedBatch) -> Trial:
        """Runs a trial of one micro-batch (`StepRunner.run_trial`)."""
        num_tokens = batch.num_tokens
        if self._mode is not None:
            batch = fake_batch(batch, self._mode)
        with self._recording():
            self.recorder.begin()
            before = self.memory.now
            self.module.runner.run_trial(batch)
        return Trial(num_tokens, self.memory.peak, before)

    @contextmanager
    def _recording(self) -> Iterator[None]:
        """Context in which tensors are recorded.

        Raises:
            ConfigError: The step reads values of tensors, which fake ones do not have.
        """
        with self._mode or nullcontext(), self.recorder.watching(self.module.model), _without_collection():
            try:
                yield
            except RuntimeError as error:
                if self._mode is None or not _reads_values(error):
                    raise
                task, precision = type(self.module.task).__name__, self.module.precision.name
                raise ConfigError(
                    f"a step of task {task} under precision={precision} reads values of tensors "
                    f"({error}). A plan has only their shapes. Plan a config "
                    "of the same model and lengths without this task or precision."
                ) from error

    def _update(self) -> None:
        gradients = {str(index): weight.grad for index, weight in enumerate(self._weights) if weight.grad is not None}
        self.memory.mark(_stored(gradients).values(), "gradients")
        self.optimizer.step()


def _stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: local(tensor).detach() for name, tensor in tensors.items()}


@contextmanager
def small_heap() -> Iterator[None]:
    """Context in which collections of garbage look at new objects only. Each would look at all modules of torch."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def _without_collection() -> Iterator[None]:
    """Context in which memory is freed by reference counts alone, so that equal steps have equal peaks."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _reads_values(error: BaseException | None) -> bool:
    """Returns True if a fake tensor refused to give its values: a number, a shape that depends on them, an array."""
    while error is not None:
        if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
            return True
        if ".numpy() is not supported for tensor subclasses" in str(error):  # torch raises a plain RuntimeError
            return True
        error = error.__cause__
    return False


def _use_dense_gradients(module: EncoderModule) -> None:
    """Makes the gradients of embeddings dense. The rows of a sparse one are values, and only the CPU has them."""
    for table in module.model.modules():
        if isinstance(table, nn.Embedding):
            table.sparse = False


def _take_shapes_only(module: EncoderModule, device: torch.device) -> None:
    """Makes a module start from weights without values. Fake weights have none, and drawing them takes minutes."""

    def empty(model: nn.Module) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        for name, parameter in model.named_parameters():
            yield name, partial(torch.empty, parameter.shape, device=device)

    module.initial_values = empty
