"""Builds the callbacks of a run in their required order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger

from framework.callbacks.cadence import Cadence
from framework.callbacks.checkpointing import Checkpointing
from framework.callbacks.early_stopping import EarlyStopping, Patience
from framework.callbacks.error_analysis import Pictures
from framework.callbacks.final_test import FinalTest
from framework.callbacks.final_validation import FinalValidation
from framework.callbacks.finite_guard import STOP, FiniteGuard, NonFinite
from framework.callbacks.plan_comparison import PlanComparison, RunningPlan
from framework.callbacks.plan_line import PlanLine
from framework.callbacks.preemption import Preemption
from framework.callbacks.probing import Probing
from framework.callbacks.progress import ProgressLine
from framework.callbacks.rank_lines import RankLines
from framework.callbacks.resume import Resume
from framework.callbacks.run_log import RunLog
from framework.callbacks.summary import Summary
from framework.callbacks.throughput import Throughput
from framework.callbacks.time_limit import TimeLimit
from framework.callbacks.timings import Timings
from framework.checkpoint.layout import CHECKPOINTS
from framework.checkpoint.retention import Retention
from framework.checkpoint.storage import Location
from framework.data.planning.plan import StepPlan
from framework.tasks.probing.probe import Probe
from framework.tasks.task import Task
from framework.tracking.study import StudyTrial


@dataclass(frozen=True)
class Endings:
    """Conditions that may end a run before its last step.

    Attributes:
        max_time: Time limit within which the run saves and stops; None: no limit.
        non_finite: Reaction to steps whose loss or gradient is not finite.
        patience: Limit on validations without an improvement; None: the run continues to its last step.
        trial: Trial of a search that this run executes; None: the run belongs to no search.
    """

    max_time: TimeLimit | None = None
    non_finite: NonFinite = STOP
    patience: Patience | None = None
    trial: StudyTrial | None = None


NO_ENDINGS = Endings()


def standard_callbacks(
    run_folder: Path,
    cadence: Cadence,
    task: Task,
    retention: Retention,
    resume: Resume | None = None,
    loggers: Sequence[Logger] = (),
    throughput: Throughput | None = None,
    plan: StepPlan | None = None,
    timeout_seconds: float = 600.0,
    checkpoint_async: bool = True,
    checkpoints: Location | None = None,
    probes: Mapping[str, Probe] = MappingProxyType({}),
    endings: Endings = NO_ENDINGS,
    phase: str | None = None,
    running_plan: RunningPlan | None = None,
) -> list[pl.Callback]:
    """Builds a run's callbacks. Order in a step: guard, update, measure, probe, log, validate, log, agree, save, show.

    Args:
        run_folder: Folder for metrics.jsonl, perf.jsonl, summary.json, checkpoints/, plots/ and report.html.
        cadence: Schedule of rows, validations, checkpoints and probes.
        task: Task, which names the validation metric that is shown and compared.
        retention: Rule that selects the checkpoints to keep.
        resume: Callback that restores the run from a checkpoint; None: the run starts at step 0.
        loggers: Loggers that get each row; empty on all ranks but 0.
        throughput: Callback that measures the run; None: one that reports no utilisation.
        plan: Step plan of the training split, shown at the start; None: it is not shown.
        timeout_seconds: Time limit for waiting for the other ranks.
        checkpoint_async: Write checkpoints while training continues.
        checkpoints: Folder of the checkpoints; None: a folder in the run folder.
        probes: Probes on the encoder's features, by name.
        endings: Conditions that may end the run before its last step.
        phase: Name of the phase of the run; None: the run has no phases.
        running_plan: Plan of memory and step time that is compared with the run; None: nothing is compared.
    """
    run_log = RunLog(run_folder, cadence, throughput or Throughput(Timings()), loggers)
    probing = Probing(probes, cadence, run_log)
    timings, folder = run_log.throughput.timings, checkpoints or run_folder / CHECKPOINTS
    checkpointing = Checkpointing(folder, cadence, timings, retention, checkpoint_async, timeout_seconds, run_folder)
    guard = FiniteGuard(endings.non_finite, checkpointing, run_log)
    preemption = Preemption(cadence, timings, endings.max_time, timeout_seconds)
    early_stopping = EarlyStopping(endings.patience, task.best_metric, task.best_mode, endings.trial)
    return [
        *([resume] if resume is not None else []),
        guard,
        run_log.throughput,
        probing,
        FinalTest(cadence, run_log),
        run_log,
        *_plan_lines(plan, running_plan, phase, cadence, run_log),
        FinalValidation(cadence),
        early_stopping,
        preemption,
        checkpointing,
        ProgressLine(run_log, phase or run_folder.name, task.best_metric, further_keys=probing.keys),
        Summary(run_folder, run_log, preemption, early_stopping, guard, task.best_metric, task.best_mode),
        *([Pictures(run_folder)] if cadence.ends_run else []),
        RankLines(run_log, cadence),
    ]


def _plan_lines(
    plan: StepPlan | None, running_plan: RunningPlan | None, phase: str | None, cadence: Cadence, run_log: RunLog
) -> list[pl.Callback]:
    """Returns the callbacks that show the steps of a run, and its planned memory and step time."""
    lines: list[pl.Callback] = [] if plan is None else [PlanLine(plan, run_log)]
    if running_plan is not None:
        lines.append(PlanComparison(running_plan, phase or "", cadence, run_log))
    return lines
