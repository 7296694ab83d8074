"""Builds token stores without text, from documents given as lists of sentences, which are lists of ids."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from framework.data.store.token_store import TokenStore
from framework.data.store.writer import StoreWriter
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.word_counts import WordCounts
from framework.data.tokenization.wordpiece_training import WordPieceTraining


def trained(texts: Sequence[str], folder: Path) -> Tokenizer:
    """Trains a WordPiece vocabulary of at most 100 tokens."""
    training, counts = WordPieceTraining(vocab_size=100), WordCounts()
    counts.add(training.count(texts))
    return training.train(counts, folder)


def write_store(
    folder: Path,
    documents: Sequence[Sequence[Sequence[int]]],
    tokenizer: Tokenizer,
    batch_documents: int = 2,
    sources: Mapping[str, int] | None = None,
) -> TokenStore:
    folder.mkdir(parents=True)
    writer = StoreWriter(folder, tokenizer.vocab_size)
    for first in range(0, len(documents), batch_documents):
        here = documents[first : first + batch_documents]
        sentences = [sentence for document in here for sentence in document]
        writer.add(
            np.array([token for sentence in sentences for token in sentence]),
            np.array([len(sentence) for sentence in sentences]),
            np.array([len(document) for document in here]),
            np.arange(first, first + len(here), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15),
        )
    named = [{"name": name, "documents": count} for name, count in (sources or {"all": len(documents)}).items()]
    writer.finish({"counts": {"documents": len(documents)}, "sources": named}, tokenizer)
    return TokenStore.open(folder)
