"""Parquet shards on any file system of fsspec, addressed by (shard, row group, row) from their footers.

Only footers and the requested columns are fetched, so the shards take no space on the local disk.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from framework.data.reading.files import Reading
from framework.data.reading.remote_file import RangeFile, RemoteFiles, safe_name
from framework.data.reading.rows import Row, check_columns, rows_of_batches
from framework.data.reading.sources import matching_texts, needed_columns, texts_of_rows
from framework.errors import DataError, check_above_zero, check_at_least

_TAIL_BYTES = 64 * 2**10
_END = b"PAR1"
_FOOTERS_AT_ONCE = 16
_KEPT_FOOTER_BYTES = 64 * 2**20
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Address of a row group, with the data needed to detect a changed shard.

    Attributes:
        shard: Path or URL of the shard.
        number: Number of the row group in the shard, from 0.
        num_rows: Number of rows before any filter.
        num_bytes: Stored (compressed) size of the requested columns.
        footer: Hash of the shard's size and footer when it was indexed.
    """

    shard: str
    number: int
    num_rows: int
    num_bytes: int
    footer: str

    def __str__(self) -> str:
        return f"{safe_name(self.shard)}, row group {self.number}"


@dataclass(frozen=True, slots=True)
class _Footer:
    """Footer of a shard.

    Attributes:
        size: Size of the shard in bytes.
        num_bytes: Size of the footer in bytes.
        digest: Hash of the shard's size and footer.
        metadata: Content of the footer.
    """

    size: int
    num_bytes: int
    digest: str
    metadata: pq.FileMetaData


@dataclass(frozen=True)
class ParquetShards:
    """Parquet files by path or URL (http, s3, gs, hf, ...); each row's text is a document.

    Protocols other than http and hf need their own package of fsspec (s3fs, gcsfs, adlfs).

    Attributes:
        files: Path, glob or URL, or several; `@FILE` names a text file with one of these per line. Globs over http are
            not possible, since a web server does not list its files.
        text_column: Column that holds the text.
        where: Required values {column: value}; rows without all of them are skipped.
        retries: Number of retries of a failed request, after 0.5, 1, 2, ... and at most 30 seconds.
        timeout_seconds: Timeout of one request, which fetches at most 8 MiB.
        storage_options: Options for fsspec's file system; never shown, and not part of the identity.
    """

    files: str | Sequence[str]
    text_column: str = "text"
    where: Mapping[str, object] | None = None
    retries: int = 5
    timeout_seconds: float = 60.0
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)
    _opened: dict[str, _Footer] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_at_least("retries", self.retries, 0, "Use 0 to disable retries.")
        check_above_zero("timeout_seconds", self.timeout_seconds, 60)

    def paths(self) -> list[str]:
        """Returns the shards' paths or URLs, sorted within each glob.

        Raises:
            DataError: An entry of `files` matches nothing or cannot be listed.
        """
        return list(self._paths)

    def groups(self) -> list[RowGroup]:
        """Returns all row groups, in order; reads the footers of all shards, once per process.

        Raises:
            DataError: A shard cannot be reached, is truncated or not a Parquet file, or lacks a requested column; or no
                shard has a row.
        """
        return list(self._groups)

    def num_bytes(self) -> int:
        """Returns the bytes that one pass fetches and reports to `Reading.advance`, without footers."""
        return sum(group.num_bytes for group in self._groups)

    def fingerprint(self) -> str:
        """Returns a hash of the shards' names below their common folder, their sizes and footers; reads no data.

        A footer holds row counts, byte sizes and statistics of each row group.
        """
        digests = dict.fromkeys(self._paths, "")
        digests.update({group.shard: group.footer for group in self._groups})
        contents = hashlib.blake2b(digest_size=16)
        for name, digest in zip(_relative([safe_name(path) for path in digests]), digests.values(), strict=True):
            contents.update(f"{name}\0{digest}\n".encode())
        return contents.hexdigest()

    def read(self, reading: Reading) -> Iterator[str]:
        """Yields the texts of all shards.

        Raises:
            DataError: `groups` or `read_group` raises it, or no row matches `where`.
        """
        rows = (row for group in self._groups for row in self._rows(group, reading))
        name = f"the list of shards that starts with {safe_name(self._paths[0])}"
        yield from texts_of_rows(name, rows, self.text_column, self.where)

    def read_group(self, group: RowGroup, reading: Reading) -> Iterator[str]:
        """Yields the texts of one row group; needs no other shard and no call of `groups` before.

        Raises:
            DataError: The shard cannot be reached, is damaged or changed since it was indexed, a column holds neither
                text nor numbers, or a value is missing and `reading` does not skip the row.
        """
        yield from matching_texts(self._rows(group, reading), self.text_column, self.where)

    @cached_property
    def _paths(self) -> list[str]:
        return self._remote.find(self.files)

    @cached_property
    def _groups(self) -> list[RowGroup]:
        # Index the first shard alone, so that an error common to all of them is detected without many requests.
        first, *others = self._paths
        groups = self._index(first)
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
            for groups_of_shard in pool.map(self._index, others):
                groups += groups_of_shard
        if not any(group.num_rows for group in groups):
            raise DataError(
                f"{', '.join(map(safe_name, self._paths[:3]))}: no shard has rows. At least one must. Give other files."
            )
        return groups

    @property
    def _remote(self) -> RemoteFiles:
        return RemoteFiles(self.retries, self.timeout_seconds, self.storage_options or {})

    @property
    def _columns(self) -> list[str]:
        return needed_columns(self.text_column, self.where)

    def _index(self, shard: str) -> list[RowGroup]:
        footer = _read_footer(self._remote, shard)
        _check_schema(shard, footer.metadata.schema, self._columns)
        leaves = [footer.metadata.schema.column(index).path for index in range(footer.metadata.num_columns)]
        indices = [index for index, leaf in enumerate(leaves) if leaf in self._columns]
        groups = []
        for number in range(footer.metadata.num_row_groups):
            row_group = footer.metadata.row_group(number)
            num_bytes = sum(row_group.column(index).total_compressed_size for index in indices)
            groups.append(RowGroup(shard, number, row_group.num_rows, num_bytes, footer.digest))
        return groups

    def _rows(self, group: RowGroup, reading: Reading) -> Iterator[Row]:
        if group.num_rows:
            footer = self._open(group)
            file = RangeFile(self._remote, group.shard, footer.size)
            try:
                batches = pq.ParquetFile(
                    file, metadata=footer.metadata, pre_buffer=False, page_checksum_verification=True
                ).iter_batches(_ROWS_AT_ONCE, row_groups=[group.number], columns=self._columns, use_threads=False)
                yield from rows_of_batches(str(group), batches, self._columns, reading)
            except (pa.ArrowException, OSError, DataError) as error:
                if self._has_changed(group):
                    raise _changed(group) from error
                if isinstance(error, DataError):
                    raise
                raise _damaged(str(group), error) from error
        reading.advance(group.num_bytes)

    def _open(self, group: RowGroup) -> _Footer:
        """Returns the footer of the group's shard; caches the most recently used footers."""
        footer = self._opened.pop(group.shard, None) or _read_footer(self._remote, group.shard)
        self._opened[group.shard] = footer
        if footer.digest != group.footer:
            raise _changed(group)
        while len(self._opened) > 1 and sum(f.num_bytes for f in list(self._opened.values())) > _KEPT_FOOTER_BYTES:
            self._opened.pop(next(iter(self._opened)), None)
        return footer

    def _has_changed(self, group: RowGroup) -> bool:
        """Returns whether the current footer, requested once, differs; False if the request fails."""
        try:
            return _read_footer(replace(self._remote, retries=0), group.shard).digest != group.footer
        except DataError:
            return False


