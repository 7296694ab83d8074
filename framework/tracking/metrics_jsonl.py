"""Append-only files of one JSON object a line, each with a `step`, that survive being killed at any byte.

A row is written at once. After a resume everything past the checkpoint's step is cut, and so is a last
line that was torn: no step is missing and none appears twice. Each checkpoint records count and hash of the rows up to
its step, so that a resume detects missing or changed rows.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.errors import CheckpointError
from framework.files import parse_json, write_whole

METRICS_FILE, PERF_FILE = "metrics.jsonl", "perf.jsonl"


@dataclass(frozen=True)
class RowsRecord:
    """Record of the rows of a file up to a step.

    Attributes:
        rows: Number of rows.
        blake2b: BLAKE2b hash of their bytes (RFC 7693), 16 bytes in hexadecimal.
    """

    rows: int
    blake2b: str

    def problem_of(self, path: Path, step: int) -> str | None:
        """Compares the rows of a file up to a step with this record; returns a description of the problem, or None.

        Raises:
            CheckpointError: A line other than the last is not a JSON object with an integer `step`.
        """
        kept = [line for line, row in _whole_lines(path) if row["step"] <= step] if path.exists() else []
        if RowsRecord(len(kept), _hash(b"".join(kept)).hexdigest()) == self:
            return None
        if len(kept) == self.rows:
            return f"{path} holds other rows up to step {step} than were written"
        return f"{path} holds {len(kept)} rows up to step {step}, but {self.rows} were written"


class MetricsFile:
    """One file of rows, open for appending."""

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        """Opens the file and cuts what lies past a step.

        Args:
            path: The file; it and its folder are made where missing.
            resume_step: Rows with a larger step are removed. 0 empties the file.

        Raises:
            CheckpointError: A line other than the last is not a JSON object with an integer `step`; or the disk
                refused.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = _cut(path, resume_step) if path.exists() else b""
            self._num_rows, self._hash = kept.count(b"\n"), _hash(kept)
            # Without a buffer nothing is left over that closing the file would try to write once more.
            self._stream = path.open("ab", buffering=0)
        except OSError as error:
            raise _refusal(path, error) from error

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes one row; numbers that JSON does not have (NaN, infinities) become null.

        Raises:
            CheckpointError: The disk refused. A part of the row may be there, which the next start cuts.
        """
        line = json.dumps({name: _json_number(value) for name, value in row.items()}, allow_nan=False)
        written = line.encode() + b"\n"
        rest = memoryview(written)
        try:
            while rest:
                rest = rest[self._stream.write(rest) :]
        except OSError as error:
            raise _refusal(self.path, error) from error
        self._num_rows += 1
        self._hash.update(written)

    def record(self) -> RowsRecord:
        """Flushes the file to disk and returns the record of its rows.

        Raises:
            CheckpointError: Flushing failed.
        """
        try:
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise _refusal(self.path, error) from error
        return RowsRecord(self._num_rows, self._hash.hexdigest())

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        self._stream.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads all rows; a torn last line is left out, a missing file has none.

    Raises:
        CheckpointError: A line other than the last is not a JSON object with an integer `step`.
    """
    if not path.exists():
        return []
    return [row for _, row in _whole_lines(path)]


def _cut(path: Path, resume_step: int) -> bytes:
    """Truncates the file after the rows of a step and returns these rows; their bytes are unchanged."""
    kept = b"".join(line for line, row in _whole_lines(path) if row["step"] <= resume_step)
    if kept != path.read_bytes():
        write_whole(path, kept.decode())
    return kept


def _hash(rows: bytes) -> "hashlib.blake2b":
    return hashlib.blake2b(rows, digest_size=16)


def _whole_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    lines = path.read_bytes().splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines, start=1):
        is_last = number == len(lines)
        if is_last and not line.endswith(b"\n"):
            break
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append((line, row))
        elif not is_last:
            raise CheckpointError(
                f"{path}, line {number}: not a JSON object with an integer 'step', as every row of this file is; "
                f"restore the file or start a new run.id."
            )
    return rows


def _refusal(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path} could not be written: the disk refused ({error}). Make room, or make the folder writable, and start "
        "again: the run goes on from its last checkpoint."
    )


def _json_number(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
