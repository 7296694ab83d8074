"""Files of vectors that several processes write in blocks of rows, and that a later start completes.

While the file is written, a folder beside it, OUTPUT.parts, holds its content, a record of what is computed, and a mark
for each complete block. A start with the same record continues, at any number of processes. The file gets its name
when all blocks are complete.
"""

import json
import os
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from framework.distributed.processes.agreement import first_rank_value, on_every_rank, on_first_rank
from framework.distributed.processes.environment import process_info
from framework.errors import ConfigError, DataError
from framework.files import read_json_object, replacing, sync_folder, write_atomic
from framework.inference.prediction_files import cell_text

VECTOR_SUFFIXES = (".npy", ".parquet")
BLOCK_ROWS = 4096
"""Rows of a block: what a killed process computes again at most."""
_RECORD_FILE = "record.json"
_COLUMN = "embedding"

T = TypeVar("T")

Kept = Sequence[Mapping[str, Any]]
"""Values of the input columns to keep, for each row of a block."""

Compute = Callable[[list[T], Callable[[int], None]], tuple[np.ndarray, Kept]]
"""Function from the rows of a block, and a callback for the number of rows that are done, to (rows, width) vectors."""


def holds_vectors(output: str | None) -> bool:
    """Returns True if the suffix of an output names a file of vectors."""
    return Path(output or "").suffix.lower() in VECTOR_SUFFIXES


