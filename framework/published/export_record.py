"""Reads cloze.json, the record of an export: encoder, task, and the checksums of the files that Cloze reads."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from framework.errors import CheckpointError
from framework.files import TOKENIZER_FILES, checksum
from framework.published.files import (
    CONFIG_FILE,
    DENSE_FILE,
    EXPORT_RECORD_FILE,
    EXTRA_WEIGHTS_FILE,
    WEIGHTS_FILE,
    read_json,
)

FORMAT = 1
CHECKSUMS_KEY = "blake2b"
_READ_FILES = {CONFIG_FILE, WEIGHTS_FILE, EXTRA_WEIGHTS_FILE, DENSE_FILE, *TOKENIZER_FILES}


def checksums_of(folder: Path, task_files: Iterable[str]) -> dict[str, str]:
    """Returns the checksums of the files that Cloze reads from a new export; all others may be edited by hand.

    Args:
        folder: Folder of the export.
        task_files: Names of further files that the task reads.
    """
    names = _READ_FILES | set(task_files)
    return {name: checksum(folder / name) for name in sorted(names) if (folder / name).is_file()}


def read_export_record(folder: Path) -> dict[str, Any]:
    """Reads the record of an export and compares its checksums. Returns an empty dict if there is no record.

    Raises:
        CheckpointError: The record is damaged, or a file differs from the one that was exported.
    """
    file = folder / EXPORT_RECORD_FILE
    if not file.is_file():
        return {}
    record = read_json(file)
    if record.get("format") != FORMAT:
        raise CheckpointError(
            f"{file}: format={record.get('format')!r} is unknown. This version of Cloze reads {FORMAT}. Export the "
            "model again."
        )
    for name, kind in (("head", str), ("task", Mapping), ("encoder", Mapping), (CHECKSUMS_KEY, Mapping)):
        if not isinstance(record.get(name), kind | None):
            expected = "text" if kind is str else "an object"
            raise CheckpointError(f"{file} has {name}={record.get(name)!r}, not {expected}. Export the model again.")
    for name, expected in (record.get(CHECKSUMS_KEY) or {}).items():
        _compare(folder, name, expected)
    return record


def _compare(folder: Path, name: str, expected: object) -> None:
    path, record = folder / name, folder / EXPORT_RECORD_FILE
    if not path.is_file():
        # These files are not downloaded from the Hugging Face Hub. A task reports one that it needs and cannot find.
        if name not in _READ_FILES:
            return
        problem = "is missing"
    elif checksum(path) != expected:
        problem = "has changed since its export (its checksum differs)"
    else:
        return
    raise CheckpointError(
        f"{path} {problem}. Files that {EXPORT_RECORD_FILE} lists under {CHECKSUMS_KEY!r} must stay as exported. Copy "
        f"or export the model again. If you changed the file on purpose, remove {name!r} from {CHECKSUMS_KEY!r} in "
        f"{record}."
    )
