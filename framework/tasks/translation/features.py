"""Sequences of translation: `[CLS] source [SEP]` for the encoder, `[CLS] target` for the decoder.

The decoder's label at each token is the next one, at the last token `[SEP]`.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from framework import ragged
from framework.batch import IGNORE_INDEX, PackedBatch
from framework.data.facts import Cutting, SplitFacts
from framework.data.flat_source import FlatSource, FlatTarget
from framework.data.layout import lay_out
from framework.data.planning.collate import Shape
from framework.data.tokenization.tokenizer import Tokenizer

_ALL = 1 << 30
"""More tokens than a text has."""
_SPECIAL_TOKENS = 2
"""[CLS] source [SEP]"""


class TranslationSource:
    """Pairs of one split (`framework.data.planning.plan.SequenceSource`, `GroupedSequences`).

    A pair is as long as source and target together: that is what takes memory, and what throughput counts.

    Args:
        sources: What the encoder reads.
        targets: What the decoder reads, in the same order.
        references: The targets as texts, for scores; empty where they are not known.
        texts: The sources as texts.
        tokenizer: Turns found ids into text.
        facts: Facts about the split.

    Attributes:
        max_length: Most tokens of a pair.
        max_sequence_length: Most tokens of a source: what the encoder needs positions for.
    """

    group_size = 1

    def __init__(
        self,
        sources: FlatSource,
        targets: FlatSource,
        references: Sequence[str],
        texts: Sequence[str],
        tokenizer: Tokenizer,
        facts: SplitFacts,
    ) -> None:
        self.facts = facts
        self.sources = sources
        self.targets = targets
        self.references = references
        self.texts = texts
        self.tokenizer = tokenizer
        self.max_length = sources.max_length + targets.max_length
        self.max_sequence_length = sources.max_sequence_length
        self.shuffle = sources.shuffle

    def __len__(self) -> int:
        return len(self.sources)

    @property
    def fingerprint(self) -> str:
        """Of both sides."""
        return f"{self.sources.fingerprint} {self.targets.fingerprint}"

    @property
    def mean_length(self) -> float:
        """Mean tokens of a pair."""
        return self.sources.mean_length + self.targets.mean_length

    def read_ahead(self, epoch: int, start: int, stop: int) -> None:
        """Nothing is to be read, everything is in memory."""

    def lengths(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """(sequences,) int64 tokens of source and target together, special tokens included."""
        return self.sources.lengths(epochs, indices) + self.targets.lengths(epochs, indices)

    def build(
        self,
        epochs: np.ndarray,
        indices: np.ndarray,
        sequence_ids: np.ndarray,
        step: int,
        shape: Shape = None,
    ) -> PackedBatch:
        """One micro-batch. The target `labels` (target tokens,) is of `decoder_inputs`; counts are of target tokens.

        A shape is that of both sides together, and each side is filled up to all of it.
        """
        batch = self.sources.build(epochs, indices, sequence_ids, step, shape)
        decoder_inputs = self.targets.build(epochs, indices, sequence_ids, step, shape)
        return replace(
            batch,
            decoder_inputs=decoder_inputs,
            num_tokens=batch.num_tokens + decoder_inputs.num_tokens,
            counts=decoder_inputs.counts,
        )


def translation_source(
    sources: Sequence[str],
    targets: Sequence[str] | None,
    tokenizer: Tokenizer,
    max_source_length: int,
    max_target_length: int,
    terms: Sequence[str],
    skips_long: bool = False,
) -> TranslationSource:
    """Tokenizes pairs; a text that is too long is truncated, or its pair is left out.

    A target that lost its end has no `[SEP]` to be learned at its last token.

    Args:
        sources: One text for each sequence.
        targets: Their translations; None where they are not known: the decoder then reads `[CLS]` only.
        tokenizer: Of both languages.
        max_source_length: Most tokens of a source, special tokens included.
        max_target_length: Most tokens that the decoder reads of a target, `[CLS]` included.
        terms: Loss terms, each counted by target tokens.
        skips_long: Leave out pairs with a text that is too long.
    """
    whole_sources = lay_out(sources, None, tokenizer, _ALL)
    whole_targets = lay_out(targets if targets is not None else [""] * len(sources), None, tokenizer, _ALL)
    # The decoder reads all but the last token, whose place is that of a label.
    target_lengths = whole_targets.lengths - 1
    too_long = (whole_sources.lengths > max_source_length) | (target_lengths > max_target_length)
    kept = np.flatnonzero(~too_long) if skips_long else np.arange(len(sources))
    source_ids, source_lengths = _cut(whole_sources.input_ids, whole_sources.lengths, kept, max_source_length)
    source_ids[np.cumsum(source_lengths) - 1] = tokenizer.sep_id
    starts = ragged.starts(whole_targets.lengths)
    lengths = np.minimum(target_lengths[kept], max_target_length)
    places = ragged.ranges(starts[kept], lengths)
    is_known = targets is not None
    labels = whole_targets.input_ids[places + 1] if is_known else np.full(len(places), IGNORE_INDEX)
    return TranslationSource(
        FlatSource(source_ids, source_lengths, {}, {}, max_source_length),
        FlatSource(
            whole_targets.input_ids[places],
            lengths,
            {"labels": FlatTarget(labels, "tokens")},
            dict.fromkeys(terms, lengths * is_known),
            max_target_length,
        ),
        [targets[place] for place in kept.tolist()] if targets is not None else [],
        [sources[place] for place in kept.tolist()],
        tokenizer,
        SplitFacts(
            len(kept),
            left_out={"too long": int(too_long.sum())} if skips_long and too_long.any() else {},
            cutting=_cutting(
                whole_sources.lengths[kept], whole_targets.lengths[kept], max_source_length, max_target_length
            ),
        ),
    )


def _cutting(sources: np.ndarray, targets: np.ndarray, max_source_length: int, max_target_length: int) -> Cutting:
    """Counts truncated tokens of pairs, given (pairs,) lengths of sources and targets with two special tokens each."""
    is_cut = (sources > max_source_length) | (targets - 1 > max_target_length)
    lost = np.maximum(sources - max_source_length, 0)
    lost += np.maximum(targets - 2 - max_target_length, 0)  # the last token that a target loses is `[SEP]`
    num_tokens = int((sources + targets - 2 * _SPECIAL_TOKENS).sum())
    limit = max_source_length if max_source_length == max_target_length else 0
    return Cutting(limit, len(sources), int(is_cut.sum()), num_tokens, int(lost.sum()))


def _cut(ids: np.ndarray, lengths: np.ndarray, kept: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids and lengths of the kept sequences, each without what is beyond `most` tokens."""
    starts = ragged.starts(lengths)
    shorter = np.minimum(lengths[kept], most)
    return ids[ragged.ranges(starts[kept], shorter)], shorter
