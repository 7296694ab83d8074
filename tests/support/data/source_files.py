"""Writes compressed and plain files and reads the texts of a source."""

import gzip
from pathlib import Path

import pyarrow as pa

from framework.data.reading.files import Reading


def write(path: Path, content: bytes) -> Path:
    """Writes content, with the compression that the file name's suffix names."""
    if path.suffix.lower() == ".gz":
        content = gzip.compress(content)
    elif path.suffix.lower() == ".zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(content)
        content = sink.getvalue().to_pybytes()
    path.write_bytes(content)
    return path


def texts_of(source, reading=None) -> list[str]:
    return list(source.read(reading or Reading()))
