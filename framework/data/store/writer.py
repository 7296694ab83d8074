"""Writes a token store as consecutive record batches of one Arrow stream, so that a killed writer can resume.

An Arrow stream consists of its schema, its record batches and an end mark, each a message of its own. The next start
cuts off all bytes after the last recorded batch. COMPLETE is written last. batches.npy, (record batches, 3) int64,
holds for each record batch its tokens, its byte offset in the file, and the byte offset of its ids (-1 without ids). A
reader locates every record batch without reading the previous ones.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from framework import ragged
from framework.data.tokenization.tokenizer import Tokenizer
from framework.files import parse_json, write_atomic

DATA_FILE, META_FILE, COMPLETE_FILE, TOKENIZER_FOLDER = "data.arrow", "store.json", "COMPLETE", "tokenizer"
BATCHES_FILE, JOURNAL_FILE = "batches.npy", "journal.json"
FORMAT = 3

_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


class StoreWriter:
    """Writer of the Arrow file of a store. Each call writes one record batch, so memory does not grow with the corpus.

    A new writer resumes after the last `commit` of an earlier writer in the same folder.

    Args:
        folder: Existing folder; empty, or left by an unfinished writer for the same vocabulary size.
        vocab_size: Size of the vocabulary; ids take 2 bytes up to 65,536 ids, otherwise 4.
        streamed: True omits the ids and stores the row group and row of each document instead.

    Attributes:
        state: State that the last `commit` of an earlier writer recorded; None without an earlier commit.
        uncommitted_tokens: Tokens added since the last `commit`.
    """

    def __init__(self, folder: Path, vocab_size: int, streamed: bool = False) -> None:
        self._folder = folder
        self._id_type = pa.uint16() if vocab_size <= 2**16 else pa.int32()
        columns = {"sentence_lengths": pa.list_(pa.int32()), "text_hash": pa.uint64()}
        if streamed:
            columns |= {"group": pa.int32(), "row": pa.int32()}
        else:
            columns = {"input_ids": pa.list_(self._id_type), **columns}
        # Imported late: every preparation process imports this module, and `datasets` takes a second and 90 MB.
        from datasets import Features

        # The features of `datasets` in the schema let Dataset.from_file open the file.
        self._schema: pa.Schema = Features.from_arrow_schema(pa.schema(columns)).arrow_schema
        self.uncommitted_tokens = 0
        journal = self._read_journal()
        self.state: dict[str, Any] | None = journal["state"] if journal else None
        self._digest = bytes.fromhex(journal["digest"]) if journal else b""
        self._batches: list[list[int]] = journal["batches"] if journal else []
        self._file = (folder / DATA_FILE).open("r+b" if journal else "wb")
        if journal:
            self._file.truncate(journal["bytes"])
            self._file.seek(journal["bytes"])
        else:
            self._file.write(self._schema.serialize())

    def add(
        self,
        input_ids: np.ndarray,
        sentence_lengths: np.ndarray,
        document_sentences: np.ndarray,
        text_hashes: np.ndarray,
        groups: np.ndarray | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        """Appends documents as one record batch.

        Args:
            input_ids: (tokens,) concatenated ids of all sentences.
            sentence_lengths: (sentences,) tokens of each, all positive.
            document_sentences: (documents,) sentences of each, all positive.
            text_hashes: (documents,) uint64 hash of each text.
            groups: (documents,) row group of each, all the same; only for a streamed store.
            rows: (documents,) ascending indices of the texts in the row group; only for a streamed store.
        """
        sentence_ends = ragged.bounds(document_sentences)
        lengths = pa.array(sentence_lengths, type=pa.int32())
        columns: list[pa.Array] = [
            pa.ListArray.from_arrays(pa.array(sentence_ends, type=pa.int32()), lengths),
            pa.array(text_hashes, type=pa.uint64()),
        ]
        if groups is not None:
            columns += [pa.array(groups, type=pa.int32()), pa.array(rows, type=pa.int32())]
        else:
            token_ends = ragged.bounds(sentence_lengths)[sentence_ends]
            ids = pa.array(input_ids.astype(self._id_type.to_pandas_dtype()), type=self._id_type)
            columns.insert(0, pa.ListArray.from_arrays(pa.array(token_ends, type=pa.int32()), ids))
        message = pa.RecordBatch.from_arrays(columns, schema=self._schema).serialize()
        begin = self._file.tell()
        self._batches.append([len(input_ids), begin, begin + self._ids_offset(message) if groups is None else -1])
        self._file.write(message)
        # The digest is chained over the record batches, so that a resumed writer needs only the last value.
        digest = hashlib.blake2b(self._digest, digest_size=16)
        for array in (input_ids, sentence_lengths, document_sentences):
            digest.update(array.astype(np.int32).tobytes())
        self._digest = digest.digest()
        self.uncommitted_tokens += len(input_ids)

    def commit(self, state: Mapping[str, Any]) -> None:
        """Flushes the added documents to disk and records them. A later writer in this folder resumes from here.

        Args:
            state: State that the caller needs to resume; must be JSON.
        """
        self._file.flush()
        os.fsync(self._file.fileno())
        journal = {
            "bytes": self._file.tell(),
            "digest": self._digest.hex(),
            "batches": self._batches,
            "state": state,
        }
        write_atomic(self._folder / JOURNAL_FILE, json.dumps(journal))
        self.uncommitted_tokens = 0

    def finish(self, meta: Mapping[str, Any], tokenizer: Tokenizer) -> None:
        """Closes the file and writes all other files, COMPLETE last.

        Args:
            meta: Content of store.json besides format and fingerprints, including `counts`; must be JSON.
            tokenizer: Tokenizer whose files are copied into the store.
        """
        self._file.write(_END_OF_STREAM)
        num_bytes = self._file.tell()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        np.save(self._folder / BATCHES_FILE, np.array(self._batches, dtype=np.int64).reshape(-1, 3))
        tokenizer.save(self._folder / TOKENIZER_FOLDER)
        content = {
            **meta,
            "format": FORMAT,
            "data_bytes": num_bytes,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "fingerprint": hashlib.blake2b(self._digest + tokenizer.fingerprint.encode(), digest_size=16).hexdigest(),
        }
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (self._folder / META_FILE).write_text(text, encoding="utf-8")
        (self._folder / JOURNAL_FILE).unlink(missing_ok=True)
        (self._folder / COMPLETE_FILE).touch()

    def close(self) -> None:
        """Closes the file without finishing the store. Committed documents are kept."""
        self._file.close()

    def _ids_offset(self, message: pa.Buffer) -> int:
        """Returns the byte offset of the ids within the message of a record batch."""
        ids = pa.ipc.read_record_batch(message, self._schema).column("input_ids").values
        return ids.buffers()[1].address + ids.offset * self._id_type.bit_width // 8 - message.address

    def _read_journal(self) -> dict[str, Any] | None:
        path = self._folder / JOURNAL_FILE
        if not path.is_file() or not (self._folder / DATA_FILE).is_file():
            return None
        journal: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        # A file shorter than its journal says was not written by this class, or lost its end in a crash.
        return journal if (self._folder / DATA_FILE).stat().st_size >= journal["bytes"] else None
