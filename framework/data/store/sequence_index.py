"""Division of a store's documents into chunks of consecutive sentences. One chunk is one sequence.

A chunk takes sentences of a document greedily while they fit. A sentence that exceeds the maximum length of a piece is
first cut into pieces of even lengths. No text is dropped. The division depends only on the store, the length and the
split. It is computed once, one record batch at a time, saved in the store's folder and then read through a memory
mapping. Neither memory nor the time to start grows with the number of sequences.
"""

import hashlib
import json
import logging
import shutil
import socket
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from framework import ragged
from framework.data.store.token_store import TokenStore
from framework.errors import ConfigError
from framework.files import locked, parse_json

INDEX_FOLDER, _SPLITS_FILE = "index", "splits.json"
_FORMAT = 1
_PIECES = "pieces"

logger = logging.getLogger(__name__)

Splits = Callable[[np.ndarray], Mapping[str, np.ndarray]]
"""Function of text hashes (documents,) that returns for each split (documents,), True for its documents."""


@dataclass(frozen=True, slots=True)
class SequenceIndex:
    """Chunks of one split. Pieces and documents are numbered over the whole store.

    Attributes:
        pieces: (pieces + 1,) int64 token offset of each piece; the last entry is the number of tokens.
        documents: (documents,) int64 numbers of this split's documents, ascending.
        document_pieces: (documents, 2) int64 first piece of each document of this split, and the one after its last.
        chunks: (chunks, 3) int64 first piece of each chunk, the one after its last, and the index of its document in
            `documents`. They share a row, so that one disk access reads a chunk.
    """

    pieces: np.ndarray
    documents: np.ndarray
    document_pieces: np.ndarray
    chunks: np.ndarray

    def __len__(self) -> int:
        return len(self.chunks)

    def chunks_before(self, document: int) -> int:
        """Returns the number of chunks of the split's documents that precede this document of the store."""
        index = np.searchsorted(self.documents, document)
        return int(np.searchsorted(self.chunks[:, 2], index))


