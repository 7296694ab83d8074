"""Completes a run whose process was killed after its last step, when it is started again."""

import logging

from framework.checkpoint.retention import Retention
from framework.config.nodes import check_arguments
from framework.config.run_folder import RunFolder, read_config
from framework.config.schema import TrainerConfig
from framework.errors import FrameworkError
from framework.tasks.task import Task
from framework.tracking.analysis.report import REPORT_FILE, has_report, make_report
from framework.tracking.console import open_console
from framework.tracking.rank_log import RUN_LOGGER

logger = logging.getLogger(RUN_LOGGER)


def retention_of(trainer: TrainerConfig, task: Task) -> Retention:
    """Returns which checkpoints of a run stay."""
    return Retention(
        trainer.keep_last,
        trainer.keep_every_n_steps,
        trainer.keep_best,
        f"val/{task.best_metric}",
        task.best_mode,
        trainer.checkpoint_every_n_steps if trainer.on_non_finite == "roll_back" else None,
    )


def complete_run(folder: RunFolder, task: Task) -> None:
    """Deletes checkpoints that need not stay, and makes plots and report where they are missing. Call on rank 0 only.

    Does nothing after a run that came to its end in one piece. A disk that refuses costs the report, not the run.

    Args:
        folder: Folder of the run, which has a summary. Its config says which checkpoints stay: that of this start may
            keep fewer, and has not trained a step.
        task: Names the metric by which checkpoints are compared.
    """
    try:
        saved = read_config(folder.path)["trainer"]
        trainer = TrainerConfig(**check_arguments("trainer", saved, TrainerConfig))
        retention_of(trainer, task).prune(folder.checkpoints)
        if not has_report(folder.path):
            make_report(folder.path)
            logger.info("%s was missing and is made", REPORT_FILE)
    except (OSError, FrameworkError) as error:
        text = f"the end of the run in {folder.path} is not complete ({error}). Start it again."
        open_console().print(text, highlight=False, markup=False, soft_wrap=True)
