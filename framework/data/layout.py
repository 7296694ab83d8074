"""Turns texts into the ids of sequences: `[CLS] text [SEP]`, for pairs `[CLS] text [SEP] pair [SEP]`, segments 0 and 1.

The tokenizer states the number of separators between the texts of a pair: one in BERT, two in RoBERTa. They belong to
segment 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from framework import ragged
from framework.data.facts import Cutting
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError

SHORTEST_PAIR = 5
"""[CLS] a [SEP] b [SEP]"""

_TEXTS_AT_ONCE = 1000
"""A tokenizer's result takes some hundred bytes a token until only the ids are kept."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Sequences end to end.

    Attributes:
        input_ids: (tokens,) int32, special tokens included.
        lengths: (sequences,) int64.
        token_type_ids: (tokens,) bool, True in the second segment; None where there are no pairs.
        cutting: Counts of truncated texts.
    """

    input_ids: np.ndarray
    lengths: np.ndarray
    token_type_ids: np.ndarray | None
    cutting: Cutting


def lay_out(texts: Sequence[str], pairs: Sequence[str] | None, tokenizer: Tokenizer, max_length: int) -> Layout:
    """Tokenises texts and puts special tokens around them.

    Args:
        texts: One for each sequence.
        pairs: The second texts; None for single texts.
        tokenizer: Gives ids and special tokens.
        max_length: Most tokens of a sequence, special tokens included; longer texts lose their end, of pairs the longer
            text first.

    Raises:
        ConfigError: `max_length` leaves no room for a token of each text.
    """
    segments = [texts] if pairs is None else [texts, pairs]
    num_specials = 2 if pairs is None else 2 + tokenizer.pair_separators
    room = max_length - num_specials
    if room < len(segments):
        raise ConfigError(
            f"max_length is {max_length}, and this tokenizer adds {num_specials} special tokens. A sequence needs at "
            f"least {num_specials + len(segments)} tokens. Raise max_length."
        )
    encoded, whole = zip(*(_encode(segment, tokenizer, room) for segment in segments), strict=True)
    sizes = np.array(whole, dtype=np.int64)
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
    return Layout(input_ids, lengths, token_type_ids, cutting)


def truncate_longest_first(first: np.ndarray, second: np.ndarray, room: int) -> np.ndarray:
    """Lengths of pairs after tokens were taken from the longer text, one at a time, until both fit.

    This is LongestFirst of the `tokenizers` library in closed form.

    Args:
        first: (pairs,) tokens of the first texts.
        second: (pairs,) tokens of the second texts.
        room: Tokens for both.

    Returns:
        (2, pairs) lengths. Where both are cut and the room is odd, the longer text keeps one more, of equals the
        second.
    """
    short, long = np.minimum(first, second), np.maximum(first, second)
    short = np.where(short + long > room, np.minimum(short, room // 2), short)
    long = np.minimum(long, room - short)
    return np.where(first > second, [long, short], [short, long])


def _encode(texts: Sequence[str], tokenizer: Tokenizer, room: int) -> tuple[list[np.ndarray], list[int]]:
    """The first `room` ids of each text, and how many it has in all."""
    encoded: list[np.ndarray] = []
    lengths: list[int] = []
    for first in range(0, len(texts), _TEXTS_AT_ONCE):
        for ids in tokenizer.encode_batch(texts[first : first + _TEXTS_AT_ONCE]):
            encoded.append(ids[:room].copy())
            lengths.append(len(ids))
    return encoded, lengths


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype=np.int32), *arrays])