@dataclass(frozen=True)
class Division:
    """Division of documents into chunks.

    Attributes:
        max_tokens: Most tokens of a chunk, special tokens not counted; at least 2.
        pairs: True if chunks are later split in two. Then no piece is longer than half a chunk, so that each chunk but
            a document's last has at least two pieces.

    Raises:
        ConfigError: `max_tokens` is below 2.
    """

    max_tokens: int
    pairs: bool

    def __post_init__(self) -> None:
        if self.max_tokens < 2:
            raise ConfigError(
                f"sequences have room for {self.max_tokens} tokens besides the special ones. They must have room for "
                "at least 2. Raise sequence_length."
            )

    @property
    def max_piece(self) -> int:
        """Most tokens of a piece."""
        return self.max_tokens // 2 if self.pairs else self.max_tokens

    def divide(
        self, sentence_lengths: np.ndarray, document_sentences: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Divides the documents of one record batch; all numbers start at 0 in it.

        Args:
            sentence_lengths: (sentences,) tokens of each.
            document_sentences: (documents,) sentences of each.

        Returns:
            Token offset of each piece (pieces + 1,), first piece of each document (documents + 1,), first piece of each
            chunk (chunks + 1,), and the document of each chunk (chunks,).
        """
        lengths = sentence_lengths.astype(np.int64)
        num_pieces = -(-lengths // self.max_piece)
        # Piece k of n of a sentence with t tokens covers [t * k // n, t * (k + 1) // n).
        whole, parts = np.repeat(lengths, num_pieces), np.repeat(num_pieces, num_pieces)
        number = ragged.offsets_within(num_pieces)
        pieces = ragged.bounds(whole * (number + 1) // parts - whole * number // parts)
        document_pieces = ragged.bounds(num_pieces)[ragged.bounds(document_sentences)]
        chunks = _greedy_chunks(pieces, document_pieces, self.max_tokens)
        return pieces, document_pieces, chunks, np.searchsorted(document_pieces, chunks[:-1], side="right") - 1


def open_index(store: TokenStore, division: Division, splits: Splits, splits_name: str) -> dict[str, SequenceIndex]:
    """Opens the index of each split, and builds it first if it does not exist.

    If several processes open it at once, one builds it and the others wait. If the store's folder is not writable, the
    index stays in memory.

    Args:
        store: Store whose documents are divided.
        division: Division into chunks.
        splits: Assignment of documents to splits.
        splits_name: Unique name of `splits`, which becomes part of the index's identity.
    """
    identity = [_FORMAT, store.fingerprint, division.max_tokens, division.pairs, splits_name]
    name = hashlib.blake2b(json.dumps(identity).encode(), digest_size=8).hexdigest()
    folder = store.folder / INDEX_FOLDER / name
    if not folder.is_dir():
        try:
            folder.parent.mkdir(exist_ok=True)
            with locked(folder.with_suffix(".lock"), wait=True):
                if not folder.is_dir():
                    _write(folder, store, division, splits)
        except OSError as error:
            logger.info("the division into sequences stays in memory: %s cannot be written (%s)", folder, error)
            return divide_in_memory(store, division, splits)
    names = parse_json((folder / _SPLITS_FILE).read_text(encoding="utf-8"))
    return _assembled(names, lambda name: _mapped(folder / name))


def divide_in_memory(store: TokenStore, division: Division, splits: Splits) -> dict[str, SequenceIndex]:
    """Builds the index of each split in memory, without the disk."""
    arrays: dict[str, list[np.ndarray]] = defaultdict(list)
    names = _divide_all(store, division, splits, lambda name, values: arrays[name].append(values))
    return _assembled(names, lambda name: np.concatenate([part.ravel() for part in arrays[name]]))


def _write(folder: Path, store: TokenStore, division: Division, splits: Splits) -> None:
    """Writes the arrays of an index to a temporary folder, which is renamed when it is complete."""
    logger.info("dividing %s into sequences of at most %d tokens, once", store.folder, division.max_tokens)
    fresh = folder.with_name(f"{folder.name}.{socket.gethostname()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {}

        def append(name: str, values: np.ndarray) -> None:
            if name not in files:
                files[name] = stack.enter_context((fresh / name).open("wb"))
            files[name].write(np.ascontiguousarray(values, dtype=np.int64).tobytes())

        names = _divide_all(store, division, splits, append)
    (fresh / _SPLITS_FILE).write_text(json.dumps(names), encoding="utf-8")
    fresh.rename(folder)


def _divide_all(
    store: TokenStore, division: Division, splits: Splits, append: Callable[[str, np.ndarray], None]
) -> list[str]:
    """Appends to each array of the index, one record batch at a time; returns the names of the splits."""
    num_tokens = num_pieces = num_documents = 0
    of_split: Counter[str] = Counter()
    for batch in store.batches():
        pieces, document_pieces, chunks, documents = division.divide(batch.sentence_lengths, batch.document_sentences)
        append(_PIECES, pieces[:-1] + num_tokens)
        for split, chosen in splits(batch.text_hashes).items():
            ranks = np.cumsum(chosen) - 1 + of_split[split]
            is_in_split = chosen[documents]
            append(f"{split}.documents", np.flatnonzero(chosen) + num_documents)
            ends = np.stack([document_pieces[:-1], document_pieces[1:]], axis=1)[chosen]
            append(f"{split}.document_pieces", ends + num_pieces)
            rows = np.stack([chunks[:-1] + num_pieces, chunks[1:] + num_pieces, ranks[documents]], axis=1)
            append(f"{split}.chunks", rows[is_in_split])
            of_split[split] += int(chosen.sum())
        num_tokens += int(pieces[-1])
        num_pieces += int(document_pieces[-1])
        num_documents += len(chosen)
    append(_PIECES, np.array([num_tokens]))
    return list(of_split)


def _assembled(names: list[str], array: Callable[[str], np.ndarray]) -> dict[str, SequenceIndex]:
    pieces = array(_PIECES)
    return {
        split: SequenceIndex(
            pieces,
            array(f"{split}.documents"),
            array(f"{split}.document_pieces").reshape(-1, 2),
            array(f"{split}.chunks").reshape(-1, 3),
        )
        for split in names
    }


def _mapped(file: Path) -> np.ndarray:
    # An empty file cannot be mapped. The view avoids the overhead of NumPy's memmap class.
    return np.memmap(file, np.int64, "r").view(np.ndarray) if file.stat().st_size else np.zeros(0, dtype=np.int64)


def _greedy_chunks(pieces: np.ndarray, document_pieces: np.ndarray, max_tokens: int) -> np.ndarray:
    """Returns the first piece of each chunk, followed by the number of pieces.

    All documents advance together by one chunk per round, for as many rounds as the longest document has chunks.
    """
    num_pieces = len(pieces) - 1
    ends = np.repeat(document_pieces[1:], np.diff(document_pieces))
    following = np.minimum(np.searchsorted(pieces, pieces[:-1] + max_tokens, side="right") - 1, ends)
    is_first = np.zeros(num_pieces + 1, dtype=bool)
    current = document_pieces[:-1]
    while len(current):
        is_first[current] = True
        after = following[current]
        current = after[after < ends[current]]
    is_first[num_pieces] = True
    return np.flatnonzero(is_first)
