"""How well the documents of a store fill micro-batches: what the data card says of packing."""

from collections.abc import Iterable

import numpy as np

from framework.data.planning.order import permute
from framework.data.planning.packing import budget_sizes, pack
from framework.data.store.sequence_index import Division

SEQUENCE_LENGTHS = (128, 512, 1024)
MICRO_BATCHES, FULL_SEQUENCES = 8, 16
"""A step of the measure: so many micro-batches of one rank, each with room for so many sequences of full length."""
_NUM_SPECIALS = 2
_MOST_BATCHES = 64
_MOST_STEPS = 8

Boundaries = tuple[np.ndarray, np.ndarray]
"""Of a record batch: (sentences,) tokens of each sentence, (documents,) sentences of each document."""


def packing_efficiency(batches: Iterable[Boundaries]) -> dict[int, float]:
    """Real tokens / budgets in [0, 1], by sequence length, for single segments.

    Args:
        batches: All record batches of a store; some, evenly spaced, are looked at.
    """
    sample = _evenly_spaced(batches)
    return {length: _efficiency(sample, length) for length in SEQUENCE_LENGTHS}


def _efficiency(batches: list[Boundaries], sequence_length: int) -> float:
    division = Division(sequence_length - _NUM_SPECIALS, pairs=False)
    lengths = np.concatenate([_chunk_lengths(division, boundaries) for boundaries in batches]) + _NUM_SPECIALS
    lengths = lengths[permute(0, len(lengths), np.arange(len(lengths)))]
    budget = sequence_length * FULL_SEQUENCES
    # A step is a little short of its micro-batches, as its sequences are counted by their mean length.
    step = max(1, int(MICRO_BATCHES * budget / lengths.mean()))
    tokens = room = 0
    for first in range(0, min(len(lengths), step * _MOST_STEPS), step):
        here = lengths[first : first + step]
        if first and len(here) < step:
            break
        tokens += int(here.sum())
        room += sum(pack(here, budget_sizes(budget, sequence_length), 1, len(here)).budgets)
    return tokens / room


def _chunk_lengths(division: Division, boundaries: Boundaries) -> np.ndarray:
    pieces, _, chunks, _ = division.divide(*boundaries)
    return np.diff(pieces[chunks])


def _evenly_spaced(batches: Iterable[Boundaries]) -> list[Boundaries]:
    """At most `_MOST_BATCHES` of them: whenever there are more, every second one is dropped."""
    kept: list[Boundaries] = []
    stride = 1
    for number, boundaries in enumerate(batches):
        if number % stride == 0:
            kept.append(boundaries)
            if len(kept) > _MOST_BATCHES:
                kept, stride = kept[::2], 2 * stride
    return kept
