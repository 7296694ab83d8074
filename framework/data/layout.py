"""Turns texts into the ids of sequences: `[CLS] text [SEP]`, for pairs `[CLS] text [SEP] pair [SEP]`, segments 0 and 1.

The tokenizer states the number of separators between the texts of a pair: one in BERT, two in RoBERTa. They belong to
segment 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from framework import ragged
from framework.data.facts import Cutting
from framework.data.flat_source import FlatSource, FlatTarget
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, check_at_least

SHORTEST, SHORTEST_PAIR = 3, 5
"""Numbers of tokens in `[CLS] a [SEP]` and in `[CLS] a [SEP] b [SEP]`."""

_TEXTS_PER_CALL = 1000
"""Limits memory: the result of a tokenizer takes some hundred bytes per token until only the ids are kept."""


def check_max_length(name: str, max_length: int, shortest: int) -> None:
    """Checks the largest number of tokens of a sequence.

    Raises:
        ConfigError: Not even the shortest sequence fits.
    """
    check_at_least(name, max_length, shortest, "Special tokens count too. Raise it.")


@dataclass(frozen=True, slots=True)
class Layout:
    """Token ids of sequences, end to end.

    Attributes:
        input_ids: (tokens,) int32, including special tokens.
        lengths: (sequences,) int64, number of tokens of each sequence.
        token_type_ids: (tokens,) bool, True in the second segment; None for single texts.
        cutting: Counts of truncated texts.
        texts: Texts as in FlatSource; None: texts are not kept.
    """

    input_ids: np.ndarray
    lengths: np.ndarray
    token_type_ids: np.ndarray | None
    cutting: Cutting
    texts: tuple[pa.Array, ...] | None = None

    def source(
        self,
        targets: Mapping[str, FlatTarget],
        counts: Mapping[str, np.ndarray],
        max_length: int,
        item_sizes: np.ndarray | None = None,
        records: Sequence[Any] = (),
    ) -> FlatSource:
        """Returns a source with these sequences; see FlatSource for the arguments."""
        ids, lengths, segments = self.input_ids, self.lengths, self.token_type_ids
        return FlatSource(
            ids, lengths, targets, counts, max_length, segments, item_sizes, records, self.cutting, texts=self.texts
        )


def lay_out(
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    tokenizer: Tokenizer,
    max_length: int,
    keeps_texts: bool = False,
) -> Layout:
    """Tokenises texts, truncates them and adds special tokens.

    Args:
        texts: Text, or first text, of each sequence.
        pairs: Second text of each sequence; None for single texts.
        tokenizer: Tokenizer that provides the ids and the special tokens.
        max_length: Largest number of tokens of a sequence, including special tokens. Longer texts are truncated at
            their end; of a pair, the longer text is truncated first.
        keeps_texts: True to keep the texts for an augmentation that rewrites them.

    Raises:
        ConfigError: `max_length` has no room for one token of each text, or the tokenizer has special tokens only.
    """
    if len(texts) and not len(tokenizer.ordinary_ids):
        raise ConfigError(
            f"the tokenizer in {tokenizer.folder} has special tokens only, as that of a vision tower. Texts need a "
            "vocabulary. Start from the weights of an encoder of texts, or train new weights with tokenizer.path."
        )
    segments = [texts] if pairs is None else [texts, pairs]
    num_specials = 2 if pairs is None else 2 + tokenizer.pair_separators
    room = max_length - num_specials
    if room < len(segments):
        raise ConfigError(
            f"max_length is {max_length}, and this tokenizer adds {num_specials} special tokens. A sequence needs at "
            f"least {num_specials + len(segments)} tokens. Raise max_length."
        )
    encoded, full_lengths = zip(*(_encode(segment, tokenizer, room) for segment in segments), strict=True)
    sizes = np.array(full_lengths, dtype=np.int64)
    kept = np.minimum(sizes, room) if pairs is None else truncate_longest_first(sizes[0], sizes[1], room)
    lengths = kept.sum(axis=0) + num_specials
    starts = ragged.starts(lengths)
    input_ids = np.full(int(lengths.sum()), tokenizer.sep_id, dtype=np.int32)
    input_ids[starts] = tokenizer.cls_id
    begin = starts + 1
    for segment, counts in zip(encoded, kept, strict=True):
        input_ids[ragged.ranges(begin, counts)] = _joined(
            [ids[:count] for ids, count in zip(segment, counts, strict=True)]
        )
        begin = begin + counts + tokenizer.pair_separators
    token_type_ids = None
    if pairs is not None:
        token_type_ids = ragged.offsets_within(lengths) >= np.repeat(kept[0] + 1 + tokenizer.pair_separators, lengths)
    lost = sizes.sum(axis=0) - kept.sum(axis=0)
    cutting = Cutting(max_length, len(texts), int((lost > 0).sum()), int(sizes.sum()), int(lost.sum()))
    kept_texts = tuple(pa.array(segment, pa.large_string()) for segment in segments) if keeps_texts else None
    return Layout(input_ids, lengths, token_type_ids, cutting, kept_texts)


def window_firsts(num_tokens: int, room: int, stride: int) -> range:
    """Returns the index of the first token of each window of `room` tokens over a text, at least one.

    A window begins every `stride` tokens until one reaches the end of the text.
    """
    return range(0, max(num_tokens - room, 0) + stride, stride)


def truncate_longest_first(first: np.ndarray, second: np.ndarray, room: int) -> np.ndarray:
    """Returns the lengths of pairs after truncating the longer text, one token at a time, until both fit.

    This is the strategy LongestFirst of the `tokenizers` library in closed form.

    Args:
        first: (pairs,) number of tokens of the first texts.
        second: (pairs,) number of tokens of the second texts.
        room: Largest number of tokens of both texts together.

    Returns:
        (2, pairs) lengths. If both texts are truncated and `room` is odd, the longer text keeps one token more; if they
        have the same length, the second does.
    """
    short, long = np.minimum(first, second), np.maximum(first, second)
    short = np.where(short + long > room, np.minimum(short, room // 2), short)
    long = np.minimum(long, room - short)
    return np.where(first > second, [long, short], [short, long])


def _encode(texts: Sequence[str], tokenizer: Tokenizer, room: int) -> tuple[list[np.ndarray], list[int]]:
    """Returns the first `room` ids of each text, and the number of tokens of each text before truncation."""
    encoded: list[np.ndarray] = []
    lengths: list[int] = []
    for first in range(0, len(texts), _TEXTS_PER_CALL):
        for ids in tokenizer.encode_batch(texts[first : first + _TEXTS_PER_CALL]):
            encoded.append(ids[:room].copy())
            lengths.append(len(ids))
    return encoded, lengths


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.int32), *arrays])
