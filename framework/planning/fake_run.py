"""Runs one step of each phase of a run on fake tensors, as rank 0 of any number of ranks."""

import contextlib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from framework.batch import StepBatch
from framework.data.planning.auto_budget import MEMORY_FRACTION, Trial, best_budget, trial_batch
from framework.data.planning.plan import StepPlan
from framework.distributed.mesh import MeshShape, build_mesh
from framework.distributed.processes.environment import ProcessInfo
from framework.planning.fake_cuda import CPU, CUDA, fake_cuda
from framework.planning.fake_world import fake_environment, fake_process_group
from framework.planning.recorder import Work
from framework.planning.step_record import RecordedModule, StepRecord, small_heap
from framework.runs.assembly import AssembledPhase, assemble_run

TRACED_MICRO_BATCHES = 2
"""Micro-batches of the step that is traced. All but the last one of a step do the same."""


@dataclass(frozen=True)
class PhaseRecord:
    """One step of a phase, or of a run without phases, on rank 0 with the data of the rank that has most tokens.

    Attributes:
        phase: The phase with its components.
        shape: Number of ranks along each mesh axis.
        num_micro_batches: Micro-batches of each rank in a step.
        tokens: Real tokens of a step over all ranks.
        sequences: Sequences of a step over all ranks.
        step: Record of a step of the largest micro-batches of that rank.
        traced: Number of micro-batches in that record.
        traced_lengths: Lengths of the sequences in that record.
        predicted: Words that are predicted in that record.
    """

    phase: AssembledPhase
    shape: MeshShape
    num_micro_batches: int
    tokens: int
    sequences: int
    step: StepRecord
    traced: int
    traced_lengths: tuple[int, ...]
    predicted: float

    @property
    def traced_tokens(self) -> int:
        """Returns the real tokens in the record."""
        return sum(self.traced_lengths)

    @property
    def work(self) -> Work:
        """Returns the work of a whole step on one rank, as if all of its micro-batches were the largest."""
        return self.step.work.plus(self.step.repeated, self.num_micro_batches - self.traced)


def record_phases(
    config: Mapping[str, Any],
    info: ProcessInfo,
    device_type: str = "cpu",
    granularity: int = 1,
    limit_bytes: float | None = None,
) -> list[PhaseRecord]:
    """Assembles a run as training does, and records a step of each phase.

    Compiled layers run uncompiled at the fixed shapes of compiled ones, and captured steps as ordinary ones in the same
    memory.

    Args:
        config: Resolved config of `framework.train`.
        info: Rank 0 of the planned ranks. None of them needs to exist.
        device_type: "cpu" or "cuda".
        granularity: Bytes to a multiple of which a block of memory is rounded up.
        limit_bytes: Memory of a rank, which limits an automatic token budget; None: it is not a limit.

    Raises:
        FrameworkError: The config cannot be run, or a step depends on values, which fake tensors do not have.
    """
    if config["precision"]["name"] == "float8":
        with contextlib.suppress(ImportError):  # the check of the config names what is missing
            importlib.import_module("torchao.float8")  # which must not see the stand-in for Triton
    fake_device = fake_cuda() if device_type == "cuda" else contextlib.nullcontext()
    with small_heap(), fake_environment(info), fake_device:
        run = assemble_run({**config, "check": info.world_size}, info, device_type)
        return [record_phase(phase, info, device_type, granularity, limit_bytes) for phase in run.phases]


def record_phase(
    phase: AssembledPhase, info: ProcessInfo, device_type: str, granularity: int, limit_bytes: float | None = None
) -> PhaseRecord:
    """Records a step of an assembled phase. Its module cannot be used afterwards.

    Args:
        phase: Assembled phase.
        info: As in `record_phases`.
        device_type: As in `record_phases`.
        granularity: As in `record_phases`.
        limit_bytes: As in `record_phases`.
    """
    plan, strategy = phase.data.plans["train"], phase.settings.strategy
    shape = strategy.shape(info.world_size)
    # `single` has no process group, also in training.
    with contextlib.nullcontext() if strategy.name == "single" else fake_process_group(info):
        mesh = build_mesh(strategy.name, shape, "cpu")  # on which fake tensors are
        device = CUDA if device_type == "cuda" else CPU
        recorded = RecordedModule(phase.module, strategy.name, mesh, device, info.local_world_size, granularity)
        if phase.settings.trainer.micro_batch_tokens == "auto":
            phase.data.set_budget(_best_budget(phase, recorded, limit_bytes))
        recorded.capture()
        number = _full_step(plan, phase.parts.first_step, phase.parts.max_steps)
        shares = plan.micro_batches(number, plan.fullest_rank(number))
        largest = sorted(shares, key=lambda share: -int(plan.source.lengths(share.epochs, share.indices).sum()))
        batches = tuple(plan.source.build(share, number, share.shape) for share in largest[:TRACED_MICRO_BATCHES])
        record = recorded.record(StepBatch(number, plan.epoch(number), batches))
    sequences, term = plan.sequences(number), phase.parts.task.vocabulary_term
    return PhaseRecord(
        phase,
        shape,
        len(shares),
        int(plan.source.lengths(sequences.epochs, sequences.indices).sum()),
        len(sequences),
        record,
        len(batches),
        tuple(length for batch in batches for length in batch.lengths[: batch.num_sequences]),
        0.0 if term is None else sum(batch.counts[term] for batch in batches),
    )


def _full_step(plan: StepPlan, first_step: int, max_steps: int) -> int:
    """Returns the last step of full size. The batch has grown by then, and an epoch may end with a short step."""
    last = max_steps - 1
    return max((last, max(first_step, last - 1)), key=lambda step: len(plan.sequences(step)))


def _best_budget(phase: AssembledPhase, recorded: RecordedModule, limit_bytes: float | None) -> int:
    """Returns the token budget that training would choose (`framework.callbacks.auto_budget`)."""
    data, plan = phase.data, phase.data.plans["train"]

    def attempt(tokens: int) -> Trial:
        shapes = data.shapes("train", tokens)
        trial = recorded.run_trial(trial_batch(plan.source, tokens, data.max_steps, shapes))
        return trial if phase.module.build_graphs is None else trial.of_captured_step()

    if limit_bytes is None:
        return best_budget(plan, data.longest_sequence, None)
    return best_budget(plan, data.longest_sequence, attempt, MEMORY_FRACTION * limit_bytes)
