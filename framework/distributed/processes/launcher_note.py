"""The note that a failing rank leaves for torchrun's agent, which shows it and decides whether to start ranks again."""

import json
import os
import time
from contextlib import suppress
from pathlib import Path

VARIABLE = "TORCHELASTIC_ERROR_FILE"
"""Set by torchrun for each rank; torch's ChildFailedError shows the `message` of that file."""

_NEVER_PASSES = {"ConfigError", "DataError"}


def leave_note(message: str, kind: str, step: int | None) -> None:
    """Writes the file in which torchrun looks for the error of a rank; without torchrun nothing.

    Args:
        message: The failure in one line.
        kind: Class of its error.
        step: At which it happened; None: before the first one.
    """
    file = os.environ.get(VARIABLE)
    if not file:
        return
    is_final = kind in _NEVER_PASSES or (kind == "CheckpointError" and step is None)
    note = {"message": message, "timestamp": int(time.time()), "is_final": is_final}
    with suppress(OSError):  # the note repeats what the rank prints
        Path(file).write_text(json.dumps(note), encoding="utf-8")
