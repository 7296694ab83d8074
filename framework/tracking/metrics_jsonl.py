"""Append-only files with one JSON object per line, each with a `step`. A kill at any byte does not corrupt them.

A row is written at once. A resume removes all rows after the checkpoint's step and an incomplete last line, so that no
step is missing and none appears twice. Each checkpoint records count and hash of the rows up to its step, so that a
resume detects missing or changed rows.
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
from framework.files import parse_json, write_atomic

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
        kept = [line for line, row in _complete_lines(path) if row["step"] <= step] if path.exists() else []
        if RowsRecord(len(kept), _hash(b"".join(kept)).hexdigest()) == self:
            return None
        if len(kept) == self.rows:
            return f"{path} holds other rows up to step {step} than were written"
        return f"{path} holds {len(kept)} rows up to step {step}, but {self.rows} were written"


class MetricsFile:
    """One file of rows, open for appending."""

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        """Opens the file and removes the rows after a step.

        Args:
            path: Path of the file. The file and its folder are created if missing.
            resume_step: Step up to which rows are kept; 0 empties the file.

        Raises:
            CheckpointError: A line other than the last is not a JSON object with an integer `step`, or the file cannot
                be written.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = _cut(path, resume_step) if path.exists() else b""
            self._num_rows, self._hash = kept.count(b"\n"), _hash(kept)
            # Without a buffer, closing the file after a write error does not try to write again.
            self._stream = path.open("ab", buffering=0)
        except OSError as error:
            raise _write_error(path, error) from error

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes one row. Numbers that JSON does not support (NaN, infinities) become null.

        Raises:
            CheckpointError: Writing failed. A part of the row may be in the file; the next start removes it.
        """
        line = json.dumps({name: _json_number(value) for name, value in row.items()}, allow_nan=False)
        written = line.encode() + b"\n"
        rest = memoryview(written)
        try:
            while rest:
                rest = rest[self._stream.write(rest) :]
        except OSError as error:
            raise _write_error(self.path, error) from error
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
            raise _write_error(self.path, error) from error
        return RowsRecord(self._num_rows, self._hash.hexdigest())

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        self._stream.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads all rows. An incomplete last line is ignored, and a missing file has no rows.

    Raises:
        CheckpointError: A line other than the last is not a JSON object with an integer `step`.
    """
    if not path.exists():
        return []
    return [row for _, row in _complete_lines(path)]


def _cut(path: Path, resume_step: int) -> bytes:
    """Truncates the file after the rows of a step and returns the kept bytes unchanged."""
    kept = b"".join(line for line, row in _complete_lines(path) if row["step"] <= resume_step)
    if kept != path.read_bytes():
        write_atomic(path, kept.decode())
    return kept


def _hash(rows: bytes) -> "hashlib.blake2b":
    return hashlib.blake2b(rows, digest_size=16)


def _complete_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
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
                f"{path}, line {number}: not a JSON object with an integer 'step'. Every row of this file must be one. "
                "Restore the file or start a new run.id."
            )
    return rows


def _write_error(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path} could not be written ({error}). A run needs all its rows. Free disk space or make the folder "
        "writable, and start again; the run resumes from its last checkpoint."
    )


def _json_number(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
