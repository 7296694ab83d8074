"""Writes and reads privacy.json, the guarantee of a private run. It holds nothing of the secret."""

import json
from pathlib import Path
from typing import Any

from framework.files import write_atomic
from framework.privacy.guarantee import Guarantee
from framework.tracking.run_files import read_object

PRIVACY_FILE = "privacy.json"


def write_guarantee(run_folder: Path, guarantee: Guarantee) -> None:
    """Replaces the guarantee of a run."""
    write_atomic(run_folder / PRIVACY_FILE, json.dumps(guarantee.as_record(), indent=2) + "\n")


def read_guarantee(run_folder: Path) -> Guarantee | None:
    """Reads the guarantee of a run; None if the run is not private, or the file is damaged."""
    try:
        return Guarantee.from_record(read_object(run_folder / PRIVACY_FILE))
    except KeyError:
        return None


def privacy_spent(run_folder: Path, steps: int) -> dict[str, Any] | None:
    """Returns the guarantee as JSON values with `spent_epsilon`, the epsilon of a number of steps; None: not private.

    Args:
        run_folder: Run folder.
        steps: Completed steps.
    """
    guarantee = read_guarantee(run_folder)
    if guarantee is None:
        return None
    return guarantee.as_record() | {"spent_epsilon": round(guarantee.spent(min(steps, guarantee.steps)), 4)}
