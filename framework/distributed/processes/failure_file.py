"""Reader of failure.json, the newest failure of a run, in the logs folder. It does not import torch."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from framework.files import parse_json

FAILURE_FILE = "failure.json"


@dataclass(frozen=True)
class RecordedFailure:
    """Newest failure that a run recorded.

    Attributes:
        seconds: Time of the failure in seconds since the epoch, by the clock of the rank that wrote the file.
        why: Error with its kind, rank and step, in one line.
    """

    seconds: float
    why: str


def read_failure(logs: Path) -> RecordedFailure | None:
    """Reads failure.json in the logs of a run; None if it is missing or damaged."""
    try:
        record = parse_json((logs / FAILURE_FILE).read_text(encoding="utf-8"))
        return RecordedFailure(datetime.fromisoformat(record["time"]).timestamp(), str(record["why"]))
    except (OSError, ValueError, LookupError, TypeError, OverflowError):
        return None
