"""Writes small Parquet shards with known texts, and reads them."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from framework.data.reading.files import Reading
from framework.data.reading.shards import ParquetShards, RowGroup
from tests.support.data.range_server import RangeServer

NAMES = ("a/0.parquet", "a/1.parquet", "b/2.parquet")
ROWS_A_GROUP = (4, 3, 0, 5)
PADDING = "x" * 20_000


def text_of(shard: int, row: int) -> str:
    return f"shard {shard}, row {row}"


def texts_of_shard(shard: int) -> list[str]:
    return [text_of(shard, row) for row in range(sum(ROWS_A_GROUP))]


TEXTS = [text for shard in range(len(NAMES)) for text in texts_of_shard(shard)]


def write_shard(file: Path, shard: int, compression: str = "snappy", start: int = 0) -> None:
    """Writes row groups of `ROWS_A_GROUP` rows, one of them empty. Column `padding` is large, `nested` is nested."""
    file.parent.mkdir(parents=True, exist_ok=True)
    columns = {"padding": pa.string(), "nested": pa.list_(pa.struct({"a": pa.int64()})), "text": pa.string()}
    schema = pa.schema([*columns.items(), ("parity", pa.int64())])
    with pq.ParquetWriter(file, schema, compression=compression, use_dictionary=False) as writer:
        row = start
        for count in ROWS_A_GROUP:
            rows = range(row, row + count)
            values = {
                "padding": [f"{number}{PADDING}" for number in rows],
                "nested": [[{"a": number}] for number in rows],
                "text": [text_of(shard, number) for number in rows],
                "parity": [number % 2 for number in rows],
            }
            writer.write_table(pa.table(values, schema=schema), row_group_size=max(count, 1))
            row += count


def over_http(server: RangeServer, names: tuple[str, ...] = NAMES, **options: object) -> ParquetShards:
    return ParquetShards([server.url(name) for name in names], **options)


def texts_of(source: ParquetShards, group: RowGroup | None = None) -> list[str]:
    return list(source.read(Reading()) if group is None else source.read_group(group, Reading()))
