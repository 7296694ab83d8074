"""The token store: an Arrow file of `datasets`, one row a document, read through its memory-mapped buffers.

A store folder holds data.arrow (columns input_ids, sentence_lengths, text_hash; `datasets.Dataset.from_file` opens it
too), tokenizer/, store.json (counts, settings, fingerprint) and COMPLETE, which is written last in a folder that gets
its name after that.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features
from datasets.arrow_writer import ArrowWriter

from framework.data.tokenizer import Tokenizer
from framework.errors import ConfigError, DataError
from framework.random import key, mix, uniform

DATA_FILE, META_FILE, COMPLETE_FILE, TOKENIZER_FOLDER = "data.arrow", "store.json", "COMPLETE", "tokenizer"
FORMAT = 2


class StoreWriter:
    """Writes a store's Arrow file, one record batch a call, so that memory does not grow with the corpus.

    Args:
        folder: Exists and is empty.
        vocab_size: Decides the width of a stored id: 2 bytes up to 65,536 ids, else 4.
    """

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self._folder = folder
        self._id_type = pa.uint16() if vocab_size <= 2**16 else pa.int32()
        self._schema = pa.schema(
            {"input_ids": pa.list_(self._id_type), "sentence_lengths": pa.list_(pa.int32()), "text_hash": pa.uint64()}
        )
        self._writer = ArrowWriter(path=str(folder / DATA_FILE), features=Features.from_arrow_schema(self._schema))
        self._digest = hashlib.blake2b(digest_size=16)

    def add(
        self,
        input_ids: np.ndarray,
        sentence_lengths: np.ndarray,
        document_sentences: np.ndarray,
        text_hashes: np.ndarray,
    ) -> None:
        """Appends documents.

        Args:
            input_ids: (tokens,) of all sentences end to end.
            sentence_lengths: (sentences,) tokens of each, all positive.
            document_sentences: (documents,) sentences of each, all positive.
            text_hashes: (documents,) uint64.
        """
        sentence_ends = np.concatenate([[0], np.cumsum(document_sentences)])
        token_ends = np.concatenate([[0], np.cumsum(sentence_lengths)])[sentence_ends]
        ids = pa.array(input_ids.astype(self._id_type.to_pandas_dtype()), type=self._id_type)
        lengths = pa.array(sentence_lengths, type=pa.int32())
        columns = [
            pa.ListArray.from_arrays(pa.array(token_ends, type=pa.int32()), ids),
            pa.ListArray.from_arrays(pa.array(sentence_ends, type=pa.int32()), lengths),
            pa.array(text_hashes, type=pa.uint64()),
        ]
        for array in (
            input_ids.astype(np.int32),
            sentence_lengths.astype(np.int32),
            document_sentences.astype(np.int32),
        ):
            self._digest.update(array.tobytes())
        self._writer.write_table(pa.Table.from_arrays(columns, schema=self._schema), writer_batch_size=len(text_hashes))

    def finish(self, meta: Mapping[str, Any], tokenizer: Tokenizer) -> None:
        """Closes the file and writes everything else, COMPLETE last.

        Args:
            meta: What store.json tells beside format and fingerprints, `counts` among it; must be JSON.
            tokenizer: Its files go into the store.
        """
        self._writer.finalize()
        tokenizer.save(self._folder / TOKENIZER_FOLDER)
        self._digest.update(tokenizer.fingerprint.encode())
        content = {
            **meta,
            "format": FORMAT,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "fingerprint": self._digest.hexdigest(),
        }
        (self._folder / META_FILE).write_text(
            json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        (self._folder / COMPLETE_FILE).touch()


class TokenStore:
    """A store that is open for reading. Token places count over the whole store, document after document.

    Attributes:
        folder: Of the store.
        meta: Content of store.json.
        fingerprint: Of tokens, boundaries and tokenizer.
        document_offsets: (documents + 1,) int64 token place at which each document begins; the last is the number of
            tokens.
        document_sentences: (documents + 1,) int64 sentence at which each document begins; the last is the number of
            sentences.
        sentence_offsets: (sentences + 1,) int64 token place at which each sentence begins.
        text_hashes: (documents,) uint64 of their texts.
    """

    def __init__(self, folder: Path, meta: dict[str, Any], table: pa.Table, mapped: pa.Buffer) -> None:
        self.folder = folder
        self.meta = meta
        self.fingerprint: str = meta["fingerprint"]
        self.text_hashes = table.column("text_hash").to_numpy()
        id_chunks = [chunk for chunk in table.column("input_ids").chunks if len(chunk)]
        self.document_offsets = _offsets(id_chunks)
        lengths_chunks = [chunk for chunk in table.column("sentence_lengths").chunks if len(chunk)]
        self.document_sentences = _offsets(lengths_chunks)
        lengths = np.concatenate([chunk.flatten().to_numpy() for chunk in lengths_chunks])
        self.sentence_offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        # The whole file as one array of ids: within a record batch ids lie side by side, so a place in the store is a
        # place in the file plus a shift that only the record batch decides. That spares an index of rows, and any copy.
        dtype = np.dtype(table.schema.field("input_ids").type.value_type.to_pandas_dtype())
        self._file = np.frombuffer(mapped, dtype=dtype, count=mapped.size // dtype.itemsize)
        self._batch_starts = np.concatenate([[0], np.cumsum([len(chunk.flatten()) for chunk in id_chunks])])[:-1]
        self._shifts = (
            np.array([_address(chunk) - mapped.address for chunk in id_chunks]) // dtype.itemsize - self._batch_starts
        )
        # Tables of the Arrow library keep the mapping alive; so must we.
        self._mapped = mapped

    @classmethod
    def open(cls, folder: str | Path) -> "TokenStore":
        """Opens a complete store.

        Raises:
            DataError: There is no store, it is not complete, or it was written in another format.
        """
        folder = Path(folder)
        if not (folder / COMPLETE_FILE).is_file():
            state = "is not complete" if folder.is_dir() else "does not exist"
            raise DataError(f"the token store {folder} {state}; make it with framework.prepare.")
        try:
            meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
            mapped = pa.memory_map(str(folder / DATA_FILE)).read_buffer()
            table = pa.ipc.open_stream(pa.BufferReader(mapped)).read_all()
        except (OSError, ValueError, pa.ArrowInvalid) as error:
            raise DataError(
                f"the token store {folder} is damaged ({error}); delete it and run framework.prepare again."
            ) from error
        if meta.get("format") != FORMAT:
            raise DataError(
                f"the token store {folder} has format {meta.get('format')}, this version reads {FORMAT}; run "
                "framework.prepare again."
            )
        if table.num_rows != meta["counts"]["documents"]:
            raise DataError(
                f"the token store {folder} holds {table.num_rows} documents, its store.json says "
                f"{meta['counts']['documents']}; delete it and run "
                "framework.prepare again."
            )
        return cls(folder, meta, table, mapped)

    @property
    def num_documents(self) -> int:
        """Documents."""
        return len(self.document_offsets) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens, no special ones among them."""
        return int(self.document_offsets[-1])

    def gather(self, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Copies stretches of tokens, none of which crosses the end of its document.

        Args:
            starts: (stretches,) token places.
            lengths: (stretches,) tokens of each; zero is allowed.

        Returns:
            (sum of lengths,) ids end to end, as wide as they are stored.
        """
        batches = np.searchsorted(self._batch_starts, starts, side="right") - 1
        ends = np.cumsum(lengths)
        places = np.repeat(starts + self._shifts[batches] - (ends - lengths), lengths)
        places += np.arange(len(places))
        return self._file.take(places)


@dataclass(frozen=True)
class StoreData:
    """Data of pre-training: a store whose documents are split by a hash of their text.

    Attributes:
        store: Folder of the store.
        validation_fraction: Share of the documents that is held out, about.
        split_seed: Decides the split, apart from the run's seed.
    """

    store: str
    validation_fraction: float = 0.01
    split_seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.validation_fraction < 1:
            raise ConfigError(f"validation_fraction is {self.validation_fraction}, it must be at least 0 and below 1.")

    @cached_property
    def opened(self) -> TokenStore:
        """The store, opened at the first use.

        Raises:
            DataError: See `TokenStore.open`.
        """
        return TokenStore.open(self.store)

    def documents(self) -> dict[str, np.ndarray]:
        """Ascending documents of "train" and, unless its fraction is 0, "validation".

        Raises:
            DataError: A split has no document.
        """
        draws = uniform(mix(key(self.split_seed, "validation documents"), self.opened.text_hashes))
        held_out = draws < self.validation_fraction
        splits = {"train": np.flatnonzero(~held_out)}
        if self.validation_fraction > 0:
            splits["validation"] = np.flatnonzero(held_out)
        for name, documents in splits.items():
            if len(documents) == 0:
                raise DataError(
                    f"{self.store} has {len(held_out)} documents, of which "
                    f"validation_fraction={self.validation_fraction} leaves none for "
                    f"{name}; change the fraction or add documents."
                )
        return splits


def _offsets(chunks: list[pa.ListArray]) -> np.ndarray:
    """Where each row's values begin, counted over all chunks; one more element than rows."""
    lengths = [np.diff(chunk.offsets.to_numpy()) for chunk in chunks]
    return np.concatenate([[0], np.cumsum(np.concatenate(lengths), dtype=np.int64)])


def _address(chunk: pa.ListArray) -> int:
    values = chunk.flatten()
    return values.buffers()[1].address + values.offset * values.type.bit_width // 8
