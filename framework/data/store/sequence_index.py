"""The division of a store's documents into chunks of consecutive sentences; one chunk is one sequence.

A document's sentences are taken greedily while they fit. A sentence that is longer than a piece may be is first cut
into pieces of even lengths; no text is dropped. The division depends on the store, the length and the split alone. It
is made once, a record batch at a time, kept in the store's folder, and read through a memory mapping afterwards, so
that neither memory nor the time to start grow with the number of sequences.
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
"""Takes text hashes (documents,) and gives for each split (documents,) True where a document belongs to it."""


@dataclass(frozen=True, slots=True)
class SequenceIndex:
    """The chunks of one split. Pieces and documents count over the whole store.

    Attributes:
        pieces: (pieces + 1,) int64 token place at which each piece begins; the last is the number of tokens.
        documents: (documents,) int64, ascending, of this split.
        document_pieces: (documents, 2) int64 first piece of each document of this split, and the one after its last.
        chunks: (chunks, 3) int64 first piece of each chunk, the one after its last, and the place of its document in
            `documents`; one row, so that a chunk is found with one access to the disk.
    """

    pieces: np.ndarray
    documents: np.ndarray
    document_pieces: np.ndarray
    chunks: np.ndarray

    def __len__(self) -> int:
        return len(self.chunks)

    def chunks_before(self, document: int) -> int:
        """Chunks of the split's documents that come before this document of the store."""
        place = np.searchsorted(self.documents, document)
        return int(np.searchsorted(self.chunks[:, 2], place))


@dataclass(frozen=True)
class Division:
    """How documents are divided.

    Attributes:
        max_tokens: Most tokens of a chunk, special tokens not counted; at least 2.
        pairs: Whether chunks will be split in two: then no piece is longer than half a chunk, so that each chunk but a
            document's last has at least two.

    Raises:
        ConfigError: `max_tokens` is below 2.
    """

    max_tokens: int
    pairs: bool

    def __post_init__(self) -> None:
        if self.max_tokens < 2:
            raise ConfigError(
                f"sequences have room for {self.max_tokens} tokens beside the special ones, 2 is the least; raise "
                "sequence_length."
            )

    @property
    def max_piece(self) -> int:
        """Most tokens of a piece."""
        return self.max_tokens // 2 if self.pairs else self.max_tokens

    def divide(
        self, sentence_lengths: np.ndarray, document_sentences: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Divides the documents of one record batch; all counts begin at 0 in it.

        Args:
            sentence_lengths: (sentences,) tokens of each.
            document_sentences: (documents,) sentences of each.

        Returns:
            Token place at which each piece begins (pieces + 1,), first piece of each document (documents + 1,), first
            piece of each chunk (chunks + 1,), and the document of each chunk (chunks,).
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
    """Opens the index of each split, or makes it first.

    Where several processes come at once, one makes it and the others wait. Where the store's folder cannot be written,
    it is kept in memory.

    Args:
        store: Its documents are divided.
        division: How.
        splits: Which documents belong to which split.
        splits_name: Tells this `splits` from others.
    """
    identity = [_FORMAT, store.fingerprint, division.max_tokens, division.pairs, splits_name]
    name = hashlib.blake2b(json.dumps(identity).encode(), digest_size=8).hexdigest()
    folder = store.folder / INDEX_FOLDER / name
    if not folder.is_dir():
        try:
            folder.parent.mkdir(exist_ok=True)
            with locked(folder.with_suffix(".lock"), wait=True):
                if not folder.is_dir():
                    _make(folder, store, division, splits)
        except OSError as error:
            logger.info("the division into sequences is kept in memory: %s cannot be written (%s)", folder, error)
            return divide_in_memory(store, division, splits)
    names = parse_json((folder / _SPLITS_FILE).read_text(encoding="utf-8"))
    return _assembled(names, lambda name: _mapped(folder / name))


def divide_in_memory(store: TokenStore, division: Division, splits: Splits) -> dict[str, SequenceIndex]:
    """The index of each split, without the disk."""
    arrays: dict[str, list[np.ndarray]] = defaultdict(list)
    names = _divide_all(store, division, splits, lambda name, values: arrays[name].append(values))
    return _assembled(names, lambda name: np.concatenate([part.ravel() for part in arrays[name]]))


def _make(folder: Path, store: TokenStore, division: Division, splits: Splits) -> None:
    """Writes the arrays of an index; the folder gets its name when all are there."""
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
    """Hands on every array of the index in pieces, a record batch at a time; returns the names of the splits."""
    num_tokens = num_pieces = num_documents = 0
    of_split: Counter[str] = Counter()
    for batch in store.batches():
        pieces, document_pieces, chunks, documents = division.divide(batch.sentence_lengths, batch.document_sentences)
        append(_PIECES, pieces[:-1] + num_tokens)
        for split, chosen in splits(batch.text_hashes).items():
            ranks = np.cumsum(chosen) - 1 + of_split[split]
            here = chosen[documents]
            append(f"{split}.documents", np.flatnonzero(chosen) + num_documents)
            ends = np.stack([document_pieces[:-1], document_pieces[1:]], axis=1)[chosen]
            append(f"{split}.document_pieces", ends + num_pieces)
            rows = np.stack([chunks[:-1] + num_pieces, chunks[1:] + num_pieces, ranks[documents]], axis=1)
            append(f"{split}.chunks", rows[here])
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
    # An empty file cannot be mapped. The view spares the cost of NumPy's own class of mapped arrays.
    return np.memmap(file, np.int64, "r").view(np.ndarray) if file.stat().st_size else np.zeros(0, dtype=np.int64)


def _greedy_chunks(pieces: np.ndarray, document_pieces: np.ndarray, max_tokens: int) -> np.ndarray:
    """First piece of each chunk, and the number of pieces at the end.

    All documents go forward together, a chunk at a time: as many rounds as the longest document has chunks.
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