def _read_footer(remote: RemoteFiles, shard: str) -> _Footer:
    size = remote.size(shard)
    tail = remote.read(shard, max(0, size - _TAIL_BYTES), size)
    # A footer ends with its own length in four bytes and the end mark.
    num_bytes = int.from_bytes(tail[-8:-4], "little") + 8
    if not tail.endswith(_END) or num_bytes > size:
        raise DataError(
            f"{safe_name(shard)} does not end like a Parquet file. It is truncated or of another kind. Fetch or write "
            "it again, or leave it out."
        )
    if num_bytes > len(tail):
        tail = remote.read(shard, size - num_bytes, size - len(tail)) + tail
    footer = tail[-num_bytes:]
    try:
        metadata = pq.read_metadata(pa.BufferReader(footer))
    except (pa.ArrowException, OSError) as error:
        raise _damaged(f"{safe_name(shard)}, footer,", error) from error
    digest = hashlib.blake2b(footer + size.to_bytes(8, "little"), digest_size=16).hexdigest()
    return _Footer(size, num_bytes, digest, metadata)


def _check_schema(shard: str, schema: pq.ParquetSchema, columns: Sequence[str]) -> None:
    try:
        fields = schema.to_arrow_schema()
    except (pa.ArrowException, OSError) as error:
        raise _damaged(f"{safe_name(shard)}, schema,", error) from error
    check_columns(safe_name(shard), "schema", columns, fields.names)
    for column in columns:
        kind = fields.field(column).type
        if pa.types.is_nested(kind):
            raise DataError(
                f"{safe_name(shard)}: column {column!r} is of type {kind}. It must hold text or numbers. Name another "
                "column."
            )


def _changed(group: RowGroup) -> DataError:
    return DataError(f"{safe_name(group.shard)} has changed since it was indexed. Run framework.prepare again.")


def _damaged(location: str, error: BaseException) -> DataError:
    return DataError(f"{location} is damaged ({' '.join(str(error).split())}). Fetch or write it again.")


def _relative(names: Sequence[str]) -> list[str]:
    """Returns the names without the folders that all of them share."""
    folders = [name.split("/")[:-1] for name in names]
    shared = 0
    for level in zip(*folders, strict=False):
        if len(set(level)) > 1:
            break
        shared += 1
    return ["/".join(name.split("/")[shared:]) for name in names]
