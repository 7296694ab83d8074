"""Lines at the start of a run: how its steps are composed, and which weights it starts from."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module; ours are for one.

import lightning.pytorch as pl
from rich.console import Console
from typing_extensions import override

from framework.callbacks.run_log import RunLog
from framework.data.planning.plan import PlanSummary, StepPlan, UnusedText
from framework.modules.encoder_module import EncoderModule
from framework.tracking.console import print_line

MEASURED_STEPS = 5


class PlanLine(pl.Callback):
    """Measures the first steps on rank 0, shows them in one line and puts the numbers into the first row of perf.jsonl.

    Stands after the run log, which opens its files, and before what draws a bar.
    """

    def __init__(self, plan: StepPlan, run_log: RunLog, console: Console | None = None) -> None:
        """Takes what is measured.

        Args:
            plan: Of the training split.
            run_log: Gets `perf/packing_efficiency` and `perf/micro_batches`.
            console: Where to write; None: standard output.
        """
        self.plan = plan
        self.run_log = run_log
        self.console = console

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Writes the line; at each start of the run anew, from the step at which it goes on."""
        steps = range(trainer.global_step, min(trainer.global_step + MEASURED_STEPS, trainer.max_steps))
        if not trainer.is_global_zero or not steps:
            return
        summary = self.plan.summary(steps)
        self.run_log.add(
            {"perf/packing_efficiency": summary.efficiency, "perf/micro_batches": float(summary.micro_batches[1])}
        )
        print_line(plan_text(self.plan, summary, len(steps)), self.console)


def plan_text(plan: StepPlan, summary: PlanSummary, num_steps: int) -> str:
    """The line: sequences of a step, micro-batches of a rank and their budgets, efficiency, unused text."""
    growth = ""
    if plan.batch_warmup is not None and summary.sequences[0] < plan.global_batch_size:
        growth = f" (growing to {plan.global_batch_size:,} at step {plan.batch_warmup.steps:,})"
    parts = [
        f"{_range(*summary.sequences)} sequences a step{growth}",
        f"micro-batches of {plan.micro_batch_tokens:,} tokens, {_range(*summary.micro_batches)} a rank, the last of "
        f"{_range(summary.last_budgets[0], summary.last_budgets[-1])}",
        f"packing efficiency {summary.efficiency:.1%} over {num_steps} steps",
    ]
    unused = plan.source.unused_fraction(0) if isinstance(plan.source, UnusedText) else 0.0
    if unused:
        parts.append(f"sentence pairs leave {unused:.1%} of the text unused in an epoch")
    return "plan: " + "; ".join(parts)


def _range(least: int, most: int) -> str:
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


class WeightsLine(pl.Callback):
    """Shows the line on rank 0, before what draws a bar."""

    def __init__(self, text: str, console: Console | None = None) -> None:
        """Takes what is shown.

        Args:
            text: The line.
            console: Where to write; None: standard output.
        """
        self.text = text
        self.console = console

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Writes the line."""
        if trainer.is_global_zero:
            print_line(self.text, self.console)
