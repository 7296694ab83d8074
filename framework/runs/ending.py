"""Completes a run that was killed after its last step; called when the run is started again."""

import logging
from collections.abc import Mapping
from typing import Any

from framework.checkpoint.retention import Retention
from framework.config.nodes import check_arguments
from framework.config.phases import phase_ends
from framework.config.schema import TrainerConfig
from framework.errors import FrameworkError
from framework.runs.folder import RunFolder, read_config
from framework.runs.privacy import delete_secret
from framework.tasks.task import Task
from framework.tracking.analysis.report import REPORT_FILE, has_report, make_report
from framework.tracking.console import print_line
from framework.tracking.rank_log import RUN_LOGGER
from framework.tracking.summary_file import read_summary

logger = logging.getLogger(RUN_LOGGER)


def retention_of(trainer: TrainerConfig, task: Task, config: Mapping[str, Any]) -> Retention:
    """Returns the rule for which checkpoints of a run are kept; the last one of each phase always is."""
    return Retention(
        trainer.keep_last,
        trainer.keep_every_n_steps,
        trainer.keep_best,
        f"val/{task.best_metric}",
        task.best_mode,
        trainer.checkpoint_every_n_steps if trainer.on_non_finite == "roll_back" else None,
        phase_ends(config),
    )


def complete_run(folder: RunFolder, task: Task) -> None:
    """Deletes the secret and checkpoints that need not be kept, and creates the report if it is missing.

    Call on rank 0 only.

    Changes nothing if the run ended normally. If writing fails, the report is missing, but the run does not fail.

    Args:
        folder: Run folder with a summary. Its saved config decides which checkpoints are kept, because the config of
            this start, which trains no step, may keep fewer.
        task: Task, which names the metric that ranks checkpoints.
    """
    summary = read_summary(folder.path)
    if summary is not None and summary["ended"] == "finished":
        delete_secret(folder.path)
    try:
        saved = read_config(folder.path)
        trainer = TrainerConfig(**check_arguments("trainer", saved["trainer"], TrainerConfig))
        retention_of(trainer, task, saved).prune(folder.checkpoints)
        if not has_report(folder.path):
            make_report(folder.path)
            logger.info("%s was missing and has been created", REPORT_FILE)
    except (OSError, FrameworkError) as error:
        text = f"The report and checkpoints of {folder.path} could not be completed ({error}). Start the run again."
        print_line(text)
