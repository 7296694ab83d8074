"""Sequences of pre-training: sentence pairs or single segments from a token store, with masked tokens.

Layout: `[CLS] A [SEP] B [SEP]` with segments 0 and 1; without next-sentence prediction `[CLS] A [SEP]`. Two separators
follow A if the tokenizer uses two, as in RoBERTa.
"""

from copy import copy
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import numpy as np

from framework import ragged
from framework.batch import PackedBatch
from framework.data.facts import SplitFacts
from framework.data.masking import BERT_REPLACEMENTS, Masking, MaskingFacts, Replacements, mask_tokens
from framework.data.planning.collate import Shape, Target, pack_sequences
from framework.data.planning.mixture import Mixture
from framework.data.planning.order import Shuffle
from framework.data.planning.plan import StepSequences
from framework.data.sentence_pairs import Segments, SentenceChunks
from framework.data.store.token_store import TokenStore
from framework.data.tokenization.tokenizer import Tokenizer
from framework.random import key, mix

EVALUATION_SEED = 0
"""Seed of the pairs and masks of evaluation in every run, together with epoch 0, so that runs are comparable."""
SAMPLE_RUNS, SAMPLE_RUN = 40, 50
"""Number and length of the runs of consecutive sequences that estimate the mean length and the unused text share."""


def num_specials(pairs: bool, tokenizer: Tokenizer) -> int:
    """Returns the number of special tokens of a sequence."""
    return 2 + tokenizer.pair_separators if pairs else 2


@dataclass(frozen=True)
class MaskRate:
    """Fraction of the maskable tokens that is masked, as a function of the step.

    Attributes:
        start: Rate before the first step.
        end: Rate from step `steps` on; it changes linearly in between.
        steps: Optimizer steps from `start` to `end`; 0 means `end` from the beginning.
    """

    start: float
    end: float
    steps: int = 0

    def at(self, step: int) -> float:
        """Returns the rate of the step with this index, counted from 0."""
        done = 1.0 if step >= self.steps else step / self.steps
        return self.start + (self.end - self.start) * done


def _draw_keys(seed: int) -> tuple[int, int]:
    """Returns the keys of the sentence pairs and of the masks."""
    return key(seed, "sentence pairs"), key(seed, "masks")


