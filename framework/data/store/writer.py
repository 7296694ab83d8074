"""Writes a token store: record batches behind each other in one Arrow stream, so that a killed writer can go on.

A stream of the Arrow format is its schema, its record batches and an end mark, each a message of its own. What is
behind the last recorded batch is cut off at the next start; COMPLETE is written last. batches.npy, (record batches, 3)
int64, tells of each its tokens, its place in the file, and the place of its ids (-1 without), so that a reader finds
every record batch without reading those before it.
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
from framework.files import parse_json

DATA_FILE, META_FILE, COMPLETE_FILE, TOKENIZER_FOLDER = "data.arrow", "store.json", "COMPLETE", "tokenizer"
BATCHES_FILE, JOURNAL_FILE = "batches.npy", "journal.json"
FORMAT = 3

_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


class StoreWriter:
    """Writes the Arrow file of a store, one record batch a call, so that memory does not grow with the corpus.

    What `commit` recorded last in the same folder is kept and gone on with.

    Args:
        folder: Exists; empty, or of a writer that did not finish, for the same vocabulary size.
        vocab_size: Decides the width of a stored id: 2 bytes up to 65,536 ids, else 4.
        streamed: Leave the ids out and keep where each document can be read again.

    Attributes:
        state: What was recorded with the last `commit` of an earlier writer; None where there was none.
        uncommitted_tokens: Tokens that were added since the last `commit`.
    """

    def __init__(self, folder: Path, vocab_size: int, streamed: bool = False) -> None:
        self._folder = folder
        self._id_type = pa.uint16() if vocab_size <= 2**16 else pa.int32()
        columns = {"sentence_lengths": pa.list_(pa.int32()), "text_hash": pa.uint64()}
        if streamed:
            columns |= {"group": pa.int32(), "row": pa.int32()}
        else:
            columns = {"input_ids": pa.list_(self._id_type), **columns}
        # Imported late: each process that prepares imports this module, and `datasets` takes a second and 90 MB.
        from datasets import Features

        # With the features of `datasets` in its schema the file is one that Dataset.from_file opens.
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
            input_ids: (tokens,) of all sentences end to end.
            sentence_lengths: (sentences,) tokens of each, all positive.
            document_sentences: (documents,) sentences of each, all positive.
            text_hashes: (documents,) uint64.
            groups: (documents,) the row group of each, all the same; only where ids are streamed.
            rows: (documents,) ascending places among the texts of the row group; only where ids are streamed.
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
        self._batches.append([len(input_ids), begin, begin + self._place_of_ids(message) if groups is None else -1])
        self._file.write(message)
        # Chained over the record batches, so that a writer that goes on needs the last value only.
        digest = hashlib.blake2b(self._digest, digest_size=16)
        for array in (input_ids, sentence_lengths, document_sentences):
            digest.update(array.astype(np.int32).tobytes())
        self._digest = digest.digest()
        self.uncommitted_tokens += len(input_ids)

    def commit(self, state: Mapping[str, Any]) -> None:
        """Puts what was added on the disk and records it: a later writer in this folder goes on from here.

        Args:
            state: What the caller must know to go on; JSON.
        """
        self._file.flush()
        os.fsync(self._file.fileno())
        journal = {
            "bytes": self._file.tell(),
            "digest": self._digest.hex(),
            "batches": self._batches,
            "state": state,
        }
        fresh = self._folder / (JOURNAL_FILE + ".new")
        fresh.write_text(json.dumps(journal), encoding="utf-8")
        fresh.replace(self._folder / JOURNAL_FILE)
        self.uncommitted_tokens = 0

    def finish(self, meta: Mapping[str, Any], tokenizer: Tokenizer) -> None:
        """Closes the file and writes everything else, COMPLETE last.

        Args:
            meta: What store.json tells beside format and fingerprints, `counts` among it; must be JSON.
            tokenizer: Its files go into the store.
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
        """Closes the file without finishing the store; what was committed stays."""
        self._file.close()

    def _place_of_ids(self, message: pa.Buffer) -> int:
        """Where in the bytes of a record batch its ids begin."""
        ids = pa.ipc.read_record_batch(message, self._schema).column("input_ids").values
        return ids.buffers()[1].address + ids.offset * self._id_type.bit_width // 8 - message.address

    def _read_journal(self) -> dict[str, Any] | None:
        path = self._folder / JOURNAL_FILE
        if not path.is_file() or not (self._folder / DATA_FILE).is_file():
            return None
        journal: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        # A file that is shorter than its record was not written by us, or lost its end with the machine.
        return journal if (self._folder / DATA_FILE).stat().st_size >= journal["bytes"] else None
