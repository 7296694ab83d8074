"""The token store: an Arrow file of `datasets`, one row a document, read through its memory-mapped buffers.

A store folder holds data.arrow (columns input_ids, sentence_lengths, text_hash; `datasets.Dataset.from_file` opens it
too), tokenizer/, store.json (counts, settings, fingerprint), the data card, and COMPLETE, which is written last in a
folder that gets its name after that. A streamed store has no ids: they are read from shards when they are wanted.
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
from framework.files import parse_json

CACHE_BYTES = 2**30


class TokenReader(Protocol):
    """Gives the ids of a store. Token places count over the whole store, document after document."""

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Copies stretches of tokens, none of which crosses the end of its document; see `TokenStore.gather`."""

    def read_ahead(self, start: int, stop: int) -> None:
        """Is told that the tokens from place `start` up to `stop` will be wanted soon; returns at once."""


class MappedTokens:
    """The ids of data.arrow through its memory mapping: the whole file as one array of ids.

    Within a record batch ids lie side by side, so a place in the store is a place in the file plus a shift that only
    the record batch decides. That spares an index of rows, and any copy.

    Args:
        file: data.arrow.
        dtype: Of the ids.
        batch_starts: (record batches,) int64 token place at which each begins.
        places: (record batches,) int64 byte of the file at which the ids of each begin.
    """

    def __init__(self, file: Path, dtype: np.dtype, batch_starts: np.ndarray, places: np.ndarray) -> None:
        self._path = file
        self._ids = np.memmap(file, dtype, "r", shape=(file.stat().st_size // dtype.itemsize,)).view(np.ndarray)
        self._batch_starts = batch_starts
        self._shifts = places // dtype.itemsize - batch_starts

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """See `TokenStore.gather`."""
        batches = np.searchsorted(self._batch_starts, starts, side="right") - 1
        ends = np.cumsum(lengths)
        places = np.repeat(starts + self._shifts[batches] - (ends - lengths), lengths)
        places += np.arange(len(places))
        return self._ids.take(places)

    def read_ahead(self, start: int, stop: int) -> None:
        """Lets the operating system read the stretch in large pieces, instead of page by page as it is touched."""
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
    """A store that is open for reading; opening takes no time that grows with the number of documents.

    Args:
        folder: Of the store.
        meta: Content of store.json.
        table: Content of batches.npy.
        cache_bytes: Memory for ids that are streamed.
        storage_options: What the file systems of streamed shards are made with.

    Attributes:
        fingerprint: Of tokens, boundaries and tokenizer.
        num_tokens: Tokens, no special ones among them.
        batch_starts: (record batches,) int64 token place at which each begins.
        tokens: Gives the ids.
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
        self._places = table[:, 1]
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
            folder: Of the store.
            cache_bytes: Memory for ids that are streamed.
            storage_options: What the file systems of streamed shards are made with.

        Raises:
            DataError: There is no store, it is not complete, damaged, or written in another format.
        """
        folder = Path(folder)
        if not (folder / COMPLETE_FILE).is_file():
            state = "is not complete" if folder.is_dir() else "does not exist"
            raise DataError(f"the token store {folder} {state}; make it with framework.prepare.")
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
        """Whether the ids are read from shards instead of the store."""
        return self.meta.get("streamed", False) is True

    @property
    def num_documents(self) -> int:
        """Documents."""
        return int(self.meta["counts"]["documents"])

    @property
    def sources(self) -> dict[str, int]:
        """Documents of each source, in the order in which they lie."""
        return {source["name"]: source["documents"] for source in self.meta["sources"]}

    def batches(self) -> Iterator[StoredBatch]:
        """Streams the boundaries of the documents, a record batch at a time."""
        return (self.batch(number) for number in range(len(self.batch_starts)))

    def batch(self, number: int) -> StoredBatch:
        """The boundaries of the documents of one record batch."""
        message = pa.ipc.read_message(self._mapped.slice(self._places[number]))
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
        """Copies stretches of tokens, none of which crosses the end of its document.

        Args:
            starts: (stretches,) token places.
            lengths: (stretches,) tokens of each; zero is allowed.

        Returns:
            (sum of lengths,) ids end to end, as wide as they are stored.

        Raises:
            DataError: The store is streamed and its shards cannot be read.
        """
        return self.tokens.gather(starts, lengths)


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta: dict[str, Any] = parse_json((folder / META_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(folder, error) from error
    if meta.get("format") != FORMAT:
        raise DataError(
            f"the token store {folder} has format {meta.get('format')}, this version reads {FORMAT}; run "
            "framework.prepare again with overwrite=true."
        )
    return meta


def _damaged(folder: Path, error: Exception) -> DataError:
    return DataError(f"the token store {folder} is damaged ({error}); delete it and run framework.prepare again.")
