"""Token store: an Arrow file in the format of `datasets`, one row per document, read through memory-mapped buffers.

A store folder holds data.arrow (columns input_ids, sentence_lengths, text_hash; `datasets.Dataset.from_file` opens it
too), tokenizer/, store.json (counts, settings, fingerprint), the data card, and COMPLETE. COMPLETE is written last, and
the folder gets its final name after that. A streamed store has no ids; they are read from shards when needed.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from framework import ragged
from framework.data.store.row_groups import RowGroupEncoder
from framework.data.store.stored_batch import StoredBatch
from framework.data.store.streamed_tokens import StreamedTokens
from framework.data.store.writer import BATCHES_FILE, COMPLETE_FILE, DATA_FILE, FORMAT, META_FILE, TOKENIZER_FOLDER
from framework.errors import DataError
from framework.files import read_json_object

CACHE_BYTES = 2**30


class TokenReader(Protocol):
    """Reader of the ids of a store. Token offsets count over the whole store, document after document."""

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Copies ranges of tokens, none of which crosses the end of its document; see `TokenStore.gather`."""

    def read_ahead(self, start: int, stop: int) -> None:
        """Prefetches the tokens from offset `start` to `stop` (exclusive) and returns immediately."""


class MappedTokens:
    """Token reader over the memory-mapped data.arrow, which it treats as one array of ids.

    The ids of a record batch are contiguous. A token offset in the store is therefore an offset in the file plus a
    constant shift per record batch. No index of rows and no copy is needed.

    Args:
        file: Path of data.arrow.
        dtype: Data type of the ids.
        batch_starts: (record batches,) int64 token offset of each.
        ids_offsets: (record batches,) int64 byte offset of the ids of each in the file.
    """

    def __init__(self, file: Path, dtype: np.dtype, batch_starts: np.ndarray, ids_offsets: np.ndarray) -> None:
        self._path = file
        self._ids = np.memmap(file, dtype, "r", shape=(file.stat().st_size // dtype.itemsize,)).view(np.ndarray)
        self._batch_starts = batch_starts
        self._shifts = ids_offsets // dtype.itemsize - batch_starts

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Copies ranges of tokens; see `TokenStore.gather`."""
        batches = np.searchsorted(self._batch_starts, starts, side="right") - 1
        ends = np.cumsum(lengths)
        offsets = np.repeat(starts + self._shifts[batches] - (ends - lengths), lengths)
        offsets += np.arange(len(offsets))
        return self._ids.take(offsets)

    def read_ahead(self, start: int, stop: int) -> None:
        """Asks the operating system to read the range in large pieces, instead of page by page on access."""
        if not hasattr(os, "posix_fadvise"):
            return
        first, last = np.searchsorted(self._batch_starts, [start, max(stop - 1, start)], side="right") - 1
        begin, end = (
            (start + self._shifts[first]) * self._ids.itemsize,
            (stop + self._shifts[last]) * self._ids.itemsize,
        )
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, int(begin), int(end - begin), os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)


class TokenStore:
    """Token store that is open for reading. The time to open it does not grow with the number of documents.

    Args:
        folder: Folder of the store.
        meta: Content of store.json.
        table: Content of batches.npy.
        cache_bytes: Memory limit for streamed ids.
        storage_options: Options for the file systems of streamed shards.

    Attributes:
        fingerprint: Hash of tokens, boundaries and tokenizer.
        num_tokens: Number of tokens, special ones not counted.
        batch_starts: (record batches,) int64 token offset of each.
        tokens: Reader of the ids.
    """

    def __init__(
        self,
        folder: Path,
        meta: dict[str, Any],
        table: np.ndarray,
        cache_bytes: int,
        storage_options: Mapping[str, Any] | None,
    ) -> None:
        self.folder = folder
        self.meta = meta
        self.fingerprint: str = meta["fingerprint"]
        self.num_tokens = int(table[:, 0].sum())
        self.batch_starts = ragged.starts(table[:, 0])
        self._mapped = pa.memory_map(str(folder / DATA_FILE)).read_buffer()
        self._schema = pa.ipc.read_schema(pa.BufferReader(self._mapped))
        self._offsets = table[:, 1]
        self.tokens: TokenReader
        if self.is_streamed:
            encode = RowGroupEncoder(folder, self.batch, folder / TOKENIZER_FOLDER, storage_options)
            self.tokens = StreamedTokens(encode, self.batch_starts, table[:, 0], np.dtype(np.int32), cache_bytes)
        else:
            dtype = np.dtype(self._schema.field("input_ids").type.value_type.to_pandas_dtype())
            self.tokens = MappedTokens(folder / DATA_FILE, dtype, self.batch_starts, table[:, 2])

    @classmethod
    def open(
        cls, folder: str | Path, cache_bytes: int = CACHE_BYTES, storage_options: Mapping[str, Any] | None = None
    ) -> "TokenStore":
        """Opens a complete store.

        Args:
            folder: Folder of the store.
            cache_bytes: Memory limit for streamed ids.
            storage_options: Options for the file systems of streamed shards.

        Raises:
            DataError: The store does not exist, is incomplete or damaged, or has another format.
        """
        folder = Path(folder)
        if not (folder / COMPLETE_FILE).is_file():
            state = "is not complete" if folder.is_dir() else "does not exist"
            raise DataError(
                f"the token store {folder} {state}. A run requires a complete one. Build it with framework.prepare."
            )
        meta = _read_meta(folder)
        try:
            size = (folder / DATA_FILE).stat().st_size
            if size != meta["data_bytes"]:
                raise ValueError(f"{DATA_FILE} has {size} bytes instead of {meta['data_bytes']}")
            return cls(folder, meta, np.load(folder / BATCHES_FILE), cache_bytes, storage_options)
        except (OSError, ValueError, pa.ArrowInvalid) as error:
            raise _damaged(folder, error) from error

    @property
    def is_streamed(self) -> bool:
        """True if the ids are read from shards instead of the store."""
        return self.meta.get("streamed", False) is True

    @property
    def num_documents(self) -> int:
        """Number of documents."""
        return int(self.meta["counts"]["documents"])

    @property
    def sources(self) -> dict[str, int]:
        """Number of documents of each source, in the order of the store."""
        return {source["name"]: source["documents"] for source in self.meta["sources"]}

    def batches(self) -> Iterator[StoredBatch]:
        """Yields the boundaries of the documents, one record batch at a time."""
        return (self.batch(number) for number in range(len(self.batch_starts)))

    def batch(self, number: int) -> StoredBatch:
        """Returns the boundaries of the documents of one record batch."""
        message = pa.ipc.read_message(self._mapped.slice(self._offsets[number]))
        batch = pa.ipc.read_record_batch(message, self._schema)
        lengths = batch.column("sentence_lengths")
        streamed = self.is_streamed
        return StoredBatch(
            lengths.flatten().to_numpy(),
            np.diff(lengths.offsets.to_numpy()).astype(np.int64),
            batch.column("text_hash").to_numpy(),
            batch.column("group")[0].as_py() if streamed else None,
            batch.column("row").to_numpy() if streamed else None,
        )

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Copies ranges of tokens, none of which crosses the end of its document.

        Args:
            starts: (ranges,) token offsets.
            lengths: (ranges,) tokens of each; zero is allowed.

        Returns:
            (sum of lengths,) concatenated ids, in the stored data type.

        Raises:
            DataError: The store is streamed and its shards cannot be read.
        """
        return self.tokens.gather(starts, lengths)


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta = read_json_object(folder / META_FILE)
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error
    if meta.get("format") != FORMAT:
        raise DataError(
            f"the token store {folder} has format {meta.get('format')}. This version reads format {FORMAT}. Run "
            "framework.prepare again with overwrite=true."
        )
    return meta


def _damaged(folder: Path, error: Exception) -> DataError:
    return DataError(f"the token store {folder} is damaged ({error}). Delete it and run framework.prepare again.")
