"""Files of mined rows: parts that each process writes, and the output that joins them."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from framework.distributed.processes.agreement import on_every_rank
from framework.errors import ConfigError, DataError
from framework.files import replacing, write_atomic
from framework.inference.prediction_files import json_lines


@dataclass
class MinedCounts:
    """Counts of the mined rows.

    Attributes:
        rows: Number of rows.
        negatives: Number of negatives of all rows.
        without: Number of rows without any negative.
        fewer: Number of rows with fewer negatives than requested, including those without any.
    """

    rows: int = 0
    negatives: int = 0
    without: int = 0
    fewer: int = 0


def check_output(output: Path) -> None:
    """Checks that the output can be written, before anything is encoded.

    Raises:
        ConfigError: Its folder does not exist or is not writable, or it is a folder.
    """
    probe = output.with_name(f".{output.name}.probe")
    try:
        if output.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"output={output} cannot be written ({error.strerror}). Its folder must exist and be writable. Choose "
            "another path."
        ) from error


@dataclass
class RowProgress:
    """Number of rows that all processes have mined. Within a part it is estimated from this process.

    Attributes:
        advance: Callback for the number of rows and their total.
        num_rows: Number of all rows.
        rows_at_once: Number of rows of a part.
        size: Number of processes, which mine a part each at the same time.
    """

    advance: Callable[[int, int], None]
    num_rows: int
    rows_at_once: int
    size: int
    _parts: int = 0

    def after(self, parts: int) -> None:
        """Reports that the first parts exist."""
        self._parts = parts
        self.within(0, 1)

    def within(self, done: int, total: int) -> None:
        """Reports that this process has done a share of its part."""
        rows = int((self._parts + done / total * self.size) * self.rows_at_once)
        self.advance(min(rows, self.num_rows), self.num_rows)


def write_parts(
    paths: Sequence[Path],
    rows_of: Callable[[int], list[dict[str, Any]]],
    rank: int,
    size: int,
    advance: Callable[[int], None],
) -> None:
    """Writes the parts that do not exist yet. Collective: all ranks must call.

    Args:
        paths: File of each part.
        rows_of: Function from the index of a part to its rows.
        rank: Rank of this process.
        size: Number of processes.
        advance: Callback for the number of parts that exist.

    Raises:
        DataError: A part cannot be written.
    """

    def write_one(number: int) -> None:
        if number < len(paths) and not paths[number].exists():
            text = "".join(json_lines(rows_of(number)))
            try:
                write_atomic(paths[number], text)
            except OSError as error:
                raise _no_room(paths[number], error) from error

    for first in range(0, len(paths), size):
        # Ranks wait for each other after each part, because the wait at the end has a limit.
        on_every_rank(partial(write_one, first + rank))
        advance(min(first + size, len(paths)))


def join_parts(paths: Sequence[Path], output: Path, num_negatives: int) -> MinedCounts:
    """Writes the output from all parts, in their order.

    Args:
        paths: File of each part.
        output: JSONL or Parquet file to write.
        num_negatives: Number of negatives that were requested.

    Raises:
        DataError: The output cannot be written.
    """
    counts = MinedCounts()
    writer: pq.ParquetWriter | None = None
    try:
        with replacing(output) as file:
            for path in paths:
                content = path.read_bytes()
                rows = [json.loads(line) for line in content.splitlines()]
                sizes = [len(row["negatives"]) for row in rows]
                counts.rows += len(rows)
                counts.negatives += sum(sizes)
                counts.without += sizes.count(0)
                counts.fewer += sum(size < num_negatives for size in sizes)
                if output.suffix.lower() != ".parquet":
                    file.write(content)
                    continue
                schema = _schema("scores" in rows[0])
                writer = writer or pq.ParquetWriter(file, schema)
                writer.write_table(pa.Table.from_pylist(rows, schema))
            if writer is not None:
                writer.close()
    except OSError as error:
        raise _no_room(output, error) from error
    return counts


def delete_folder(folder: Path) -> None:
    """Deletes a folder of parts or vectors; a folder that cannot be deleted is left."""
    shutil.rmtree(folder, ignore_errors=True)


def _schema(has_scores: bool) -> pa.Schema:
    fields = [("query", pa.string()), ("positive", pa.string()), ("negatives", pa.list_(pa.string()))]
    return pa.schema([*fields, *([("scores", pa.list_(pa.float64()))] if has_scores else [])])


def _no_room(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path} cannot be written ({error.strerror}). The mined rows were not saved. Free disk space, and start "
        "again: encoded texts are kept."
    )
