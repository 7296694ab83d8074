"""Redraws the plots and report.html of a run: `python -m framework.report run=RUN`, during or after its training.

The command reads only files of the run folder and needs neither model nor data. It works for any run: pre-training,
fine-tuning, or a killed one.
"""

if __name__ == "__main__":
    from framework.config.command import start

    start("framework.report")  # imports this module, and so all of the below, when the config is composed

from pathlib import Path

from omegaconf import DictConfig

import framework.distributed.processes.early_check  # noqa: F401  must come before Lightning
from framework.config.command import command, resolve_config
from framework.config.command_schema import ReportConfig
from framework.config.nodes import check_arguments
from framework.errors import CheckpointError
from framework.tracking.analysis.report import make_report
from framework.tracking.console import print_line
from framework.tracking.run_status import named_run


@command("report")
def report(composed: DictConfig) -> Path:
    """Creates the report, prints its path and returns it."""
    settings = ReportConfig(**check_arguments("", resolve_config(composed, ReportConfig), ReportConfig))
    folder = find_folder(settings.run, Path(settings.runs))
    try:
        path = make_report(folder)
    except OSError as error:
        raise CheckpointError(
            f"the report of {folder} could not be written ({error}). The folder must be writable. Free disk space or "
            "change its permissions, and start the command again."
        ) from error
    print_line(f"report      {path}")
    return path


run = report.run


def find_folder(run: str, runs: Path) -> Path:
    """Returns the folder of a run, given its path or its id.

    Raises:
        CheckpointError: No run or several runs have this id.
    """
    folder = named_run(run, runs)
    if folder is None:
        raise CheckpointError(f"run={run} is not a run in {runs}. Give the id or the folder of one run.")
    return folder
