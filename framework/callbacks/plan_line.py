"""Prints lines at the start of a run: the composition of its steps, and the weights it starts from."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module. These hooks are for EncoderModule.

import lightning.pytorch as pl
from rich.console import Console
from typing_extensions import override

from framework.callbacks.run_log import RunLog
from framework.data.planning.plan import PlanSummary, StepPlan, UnusedText
from framework.modules.encoder_module import EncoderModule
from framework.tracking.console import print_line

MEASURED_STEPS = 5


class PlanLine(pl.Callback):
    """Measures the first steps on rank 0, prints one line and adds the measurements to the first row of perf.jsonl.

    Its position is after the run log, which opens its files, and before the progress bar.
    """

    def __init__(self, plan: StepPlan, run_log: RunLog, console: Console | None = None) -> None:
        """Creates the callback.

        Args:
            plan: Step plan of the training split.
            run_log: Run log, which gets `perf/packing_efficiency` and `perf/micro_batches`.
            console: Console for the line; None: standard output.
        """
        self.plan = plan
        self.run_log = run_log
        self.console = console

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Prints the line at each start of the run, for the steps from which it starts or resumes."""
        steps = range(trainer.global_step, min(trainer.global_step + MEASURED_STEPS, trainer.max_steps))
        if not trainer.is_global_zero or not steps:
            return
        summary = self.plan.summary(steps)
        self.run_log.add(
            {"perf/packing_efficiency": summary.efficiency, "perf/micro_batches": float(summary.micro_batches[1])}
        )
        print_line(plan_text(self.plan, summary, len(steps), trainer.max_steps), self.console)


def plan_text(plan: StepPlan, summary: PlanSummary, num_steps: int, max_steps: int) -> str:
    """Returns the line about the steps of a run, for example their sequences, micro-batches and epochs.

    Args:
        plan: Step plan of the training split.
        summary: Measurements of its next steps.
        num_steps: Number of these steps.
        max_steps: Step after which the run, or the phase, ends.
    """
    growth = ""
    if plan.batch_warmup is not None and summary.sequences[0] < plan.global_batch_size:
        growth = f" (growing to {plan.global_batch_size:,} at step {plan.batch_warmup.steps:,})"
    parts = [
        f"{_range(*summary.sequences)} sequences per step{growth}",
        f"micro-batches of {plan.budgets[-1]:,} tokens, {_range(*summary.micro_batches)} per rank, the last of "
        f"{_range(summary.last_budgets[0], summary.last_budgets[-1])}",
        f"packing efficiency {summary.efficiency:.1%} over {num_steps} steps",
    ]
    if plan.wraps_epochs:
        parts.append(f"{plan.epochs_until(max_steps):.3g} epochs of the {len(plan.source):,} sequences")
    unused = plan.source.unused_fraction(0) if isinstance(plan.source, UnusedText) else 0.0
    if unused:
        parts.append(f"sentence pairs do not use {unused:.1%} of the text in an epoch")
    return "plan: " + "; ".join(parts)


def _range(least: int, most: int) -> str:
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


class WeightsLine(pl.Callback):
    """Prints a line about the initial weights on rank 0, before the progress bar is drawn."""

    def __init__(self, text: str, console: Console | None = None) -> None:
        """Creates the callback.

        Args:
            text: Line to print.
            console: Console for the line; None: standard output.
        """
        self.text = text
        self.console = console

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Prints the line."""
        if trainer.is_global_zero:
            print_line(self.text, self.console)
