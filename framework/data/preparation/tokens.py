"""Last pass over a corpus: splits its documents into sentences, encodes them, and writes them to the store."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from framework.data.canaries import Canary, in_copies
from framework.data.preparation.card import CardBuilder
from framework.data.preparation.corpus import Batch, Corpus
from framework.data.preparation.personal_data import Cleared, ClearedEncoding, PersonalDataStep
from framework.data.preparation.pool import work_in_order
from framework.data.reading.documents import text_hash
from framework.data.store.writer import StoreWriter
from framework.data.tokenization.document_encoder import DocumentEncoder, EncodedDocuments
from framework.data.tokenization.tokenizer import Tokenizer

COMMIT_CHARACTERS = 64_000_000
"""Number of characters between commits of the store; after a kill, at most this much is encoded again."""


@dataclass
class Totals:
    """Counts of the documents written so far.

    Attributes:
        documents: Number of documents of each source.
        card: Builder of the data card.
        batches: Number of the next batch.
        sentences: Number of sentences.
        tokens: Number of tokens.
        unknown_tokens: Number of unknown tokens.
        personal_data: For each source, the counts of `Cleared`; empty without such a step.
        canary_documents: Number of documents of canaries.
    """

    documents: list[int]
    card: CardBuilder
    batches: int = 0
    sentences: int = 0
    tokens: int = 0
    unknown_tokens: int = 0
    personal_data: list[dict[str, int]] = field(default_factory=list)
    canary_documents: int = 0

    def add(self, batch: Batch, encoded: EncodedDocuments, cleared: Cleared | None) -> None:
        """Adds the counts of a written batch."""
        self.batches = batch.number + 1
        self.documents[batch.source] += len(encoded.document_sentences)
        self._add(encoded)
        if cleared is not None:
            counts = Counter(self.personal_data[batch.source]) + cleared.counts
            self.personal_data[batch.source] = dict(sorted(counts.items()))

    def add_canaries(self, encoded: EncodedDocuments) -> None:
        """Adds the counts of the canaries."""
        self.canary_documents += len(encoded.document_sentences)
        self._add(encoded)

    def _add(self, encoded: EncodedDocuments) -> None:
        self.sentences += len(encoded.sentence_lengths)
        self.tokens += len(encoded.input_ids)
        self.unknown_tokens += encoded.num_unknown
        self.card.add(encoded.input_ids, encoded.sentence_lengths, encoded.document_sentences)

    def state(self) -> dict[str, Any]:
        """Returns all counts as JSON values."""
        return {**vars(self), "card": self.card.state()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Totals":
        """Returns totals that continue from a state that `state` returned."""
        return cls(**{**state, "card": CardBuilder.from_state(state["card"])})


def write_tokens(
    corpus: Corpus,
    fates: np.ndarray | None,
    tokenizer: Tokenizer,
    writer: StoreWriter,
    num_workers: int | None,
    personal_data: PersonalDataStep | None = None,
    canaries: Sequence[Canary] = (),
) -> Totals:
    """Encodes and writes the documents after those that the store already holds, and commits them.

    Args:
        corpus: Corpus, which is read once from its beginning.
        fates: Fates of the documents, as in `Corpus.batches`.
        tokenizer: Tokenizer that is backed by a folder.
        writer: Writer of the store; its state is that of a `Totals`, or None at the first start.
        num_workers: Number of processes as in `work_in_order`.
        personal_data: Step that handles personal data before texts are encoded; None: none.
        canaries: Canaries, whose documents follow those of the corpus.

    Returns:
        Counts of all documents of the store.

    Raises:
        DataError: A source cannot be read, as for `Source.read`.
        OSError: The store cannot be written.
        BrokenProcessPool: A worker was killed, as for `work_in_order`.
    """
    if writer.state is None:
        totals = Totals([0] * len(corpus.sources), CardBuilder(tokenizer.unk_id))
        totals.personal_data = [] if personal_data is None else [{} for _ in corpus.sources]
    else:
        totals = Totals.from_state(writer.state)
    batches = corpus.batches("tokens", fates, first=totals.batches)
    encoded = work_in_order(partial(ClearedEncoding, personal_data, tokenizer.folder), batches, num_workers)
    characters = 0
    for _, group in itertools.groupby(encoded, key=lambda pair: _record_batch(pair[0])):
        results = [(_with_hashes(batch, cleared), documents, cleared) for batch, (documents, cleared) in group]
        _write_record_batch(writer, [(batch, documents) for batch, documents, _ in results])
        for batch, documents, cleared in results:
            totals.add(batch, documents, cleared)
            characters += batch.num_characters
        if characters >= COMMIT_CHARACTERS:
            writer.commit(totals.state())
            characters = 0
    if canaries and not totals.canary_documents:
        _write_canaries(canaries, tokenizer, writer, totals)
    writer.commit(totals.state())
    return totals


def _write_canaries(canaries: Sequence[Canary], tokenizer: Tokenizer, writer: StoreWriter, totals: Totals) -> None:
    texts = [canaries[index].text for index, _ in in_copies(canaries)]
    encoded = DocumentEncoder(tokenizer.folder)(texts)
    hashes = np.array([text_hash(text) for text in texts], dtype=np.uint64)
    writer.add(encoded.input_ids, encoded.sentence_lengths, encoded.document_sentences, hashes)
    totals.add_canaries(encoded)


def _record_batch(batch: Batch) -> int:
    """Returns the key of a record batch: the number of a batch, or of a row group if ids are streamed.

    A streamed row group is read as a whole, so its batches form one record batch.
    """
    return batch.number if batch.group is None else batch.group


def _with_hashes(batch: Batch, cleared: Cleared | None) -> Batch:
    """Returns the batch with the hashes of masked texts."""
    if cleared is None or not cleared.hashes:
        return batch
    hashes = batch.hashes.copy()
    hashes[list(cleared.hashes)] = list(cleared.hashes.values())
    return replace(batch, hashes=hashes)


def _write_record_batch(writer: StoreWriter, pieces: list[tuple[Batch, EncodedDocuments]]) -> None:
    kept = [documents.kept for _, documents in pieces]
    if not any(mask.any() for mask in kept):
        return
    group = pieces[0][0].group
    hashes = np.concatenate([batch.hashes[mask] for (batch, _), mask in zip(pieces, kept, strict=True)])
    rows = np.concatenate([batch.rows[mask] for (batch, _), mask in zip(pieces, kept, strict=True)])
    writer.add(
        np.concatenate([documents.input_ids for _, documents in pieces]),
        np.concatenate([documents.sentence_lengths for _, documents in pieces]),
        np.concatenate([documents.document_sentences for _, documents in pieces]),
        hashes,
        None if group is None else np.full(len(rows), group),
        None if group is None else rows,
    )
