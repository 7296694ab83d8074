"""Splits texts into sentences and encodes them, one batch of documents at a time, in the processes of a preparation."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from framework.data.reading.documents import split_sentences
from framework.data.tokenization.sentence_encoder import SentenceEncoder
from framework.data.tokenization.tokenizer import Tokenizer

SENTENCES_AT_ONCE = 50_000
"""Sentences encoded at once. Their words are all in memory; a document of 100 MB would otherwise need gigabytes."""


@dataclass(frozen=True)
class EncodedDocuments:
    """Ids of a batch of documents.

    Attributes:
        input_ids: (tokens,) int32 concatenated ids of all sentences.
        sentence_lengths: (sentences,) tokens of each sentence, all positive.
        document_sentences: (documents,) sentences of each document, all positive.
        kept: (texts,) False for a text of control characters only, which has no tokens and yields no document.
        num_unknown: Number of unknown tokens.
    """

    input_ids: np.ndarray
    sentence_lengths: np.ndarray
    document_sentences: np.ndarray
    kept: np.ndarray
    num_unknown: int


class DocumentEncoder:
    """Encoder of whole texts, which splits them into sentences first.

    Args:
        tokenizer_folder: Tokenizer folder, read once.
    """

    def __init__(self, tokenizer_folder: Path) -> None:
        tokenizer = Tokenizer.from_folder(tokenizer_folder)
        self._unk_id = tokenizer.unk_id
        self._encoder = SentenceEncoder(tokenizer)

    def __call__(self, texts: Sequence[str]) -> EncodedDocuments:
        """Encodes a batch of texts."""
        documents = [split_sentences(text) for text in texts]
        input_ids, lengths = self._encode([sentence for sentences in documents for sentence in sentences])
        owners = np.repeat(np.arange(len(documents)), [len(sentences) for sentences in documents])
        # Sentences and documents of control characters only have no tokens.
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
