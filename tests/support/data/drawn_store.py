"""Builds a token store of words drawn by hash, for runs whose numbers are compared."""

from pathlib import Path

import numpy as np

from framework.data.preparation.prepare import StoreSpec, prepare_store
from framework.data.reading.sources import TextFiles
from framework.data.tokenization.wordpiece_training import WordPieceTraining
from framework.random import key, mix, random_integers


def drawn_store(folder: Path) -> Path:
    """Builds a store of 60 documents, each of 8 sentences of 4 to 13 words, and returns its path."""
    words = np.array(
        [f"{first}{second}{last}" for first in "bdfgklmnprstvz" for second in "aeiou" for last in "lmnrst"]
    )
    documents = []
    for document in range(60):
        lengths = 4 + random_integers(mix(key("sentence", document), np.arange(8)), 10)
        drawn = words[random_integers(mix(key("word", document), np.arange(lengths.sum())), len(words))]
        sentences = np.split(drawn, np.cumsum(lengths)[:-1])
        documents.append(" ".join(" ".join(sentence).capitalize() + "." for sentence in sentences))
    (folder / "corpus.txt").write_text("\n\n".join(documents))
    sources = {"texts": TextFiles(str(folder / "corpus.txt"), "blank_lines")}
    prepare_store(StoreSpec(sources, WordPieceTraining(600), folder / "store"))
    return folder / "store"
