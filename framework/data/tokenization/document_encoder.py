"""Texts to sentences to ids, a batch of documents at a time; the work of the processes that make a token store."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from framework.data.reading.documents import split_sentences
from framework.data.tokenization.sentence_encoder import SentenceEncoder
from framework.data.tokenization.tokenizer import Tokenizer

SENTENCES_AT_ONCE = 50_000
"""The words of so many are held at once, or a document of 100 MB would take gigabytes."""


@dataclass(frozen=True)
class EncodedDocuments:
    """Ids of a batch of documents.

    Attributes:
        input_ids: (tokens,) of all sentences end to end, int32.
        sentence_lengths: (sentences,) tokens of each, all positive.
        document_sentences: (documents,) sentences of each, all positive.
        kept: (texts,) False for a text of control characters alone, which has no tokens and is no document.
        num_unknown: Unknown tokens.
    """

    input_ids: np.ndarray
    sentence_lengths: np.ndarray
    document_sentences: np.ndarray
    kept: np.ndarray
    num_unknown: int


class DocumentEncoder:
    """Turns texts into ids.

    Args:
        tokenizer_folder: Read once.
    """

    def __init__(self, tokenizer_folder: Path) -> None:
        tokenizer = Tokenizer.from_folder(tokenizer_folder)
        self._unk_id = tokenizer.unk_id
        self._encoder = SentenceEncoder(tokenizer)

    def __call__(self, texts: Sequence[str]) -> EncodedDocuments:
        """Encodes texts."""
        documents = [split_sentences(text) for text in texts]
        input_ids, lengths = self._encode([sentence for sentences in documents for sentence in sentences])
        owners = np.repeat(np.arange(len(documents)), [len(sentences) for sentences in documents])
        # Sentences and documents of control characters alone have no tokens.
        has_tokens = lengths > 0
        num_sentences = np.bincount(owners[has_tokens], minlength=len(documents))
        kept = num_sentences > 0
        num_unknown = int((input_ids == self._unk_id).sum())
        return EncodedDocuments(input_ids, lengths[has_tokens], num_sentences[kept], kept, num_unknown)

    def _encode(self, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
        starts = range(0, max(len(sentences), 1), SENTENCES_AT_ONCE)
        encoded = [self._encoder.encode(sentences[start : start + SENTENCES_AT_ONCE]) for start in starts]
        input_ids, lengths = zip(*encoded, strict=True)
        return np.concatenate(input_ids), np.concatenate(lengths)
