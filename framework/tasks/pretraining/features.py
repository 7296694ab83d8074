"""Sequences of pre-training: sentence pairs (or single segments) from a token store, with hidden words.

Layout: `[CLS] A [SEP] B [SEP]` with segments 0 and 1, without next-sentence prediction `[CLS] A [SEP]`. RoBERTa's
doubled separator is not used.
"""

from dataclasses import dataclass

import numpy as np

from framework.batch import PackedBatch
from framework.data.collate import Capacity, Target, pack_sequences
from framework.data.masking import MaskingFacts, mask_tokens
from framework.data.sentence_pairs import Segments, SentenceChunks
from framework.data.store import TokenStore
from framework.data.tokenizer import Tokenizer
from framework.random import key, mix

EVALUATION_SEED = 0
"""Pairs and masks of evaluation are those of this seed and epoch 0 in every run, so that runs compare."""


@dataclass(frozen=True)
class MaskRate:
    """Share of the maskable tokens that is hidden, as a function of the step.

    Attributes:
        start: Before the first step.
        end: From step `steps` on; linear in between.
        steps: Optimizer steps from one to the other; 0 means `end` from the beginning.
    """

    start: float
    end: float
    steps: int = 0

    def at(self, step: int) -> float:
        """The rate of the step before which `step` steps were completed."""
        done = 1.0 if step >= self.steps else step / self.steps
        return self.start + (self.end - self.start) * done


class PretrainingSource:
    """The sequences of one split (`framework.data.plan.SequenceSource`), pure functions of (seed, epoch, index).

    Args:
        store: Holds the tokens.
        documents: Ascending documents of this split.
        tokenizer: The one that made the store.
        sequence_length: Most tokens of a sequence, special tokens included.
        nsp: Whether sequences are pairs.
        mask_rate: By step.
        whole_word: Hide whole words.
        seed: Of the run; None for evaluation, where neither seed nor epoch changes pairs and masks.
    """

    def __init__(
        self,
        store: TokenStore,
        documents: np.ndarray,
        tokenizer: Tokenizer,
        sequence_length: int,
        nsp: bool,
        mask_rate: MaskRate,
        whole_word: bool,
        seed: int | None,
    ) -> None:
        self.max_length = sequence_length
        self.mask_rate = mask_rate
        self._store = store
        self._num_specials = 3 if nsp else 2
        self.chunks = SentenceChunks(
            store.document_offsets,
            store.document_sentences,
            store.sentence_offsets,
            documents,
            sequence_length - self._num_specials,
            nsp,
        )
        self._facts = MaskingFacts.of(tokenizer)
        self._cls_id, self._sep_id = tokenizer.cls_id, tokenizer.sep_id
        self._whole_word = whole_word
        self._is_evaluation = seed is None
        self._seed = EVALUATION_SEED if seed is None else seed

    def __len__(self) -> int:
        return len(self.chunks)

    def lengths(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """(sequences,) int64 tokens of each, special tokens included."""
        return self._segments(self._seen(epochs), indices).lengths.sum(axis=1) + self._num_specials

    def build(
        self,
        epochs: np.ndarray,
        indices: np.ndarray,
        sequence_ids: np.ndarray,
        step: int,
        capacity: Capacity | None = None,
    ) -> PackedBatch:
        """One micro-batch; targets mlm_positions, mlm_labels (targets,) and, with pairs, nsp_labels (sequences,)."""
        epochs = self._seen(epochs)
        segments = self._segments(epochs, indices)
        lengths = segments.lengths.sum(axis=1) + self._num_specials
        first = np.cumsum(lengths) - lengths
        separators = first[:, None] + np.cumsum(segments.lengths + 1, axis=1)
        is_text = np.ones(int(lengths.sum()), dtype=bool)
        is_text[first] = False
        is_text[separators] = False
        input_ids = np.empty(len(is_text), dtype=np.int64)
        input_ids[first] = self._cls_id
        input_ids[separators] = self._sep_id
        input_ids[is_text] = self._store.gather(segments.starts.ravel(), segments.lengths.ravel())
        maskable = is_text & ~self._facts.is_special[input_ids]
        keys = mix(mix(key(self._seed, "masks"), epochs), indices)
        positions, labels, hidden_ids = mask_tokens(
            input_ids, lengths, maskable, keys, self.mask_rate.at(step), self._facts, self._whole_word
        )
        targets = {"mlm_positions": Target(positions, "targets", filler=0), "mlm_labels": Target(labels, "targets")}
        counts = {"mlm": float(len(positions))}
        token_type_ids = None
        if self.chunks.pairs:
            token_type_ids = np.arange(len(input_ids)) > np.repeat(separators[:, 0], lengths)
            targets["nsp_labels"] = Target(segments.labels, "sequences")
            counts["nsp"] = float(len(indices))
        return pack_sequences(hidden_ids, lengths, sequence_ids, token_type_ids, targets, counts, capacity)

    def unused_fraction(self, epoch: int) -> float:
        """Share of the text that next-sentence prediction leaves out in an epoch; see `SentenceChunks`."""
        return self.chunks.unused_fraction(self._seed, int(self._seen(np.array([epoch]))[0]))

    def _seen(self, epochs: np.ndarray) -> np.ndarray:
        return np.zeros_like(epochs) if self._is_evaluation else epochs

    def _segments(self, epochs: np.ndarray, indices: np.ndarray) -> Segments:
        return self.chunks.draw_pairs(self._seed, epochs, indices) if self.chunks.pairs else self.chunks.whole(indices)
