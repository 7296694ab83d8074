"""Writer of the error file of a failing rank. torchrun's agent shows it and decides whether to restart the ranks."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

VARIABLE = "TORCHELASTIC_ERROR_FILE"
"""Environment variable that torchrun sets for each rank. ChildFailedError shows the `message` of this file."""

_FINAL_KINDS = {"ConfigError", "DataError"}
"""Errors that a restart cannot remove."""


def write_note(message: str, kind: str, step: int | None) -> None:
    """Writes the file from which torchrun reads the error of a rank. Without torchrun it writes nothing.

    Args:
        message: Failure in one line.
        kind: Class name of the error.
        step: Step at which the failure happened; None: before the first step.
    """
    file = os.environ.get(VARIABLE)
    if not file:
        return
    is_final = kind in _FINAL_KINDS or (kind == "CheckpointError" and step is None)
    note = {"message": message, "timestamp": int(time.time()), "is_final": is_final}
    with suppress(OSError):  # the note repeats what the rank prints
        Path(file).write_text(json.dumps(note), encoding="utf-8")