class VectorFile(ABC):
    """A file of one vector per row, under construction. All processes share its folder.

    Args:
        output: Path of the file.
        num_rows: Number of rows of the file.
        width: Number of channels of a vector.

    Attributes:
        num_blocks: Number of blocks of `BLOCK_ROWS` rows; the last one may be shorter.
    """

    def __init__(self, output: Path, num_rows: int, width: int) -> None:
        self.output = Path(os.path.realpath(output))
        self.folder = self.output.with_name(self.output.name + ".parts")
        self.num_rows = num_rows
        self.width = width
        self.num_blocks = -(-num_rows // BLOCK_ROWS)

    def begin(self, record: Mapping[str, Any]) -> int:
        """Creates the folder, or continues the one of an earlier start with an equal record. One process calls it.

        Returns:
            Number of blocks that are complete.

        Raises:
            ConfigError: The folder cannot be created.
        """
        try:
            if self._earlier_record() != record:
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir()
                self._create()
                write_atomic(self.folder / _RECORD_FILE, json.dumps(record))
            for claim in self.folder.glob("*.claimed"):
                claim.unlink()
        except OSError as error:
            raise ConfigError(
                f"output={self.output} cannot be written ({error.strerror}). Its folder must exist, be writable and "
                "have free space. Correct this, or choose another path."
            ) from error
        return sum(self.is_complete(block) for block in range(self.num_blocks))

    def _earlier_record(self) -> dict[str, Any] | None:
        try:
            return read_json_object(self.folder / _RECORD_FILE)
        except (OSError, ValueError):
            return None

    def is_complete(self, block: int) -> bool:
        """Returns True if a block was written."""
        return self._path(block, "done").exists()

    def claim(self, block: int) -> bool:
        """Claims an incomplete block for this process; returns False if it is complete or another process has it."""
        if self.is_complete(block):
            return False
        try:
            self._path(block, "claimed").open("x").close()
        except FileExistsError:
            return False
        return True

    def write(self, block: int, vectors: np.ndarray, kept: Kept) -> None:
        """Writes a block to disk, and marks it as complete.

        Args:
            block: Index of the block.
            vectors: (rows, width) fp32. A row that cannot be predicted has NaN in all channels.
            kept: Values of the input columns to keep, for each row.

        Raises:
            DataError: The disk is full, or the folder was removed.
        """
        try:
            self._write(block, vectors, kept)
            self._path(block, "done").touch()
            sync_folder(self.folder)
        except OSError as error:
            raise self._error(error) from error

    def finish(self) -> None:
        """Replaces the output by the complete content, and removes the folder. One process calls it, after all others.

        Raises:
            DataError: The disk is full, or the folder was removed.
        """
        try:
            self._finish()
            shutil.rmtree(self.folder)
        except OSError as error:
            raise self._error(error) from error

    def _path(self, block: int, suffix: str) -> Path:
        return self.folder / f"{block:08d}.{suffix}"

    def _error(self, error: OSError) -> DataError:
        return DataError(
            f"{self.output} cannot be written ({error.strerror}). The complete blocks are in {self.folder}. Free disk "
            "space, and start the command again to continue."
        )

    @abstractmethod
    def _create(self) -> None: ...

    @abstractmethod
    def _write(self, block: int, vectors: np.ndarray, kept: Kept) -> None: ...

    @abstractmethod
    def _finish(self) -> None: ...


class VectorArray(VectorFile):
    """NumPy array (rows, width) fp32, of which each process maps the rows of its block into memory."""

    def _create(self) -> None:
        # The header states the shape. Rows that are not written take no space on disk.
        shape = self.num_rows, self.width
        np.lib.format.open_memmap(self.folder / "array.npy", "w+", np.float32, shape).flush()

    def _write(self, block: int, vectors: np.ndarray, kept: Kept) -> None:  # noqa: ARG002
        array = np.lib.format.open_memmap(self.folder / "array.npy", "r+")
        array[block * BLOCK_ROWS : block * BLOCK_ROWS + len(vectors)] = vectors
        array.flush()

    def _finish(self) -> None:
        (self.folder / "array.npy").replace(self.output)
        sync_folder(self.output.parent)


class VectorTable(VectorFile):
    """Parquet table with the column `embedding`, a row group per block; kept columns come first, as texts."""

    def _create(self) -> None:
        pass

    def _write(self, block: int, vectors: np.ndarray, kept: Kept) -> None:
        names = list(dict.fromkeys(name for row in kept for name in row))
        columns = {name: pa.array([cell_text(row.get(name)) for row in kept], pa.string()) for name in names}
        is_bad = np.isnan(vectors).all(axis=1)
        values = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
        columns[_COLUMN] = pa.FixedSizeListArray.from_arrays(values, self.width, mask=pa.array(is_bad))
        with replacing(self._path(block, "parquet")) as file:
            pq.write_table(pa.table(columns), file)

    def _finish(self) -> None:
        schema = pa.unify_schemas([pq.read_schema(self._path(block, "parquet")) for block in range(self.num_blocks)])
        with replacing(self.output) as file, pq.ParquetWriter(file, schema) as writer:
            for block in range(self.num_blocks):
                table = pq.read_table(self._path(block, "parquet"))
                missing = [name for name in schema.names if name not in table.schema.names]
                for name in missing:
                    table = table.append_column(name, pa.nulls(len(table), pa.string()))
                writer.write_table(table.select(schema.names))


def write_vectors(
    file: VectorFile,
    record: Mapping[str, Any],
    rows: Callable[[], Iterable[T]],
    compute: Compute[T],
    advance: Callable[[int], None],
) -> None:
    """Writes a file, or completes it after a stop; processes take its blocks in turn. Collective: all ranks must call.

    Args:
        file: File to write.
        record: Everything that determines its content, besides its number of rows and width.
        rows: Function that streams all rows, in order.
        compute: Computes the vectors of a block.
        advance: Callback for the number of rows that all processes have done, as far as this process knows.

    Raises:
        FrameworkError: A row, or the file, cannot be used.
    """
    shape = {"num_rows": file.num_rows, "width": file.width, "block_rows": BLOCK_ROWS}
    num_complete = first_rank_value(lambda: file.begin({**record, **shape}))
    if num_complete and process_info().rank == 0:
        sys.stderr.write(f"{file.folder}: {num_complete} of {file.num_blocks} blocks are complete, continuing\n")

    def write_blocks() -> None:
        stream = iter(rows())
        for block in range(file.num_blocks):
            own, first = list(islice(stream, BLOCK_ROWS)), block * BLOCK_ROWS
            if file.claim(block):
                advance(first)
                file.write(block, *compute(own, lambda done: advance(first + done)))  # noqa: B023  used at once
            advance(first + len(own))

    on_every_rank(write_blocks)
    on_first_rank(file.finish)
