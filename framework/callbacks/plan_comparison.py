"""Compares a run with its plan (`framework.planning`): a line when the plan is known, and a line at the end."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module. These hooks are for EncoderModule.

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import lightning.pytorch as pl
from rich.console import Console
from typing_extensions import override

from framework.batch import StepBatch
from framework.callbacks.cadence import Cadence
from framework.callbacks.run_log import RunLog
from framework.modules.encoder_module import EncoderModule
from framework.tracking.console import print_line
from framework.tracking.quantities import format_gb, format_seconds


@dataclass(frozen=True)
class PlannedPhase:
    """Plan of a phase, or of a run without phases.

    Attributes:
        memory_bytes: Memory of the tensors of rank 0 at the peak of a step.
        step_seconds: Expected seconds of a step, and the fewest and the most of them.
        tokens: Real tokens of a step over all ranks.
    """

    memory_bytes: float
    step_seconds: tuple[float, float, float]
    tokens: float


class RunningPlan(Protocol):
    """Plan that is made while a run trains."""

    def poll(self) -> Mapping[str, PlannedPhase] | str | None:
        """Returns the plans by phase, "" without phases; the reason as text if planning failed; None: not finished."""


class PlanComparison(pl.Callback):
    """Writes what was planned beside what is measured, on rank 0.

    Its position is after the run log and before the summary. Memory is compared on CUDA, where the allocator counts
    tensors as a plan does. On the CPU `perf/memory_bytes` is the whole process with its libraries.
    """

    def __init__(
        self, plan: RunningPlan, phase: str, cadence: Cadence, run_log: RunLog, console: Console | None = None
    ) -> None:
        """Creates the callback.

        Args:
            plan: Plan of the run.
            phase: Name of the phase; "": the run has no phases.
            cadence: Schedule of rows.
            run_log: Run log, which gets `plan/memory_bytes`, `plan/step_seconds` and `plan/tokens_per_second`, and at
                the end `plan/step_ratio` and `plan/memory_ratio`, measured by planned.
            console: Console for the lines; None: standard output.
        """
        self.plan = plan
        self.phase = phase
        self.cadence = cadence
        self.run_log = run_log
        self.console = console
        self._planned: PlannedPhase | None = None
        self._is_settled = False
        self._step_seconds: list[float] = []

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: EncoderModule, outputs: None, batch: StepBatch, batch_idx: int
    ) -> None:
        """Prints the plan once it is known, and keeps the step time of each row."""
        if not trainer.is_global_zero:
            return
        if self.cadence.logs(trainer.global_step):
            self._step_seconds.append(self.run_log.latest["perf/step_seconds"])
        if not self._is_settled:
            self._settle()

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Prints the measured values, in percent of the planned ones."""
        if not trainer.is_global_zero or not self._step_seconds:
            return
        if not self._is_settled:
            self._settle()
        if not self._is_settled:
            print_line("plan: not finished before the run ended; nothing is compared", self.console)
        if self._planned is None:
            return
        values = _values(self._planned)
        # The first rows contain the warm-up of the device and of a growing batch.
        seconds = statistics.median(self._step_seconds[len(self._step_seconds) // 2 :])
        values["plan/step_ratio"] = seconds / values["plan/step_seconds"]
        text = f"a step took {format_seconds(seconds)}, {_percent(values['plan/step_ratio'])} of the planned time"
        if pl_module.device.type == "cuda":
            peak = self.run_log.latest["perf/memory_bytes"]
            values["plan/memory_ratio"] = peak / values["plan/memory_bytes"]
            text += f"; rank 0 used {format_gb(peak)}, {_percent(values['plan/memory_ratio'])} of the planned memory"
        self.run_log.latest |= values
        print_line(f"measured: {text}", self.console)

    def _settle(self) -> None:
        """Prints the plan and adds it to the next row, if it is finished."""
        plans = self.plan.poll()
        if plans is None:
            return
        self._is_settled = True
        if isinstance(plans, str):
            print_line(f"plan: none, because {plans}", self.console)
            return
        self._planned = plans[self.phase]
        values = _values(self._planned)
        self.run_log.add(values)
        expected, lowest, highest = map(format_seconds, self._planned.step_seconds)
        print_line(
            f"planned: a step takes {expected}, from {lowest} to {highest} "
            f"({values['plan/tokens_per_second']:,.0f} tokens per second); tensors of rank 0 need "
            f"{format_gb(self._planned.memory_bytes)} at the peak",
            self.console,
        )


def _values(planned: PlannedPhase) -> dict[str, float]:
    expected = planned.step_seconds[0]
    return {
        "plan/memory_bytes": planned.memory_bytes,
        "plan/step_seconds": expected,
        "plan/tokens_per_second": planned.tokens / expected,
    }


def _percent(ratio: float) -> str:
    return f"{100 * ratio:,.0f}%"
