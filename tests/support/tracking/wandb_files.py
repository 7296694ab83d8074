"""Reads an offline `.wandb` file: protobuf records in a log of LevelDB's format with a header of 7 bytes."""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_BLOCK_BYTES = 32768
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass
class Segment:
    """Records that one start of a run has written."""

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    num_system_rows: int = 0
    exit_code: int | None = None


def read_segments(run_folder: Path) -> list[Segment]:
    """Returns all segments of a run folder, in the order of their starts."""
    return [read_segment(path) for path in sorted((run_folder / "wandb").glob("offline-run-*/*.wandb"))]


def read_segment(path: Path) -> Segment:
    segment = Segment()
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            segment.run = record.run
            segment.config |= _values(record.run.config.update)
        elif kind == "config":
            segment.config |= _values(record.config.update)
        elif kind == "history":
            segment.history.append(_values(record.history.item))
        elif kind == "summary":
            segment.summary |= _values(record.summary.update)
        elif kind == "artifact":
            segment.artifacts.append(record.artifact)
        elif kind == "request" and record.request.HasField("log_artifact"):
            segment.artifacts.append(record.request.log_artifact.artifact)
        elif kind == "stats":
            segment.num_system_rows += 1
        elif kind == "exit":
            segment.exit_code = record.exit.exit_code
    return segment


def _values(items: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in items:
        *path, name = item.nested_key or [item.key]
        inside = values
        for part in path:
            inside = inside.setdefault(part, {})
        inside[name] = json.loads(item.value_json)
    return values


def _records(content: bytes) -> Iterator[bytes]:
    identity, magic, _ = struct.unpack("<4sHB", content[:7])
    assert (identity, magic) == (b":W&B", 0xBEE1)
    offset, parts = 7, b""
    while offset < len(content):
        left = _BLOCK_BYTES - offset % _BLOCK_BYTES
        if left < 7:
            offset += left
            continue
        checksum, length, kind = struct.unpack("<IHB", content[offset : offset + 7])
        data = content[offset + 7 : offset + 7 + length]
        assert checksum == zlib.crc32(data, zlib.crc32(bytes([kind])))
        offset += 7 + length
        parts = data if kind in (_FULL, _FIRST) else parts + data
        if kind in (_FULL, _LAST):
            yield parts
