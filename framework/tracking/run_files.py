"""Reads files of a run folder that may be missing, partly written or damaged, for callers that must not fail."""

from pathlib import Path
from typing import Any

import yaml

from framework.files import read_json_object

CONFIG_FILE = "config.yaml"
TASK_FILE = "task.json"
PROVENANCE_FILE = "provenance.json"
JOB_FILE = "slurm_job.json"
"""File in the logs of a run that a sweep submitted to SLURM, with the number of its job."""

SLURM_EXIT_FILE = "slurm_exit"
"""File in the logs of a run with the exit code of its SLURM job, written by sweeps/slurm_job.sh for jobs that fail."""

SWEEP_FILE = "sweep.json"
"""File in the folder of a sweep with the state of each job."""

BEST_METRIC = "best_metric"
"""Key of task.json and summary.json: the metric that ranks checkpoints, such as "val/accuracy"."""


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object; empty if the file is missing or damaged."""
    try:
        return read_json_object(path)
    except (OSError, ValueError):
        return {}


def read_saved_config(run_folder: Path) -> dict[str, Any]:
    """Reads config.yaml; empty if the file is missing or damaged."""
    try:
        value = yaml.safe_load((run_folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
