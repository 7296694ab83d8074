"""Trains the phases of an assembled run that are left, one after the other."""

import gc
import logging
from functools import partial

from framework.callbacks.plan_comparison import RunningPlan
from framework.distributed.processes.agreement import first_rank_value
from framework.distributed.processes.environment import ProcessInfo
from framework.runs.assembled_run import AssembledRun
from framework.runs.session import build_run_trainer, is_finished, prepare_training_texts, start_run
from framework.runs.supervision import Supervision

logger = logging.getLogger(__name__)


def is_run_finished(run: AssembledRun) -> bool:
    """Returns True if an earlier start has trained the last step of the run, or early stopping ended it."""
    last = run.phases[-1]
    return is_finished(run.folder, last.parts, last.settings.trainer.patience)


def train_phases(
    run: AssembledRun, info: ProcessInfo, device_type: str, running_plan: RunningPlan | None = None
) -> AssembledRun:
    """Trains until the run ends, or until a stop is requested. Collective: all ranks must call.

    Args:
        run: Assembled run, whose folder this start has locked.
        info: This process.
        device_type: "cpu" or "cuda".
        running_plan: Plan that the run is compared with; None: it is not compared.

    Returns:
        The run with its folder as it was found, and the phases that were not finished.
    """
    # Another start may have trained in the meantime, so rank 0 reads the folder again under its lock.
    run = run.from_step_in(first_rank_value(run.find_folder))
    while not first_rank_value(partial(is_run_finished, run)):
        reached_end = _train_phase(run, info, device_type, running_plan)
        if not reached_end or len(run.phases) == 1:
            break
        run = run.from_step_in(first_rank_value(run.find_folder))
        gc.collect()  # weights and optimizer of the phase, which its Trainer and module hold in a cycle
    return run


def _train_phase(run: AssembledRun, info: ProcessInfo, device_type: str, running_plan: RunningPlan | None) -> bool:
    """Trains the first phase that is left, and returns True if it reached its last step."""
    phase, folder = run.phases[0], run.folder
    parts = phase.parts
    if phase.graph_obstacle is not None and info.rank == 0:
        logger.warning("Training steps are not captured as CUDA graphs, because %s.", phase.graph_obstacle)
    start_run(folder, phase.config, parts, info.world_size)
    prepare_training_texts(parts, folder, info, device_type)
    with Supervision(folder.path, info, phase.settings.trainer.timeout_seconds):
        trainer = build_run_trainer(run, info, device_type, running_plan)
        trainer.fit(phase.module, datamodule=phase.data)
    return trainer.global_step >= parts.max_steps
