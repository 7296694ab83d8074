"""The callbacks of a run, in the one order in which they may act."""

from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger

from framework.callbacks.cadence import Cadence
from framework.callbacks.checkpointing import Checkpointing
from framework.callbacks.final_validation import FinalValidation
from framework.callbacks.finite_guard import FiniteGuard
from framework.callbacks.pictures import Pictures
from framework.callbacks.plan_line import PlanLine
from framework.callbacks.progress import ProgressLine
from framework.callbacks.resume import Resume
from framework.callbacks.run_log import RunLog
from framework.callbacks.summary import Summary
from framework.callbacks.throughput import Throughput
from framework.callbacks.timings import Timings
from framework.data.plan import StepPlan
from framework.tasks.task import Task


def standard_callbacks(
    run_folder: Path,
    cadence: Cadence,
    task: Task,
    keep_last: int,
    checkpoint: Path | None = None,
    loggers: Sequence[Logger] = (),
    flops_per_token: float | None = None,
    peak_flops: float | None = None,
    plan: StepPlan | None = None,
) -> list[pl.Callback]:
    """Builds the callbacks of one run. Within a step they make: guard, update, measure, log, validate, log, save, show.

    Args:
        run_folder: Gets metrics.jsonl, perf.jsonl, summary.json, checkpoints/ and plots/.
        cadence: What is due after which step.
        task: Names the validation metric that is shown and compared.
        keep_last: Complete checkpoints that stay.
        checkpoint: The complete checkpoint folder to go on from; None starts at step 0.
        loggers: Get each row; empty on all ranks but 0.
        flops_per_token: Model FLOPs of forward and backward for one token; None: no utilisation is given.
        peak_flops: FLOPs a second of all devices together; None: not known.
        plan: Of the training split, to be shown at the start; None: it is not shown.
    """
    timings = Timings()
    throughput = Throughput(timings, flops_per_token, peak_flops)
    run_log = RunLog(run_folder, cadence, throughput, loggers)
    return [
        *([Resume(checkpoint)] if checkpoint is not None else []),
        FiniteGuard(),
        throughput,
        run_log,
        *([PlanLine(plan, run_log)] if plan is not None else []),
        FinalValidation(cadence),
        Checkpointing(run_folder / "checkpoints", cadence, timings, keep_last),
        ProgressLine(run_log, run_folder.name, task.best_metric),
        Summary(run_folder, run_log, task.best_metric, task.best_mode),
        Pictures(run_folder),
    ]
