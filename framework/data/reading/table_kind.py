"""Detects the kind of a table: from its name, then its content, then the format's default."""

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from framework.data.reading.files import COMPRESSIONS, HEAD_BYTES, head_of, kind_of
from framework.data.reading.table_format import TableFormat
from framework.errors import DataError
from framework.files import parse_json

Kind = Literal["csv", "tsv", "jsonl", "json", "parquet", "arrow", "folder"]

KIND_OF_SUFFIX: dict[str, Kind] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_BINARY_KINDS: dict[bytes, Kind] = {b"PAR1": "parquet", b"ARROW1": "arrow"}
# First line of JSON that spans several lines.
_OPENING = re.compile(r"""\[|\{|\[\s*[\[{"].*|\{\s*".*""")


@dataclass(frozen=True, slots=True)
class DetectedKind:
    """A detected kind of table.

    Attributes:
        kind: Kind of the file.
        reason: Reason, which completes a sentence such as "read as CSV".
    """

    kind: Kind
    reason: str


def detect_kind(path: Path, table_format: TableFormat) -> DetectedKind:
    """Detects the kind of a file or folder.

    Raises:
        DataError: The file cannot be read, or its kind cannot be detected.
    """
    if path.is_dir():
        return DetectedKind("folder", "because it is a folder")
    suffix = kind_of(path)
    kind = KIND_OF_SUFFIX.get(suffix)
    if kind in _BINARY_KINDS.values() and path.suffix.lower() in COMPRESSIONS:
        raise DataError(
            f"{path} is a {suffix[1:]} file within {path.suffix}. Only text may be compressed as a whole. Decompress "
            "the file."
        )
    if kind == "json":
        kind = json_kind(path, table_format)
    if kind is not None:
        return DetectedKind(kind, f"because its name ends in {suffix}")
    head = head_of(path)
    kind = next((each for mark, each in _BINARY_KINDS.items() if head.startswith(mark)), None)
    kind = kind or json_kind(path, table_format)
    if kind is None:
        kind = _kind_of_text(head_lines(head, table_format), table_format.delimiter)
    if kind is not None:
        return DetectedKind(kind, "because of its content, since its name has no known suffix")
    if table_format.kind is not None:
        return DetectedKind(table_format.kind, "because of format.kind, since its name and content do not determine it")
    raise DataError(
        f"{path} is of no known kind by its name and its first lines. Names end in {', '.join(KIND_OF_SUFFIX)}; "
        f"names of text files may continue with {' or '.join(COMPRESSIONS)}. Rename the file, or set format.kind, and "
        "format.delimiter if it is not a comma or tab."
    )


def json_kind(path: Path, table_format: TableFormat) -> Literal["json", "jsonl"] | None:
    """Detects whether a file is JSON: by its suffix or, for an unknown suffix, by its content.

    A file with one JSON value per line is "jsonl" even if its name ends in .json.

    Raises:
        DataError: The file cannot be read.
    """
    kind = KIND_OF_SUFFIX.get(kind_of(path))
    if kind == "jsonl":
        return kind
    if kind not in ("json", None) or path.is_dir():
        return None
    lines = head_lines(head_of(path), table_format)
    if kind is None and not (lines and _OPENING.fullmatch(lines[0].strip())):
        return None
    return "jsonl" if _is_json_lines(lines) else "json"


def head_lines(head: bytes, table_format: TableFormat) -> list[str]:
    """Decodes the complete lines in the first bytes of a file, without line ends; invalid bytes are replaced."""
    encoding = "utf-8-sig" if table_format.codec == "utf-8" else table_format.codec
    lines = head.decode(encoding, "replace").split("\n")
    if len(head) >= HEAD_BYTES and len(lines) > 1:
        lines.pop()
    return [line.removesuffix("\r") for line in lines if line.strip()]


def _kind_of_text(lines: list[str], delimiter: str | None) -> Kind | None:
    if not lines:
        return None
    if delimiter is not None:
        return "csv"
    has_tabs = len({line.count("\t") for line in lines}) == 1 and "\t" in lines[0]
    has_commas = _has_commas(lines)
    if has_tabs == has_commas:
        return None
    return "tsv" if has_tabs else "csv"


def _is_json_lines(lines: list[str]) -> bool:
    return len(lines) > 1 and _is_json(lines[0]) and _is_json(lines[1])


def _is_json(line: str) -> bool:
    try:
        parse_json(line)
    except ValueError:
        return False
    return True


def _has_commas(lines: list[str]) -> bool:
    """Returns True if all lines have the same number of fields as CSV, and more than one."""
    csv.field_size_limit(2**31 - 1)
    try:
        counts = {len(fields) for fields in csv.reader(lines, strict=True) if fields}
    except csv.Error:
        return False
    return len(counts) == 1 and counts != {1}
