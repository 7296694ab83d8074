"""Token sequences for translation: `[CLS] source [SEP]` for the encoder, `[CLS] target` for the decoder.

The decoder's label at each token is the next token. The label at the last token is `[SEP]`.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from framework import ragged
from framework.batch import IGNORE_INDEX, PackedBatch
from framework.data.facts import Cutting, SplitFacts
from framework.data.flat_source import DerivedSource, FlatSource, FlatTarget
from framework.data.layout import lay_out
from framework.data.planning.collate import Shape
from framework.data.planning.plan import StepSequences
from framework.data.tokenization.tokenizer import Tokenizer

_ALL = 1 << 30
"""Length limit that no text reaches."""
_SPECIAL_TOKENS = 2
"""[CLS] source [SEP]"""


class TranslationSource(DerivedSource):
    """Pairs of one split (`framework.data.planning.plan.SequenceSource`, `GroupedSequences`).

    The length of a pair is the length of source plus target. Memory use and throughput depend on that sum.

    Args:
        sources: Encoder inputs.
        targets: Decoder inputs, in the same order.
        references: Target texts, for scores. Empty if the targets are unknown.
        texts: Source texts.
        tokenizer: Tokenizer that decodes predicted ids.
        facts: Facts about the split.

    Attributes:
        max_length: Maximum number of tokens of a pair.
        max_sequence_length: Maximum number of tokens of a source. The encoder needs that many positions.
    """

    def __init__(
        self,
        sources: FlatSource,
        targets: FlatSource,
        references: Sequence[str],
        texts: Sequence[str],
        tokenizer: Tokenizer,
        facts: SplitFacts,
    ) -> None:
        super().__init__(sources)
        self.facts = facts
        self.targets = targets
        self.references = references
        self.texts = texts
        self.tokenizer = tokenizer
        self.max_length = sources.max_length + targets.max_length

    @property
    def fingerprint(self) -> str:
        """Returns the fingerprints of sources and targets."""
        return f"{self.source.fingerprint} {self.targets.fingerprint}"

    @property
    def mean_length(self) -> float:
        """Returns the mean number of tokens of a pair."""
        return self.source.mean_length + self.targets.mean_length

    def lengths(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Returns (sequences,) int64: tokens of source plus target, special tokens included."""
        return self.source.lengths(epochs, indices) + self.targets.lengths(epochs, indices)

    def build(self, sequences: StepSequences, step: int, shape: Shape = None) -> PackedBatch:
        """Builds one micro-batch. `decoder_inputs` has the target `labels` (target tokens,); counts are target tokens.

        `shape` applies to sources plus targets. Sources and targets are each padded to all of it.
        """
        batch = self.source.build(sequences, step, shape)
        decoder_inputs = self.targets.build(sequences, step, shape)
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
    """Tokenizes pairs. If a text is too long, truncates it or drops its pair.

    A truncated target has no `[SEP]` label at its last token.

    Args:
        sources: Source texts, one per sequence.
        targets: Translations of the sources. None if unknown: the decoder then reads only `[CLS]`.
        tokenizer: Tokenizer of both languages.
        max_source_length: Maximum number of tokens of a source, special tokens included.
        max_target_length: Maximum number of target tokens that the decoder reads, `[CLS]` included.
        terms: Loss terms, each counted in target tokens.
        skips_long: Drop pairs with a text that is too long instead of truncating it.
    """
    whole_sources = lay_out(sources, None, tokenizer, _ALL)
    whole_targets = lay_out(targets if targets is not None else [""] * len(sources), None, tokenizer, _ALL)
    # The decoder reads all tokens but the last, which is only a label.
    target_lengths = whole_targets.lengths - 1
    too_long = (whole_sources.lengths > max_source_length) | (target_lengths > max_target_length)
    kept = np.flatnonzero(~too_long) if skips_long else np.arange(len(sources))
    source_ids, source_lengths = _cut(whole_sources.input_ids, whole_sources.lengths, kept, max_source_length)
    source_ids[np.cumsum(source_lengths) - 1] = tokenizer.sep_id
    starts = ragged.starts(whole_targets.lengths)
    lengths = np.minimum(target_lengths[kept], max_target_length)
    offsets = ragged.ranges(starts[kept], lengths)
    is_known = targets is not None
    labels = whole_targets.input_ids[offsets + 1] if is_known else np.full(len(offsets), IGNORE_INDEX)
    return TranslationSource(
        FlatSource(source_ids, source_lengths, {}, {}, max_source_length),
        FlatSource(
            whole_targets.input_ids[offsets],
            lengths,
            {"labels": FlatTarget(labels, "tokens")},
            dict.fromkeys(terms, lengths * is_known),
            max_target_length,
        ),
        [targets[index] for index in kept.tolist()] if targets is not None else [],
        [sources[index] for index in kept.tolist()],
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
    """Counts truncated tokens, given (pairs,) lengths of sources and targets, each with two special tokens."""
    is_truncated = (sources > max_source_length) | (targets - 1 > max_target_length)
    lost = np.maximum(sources - max_source_length, 0)
    lost += np.maximum(targets - 2 - max_target_length, 0)  # `[SEP]` does not count as lost
    num_tokens = int((sources + targets - 2 * _SPECIAL_TOKENS).sum())
    limit = max_source_length if max_source_length == max_target_length else 0
    return Cutting(limit, len(sources), int(is_truncated.sum()), num_tokens, int(lost.sum()))


def _cut(ids: np.ndarray, lengths: np.ndarray, kept: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids and lengths of the kept sequences, each truncated to `most` tokens."""
    starts = ragged.starts(lengths)
    shorter = np.minimum(lengths[kept], most)
    return ids[ragged.ranges(starts[kept], shorter)], shorter