class PretrainingSource:
    """A `SequenceSource` of one split, whose sequences are pure functions of (seed, epoch, index).

    Args:
        store: Token store.
        chunks: Chunks of this split.
        mixture: Map from sequences to chunks.
        shuffle: Order of an epoch.
        tokenizer: Tokenizer of the store.
        mask_rate: Mask rate by step.
        masking: Unit of masking: tokens, words or spans.
        seed: Seed of the run. None for evaluation, where neither seed nor epoch changes pairs and masks.
        replacements: Shares of mask tokens and random words among the chosen tokens.
    """

    def __init__(
        self,
        store: TokenStore,
        chunks: SentenceChunks,
        mixture: Mixture,
        shuffle: Shuffle,
        tokenizer: Tokenizer,
        mask_rate: MaskRate,
        masking: Masking,
        seed: int | None,
        replacements: Replacements = BERT_REPLACEMENTS,
    ) -> None:
        self.chunks = chunks
        self.shuffle = shuffle
        self.mask_rate = mask_rate
        self._num_specials = num_specials(chunks.pairs, tokenizer)
        self.max_length = chunks.max_tokens + self._num_specials
        self._store = store
        self._mixture = mixture
        self._facts = MaskingFacts.of(tokenizer)
        self._cls_id, self._sep_id = tokenizer.cls_id, tokenizer.sep_id
        self._num_separators = tokenizer.pair_separators if chunks.pairs else 1
        self._masking, self._replacements = masking, replacements
        self._is_evaluation = seed is None
        self._pairs_key, self._masks_key = _draw_keys(EVALUATION_SEED if seed is None else seed)

    def __len__(self) -> int:
        return len(self._mixture)

    @property
    def fingerprint(self) -> str:
        """Returns a text that identifies the store, and the number of sequences, chunks and separators."""
        joined = f" joined by {self._num_separators}" if self._num_separators != 1 else ""
        return f"{self._store.fingerprint} {len(self)} of {len(self.chunks)}{joined}"

    @cached_property
    def facts(self) -> SplitFacts:
        """Returns the number of sequences of an epoch, with estimates of tokens and unused text from a sample."""
        unused = self.unused_fraction(0) if self.chunks.pairs else 0.0
        notes = {"tokens an epoch": f"about {round(len(self) * self.mean_length):,}"}
        if unused:
            notes["text unused by sentence pairs"] = f"{unused:.1%}"
        return SplitFacts(len(self), unit="sequences", notes=notes)

    @cached_property
    def mean_length(self) -> float:
        """Estimates the mean number of tokens of a sequence, special tokens included, from a sample of epoch 0."""
        indices = self._sample()
        return float(self.lengths(np.zeros_like(indices), indices).mean())

    @property
    def uses_each_chunk_once(self) -> bool:
        """Returns True if the sequences of an epoch are the chunks, each once."""
        return self._mixture.is_plain

    @property
    def documents(self) -> np.ndarray:
        """Returns (chunks,) int64 index of the document of each chunk, ascending."""
        return self.chunks.documents

    def for_evaluation(self, mask_rate: MaskRate) -> "PretrainingSource":
        """Returns the sequences of the first epoch with the pairs and masks of evaluation.

        Args:
            mask_rate: Mask rate of evaluation.
        """
        source = copy(self)
        source.mask_rate = mask_rate
        source._is_evaluation = True
        source._pairs_key, source._masks_key = _draw_keys(EVALUATION_SEED)
        return source

    def lengths(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Returns (sequences,) int64 tokens of each sequence, special tokens included."""
        return self._segments(self._effective(epochs), indices).lengths.sum(axis=1) + self._num_specials

    def build(self, sequences: StepSequences, step: int, shape: Shape = None) -> PackedBatch:
        """Builds one micro-batch.

        Its targets are mlm_positions and mlm_labels (targets,) and, with pairs, nsp_labels (sequences,).
        """
        indices, epochs = sequences.indices, self._effective(sequences.epochs)
        segments = self._segments(epochs, indices)
        lengths = segments.lengths.sum(axis=1) + self._num_specials
        first = ragged.starts(lengths)
        # Only the separator between two segments is repeated.
        second = first + 1 + segments.lengths[:, 0] + self._num_separators
        separators = [first + 1 + segments.lengths[:, 0] + each for each in range(self._num_separators)]
        separators.append(first + lengths - 1)
        is_text = np.ones(int(lengths.sum()), dtype=bool)
        input_ids = np.full(len(is_text), self._sep_id, dtype=np.int64)
        is_text[[first, *separators]] = False
        input_ids[first] = self._cls_id
        input_ids[is_text] = self._store.gather(segments.starts.ravel(), segments.lengths.ravel())
        maskable = is_text & ~self._facts.is_special[input_ids]
        keys = mix(mix(self._masks_key, epochs), indices)
        positions, labels, hidden_ids = mask_tokens(
            input_ids, lengths, maskable, keys, self.mask_rate.at(step), self._facts, self._masking, self._replacements
        )
        targets = {"mlm_positions": Target(positions, "targets", filler=0), "mlm_labels": Target(labels, "targets")}
        counts = {"mlm": float(len(positions)), "z": float(len(positions))}
        token_type_ids = None
        if self.chunks.pairs:
            token_type_ids = np.arange(len(input_ids)) > np.repeat(second - 1, lengths)
            targets["nsp_labels"] = Target(segments.labels, "sequences")
            counts["nsp"] = float(len(indices))
        return pack_sequences(hidden_ids, lengths, sequences.sequence_ids, token_type_ids, targets, counts, shape)

    def most_targets(self, tokens: int, sequences: int) -> int:
        """Returns the most masked tokens of a micro-batch: of each sequence its share, rounded up.

        Masked words and spans may exceed their share by a part of a word, so that a micro-batch may have a few more.
        """
        return ceil(max(self.mask_rate.start, self.mask_rate.end) * tokens) + sequences

    def read_ahead(self, epoch: int, start: int, stop: int) -> None:
        """Starts reading the text of the sequences `start` (inclusive) to `stop` (exclusive), which come soon."""
        epochs, indices = np.full(2, epoch), np.array([start, stop - 1])
        chunks = self._mixture.chunks(self._effective(epochs), indices)
        # Only if the chunks are consecutive, so that no source ends or restarts in between.
        if chunks[1] - chunks[0] == stop - 1 - start:
            ends = self.chunks.single_segments(chunks)
            self._store.tokens.read_ahead(int(ends.starts[0, 0]), int(ends.starts[1, 0] + ends.lengths[1, 0]))

    def unused_fraction(self, epoch: int) -> float:
        """Estimates the fraction of the text that sentence pairs do not use in an epoch, from a sample of sequences."""
        indices = self._sample()
        epochs = self._effective(np.full(len(indices), epoch))
        return self.chunks.unused_fraction(self._pair_keys(epochs, indices), self._mixture.chunks(epochs, indices))

    def _sample(self) -> np.ndarray:
        starts = np.linspace(0, max(len(self) - SAMPLE_RUN, 0), SAMPLE_RUNS).astype(np.int64)
        return np.unique(np.minimum(starts[:, None] + np.arange(SAMPLE_RUN), len(self) - 1))

    def _effective(self, epochs: np.ndarray) -> np.ndarray:
        return np.zeros_like(epochs) if self._is_evaluation else epochs

    def _pair_keys(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        return mix(mix(self._pairs_key, epochs), indices)

    def _segments(self, epochs: np.ndarray, indices: np.ndarray) -> Segments:
        chunks = self._mixture.chunks(epochs, indices)
        return (
            self.chunks.draw_pairs(self._pair_keys(epochs, indices), chunks)
            if self.chunks.pairs
            else self.chunks.single_segments(chunks)
        )
