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
from framework.callbacks.preemption import Preemption
from framework.callbacks.progress import ProgressLine
from framework.callbacks.resume import Resume
from framework.callbacks.run_log import RunLog
from framework.callbacks.summary import Summary
from framework.callbacks.throughput import Throughput
from framework.callbacks.time_limit import TimeLimit
from framework.callbacks.timings import Timings
from framework.checkpoint.integrity import Verify
from framework.checkpoint.retention import Retention
from framework.data.plan import StepPlan
from framework.tasks.task import Task


def standard_callbacks(
    run_folder: Path,
    cadence: Cadence,
    task: Task,
    retention: Retention,
    checkpoint: Path | None = None,
    loggers: Sequence[Logger] = (),
    flops_per_token: float | None = None,
    peak_flops: float | None = None,
    plan: StepPlan | None = None,
    verify: Verify = "sizes",
    max_time: TimeLimit | None = None,
    timeout_seconds: float = 600.0,
) -> list[pl.Callback]:
    """Builds the callbacks of one run.

    Within a step they make: guard, update, measure, log, validate, log, agree, save, show.

    Args:
        run_folder: Gets metrics.jsonl, perf.jsonl, summary.json, checkpoints/ and plots/.
        cadence: What is due after which step.
        task: Names the validation metric that is shown and compared.
        retention: Which checkpoints stay.
        checkpoint: The complete checkpoint folder to go on from; None starts at step 0.
        loggers: Get each row; empty on all ranks but 0.
        flops_per_token: Model FLOPs of forward and backward for one token; None: no utilisation is given.
        peak_flops: FLOPs a second of all devices together; None: not known.
        plan: Of the training split, to be shown at the start; None: it is not shown.
        verify: What of the checkpoint's files is compared with what was written.
        max_time: After which the run has saved and left; None: no limit.
        timeout_seconds: How long a rank waits for the others.
    """
    timings = Timings()
    throughput = Throughput(timings, flops_per_token, peak_flops)
    run_log = RunLog(run_folder, cadence, throughput, loggers)
    preemption = Preemption(cadence, timings, max_time, timeout_seconds)
    return [
        *([Resume(checkpoint, run_folder / "checkpoints", verify)] if checkpoint is not None else []),
        FiniteGuard(),
        throughput,
        run_log,
        *([PlanLine(plan, run_log)] if plan is not None else []),
        FinalValidation(cadence),
        preemption,
        Checkpointing(run_folder / "checkpoints", cadence, timings, retention),
        ProgressLine(run_log, run_folder.name, task.best_metric),
        Summary(run_folder, run_log, preemption, task.best_metric, task.best_mode),
        Pictures(run_folder),
    ]
