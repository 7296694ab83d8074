"""Measures how well the documents of a store fill micro-batches, for the data card."""

from collections.abc import Iterable

import numpy as np

from framework.data.planning.order import permute
from framework.data.planning.packing import budget_sizes, pack
from framework.data.store.sequence_index import Division

SEQUENCE_LENGTHS = (128, 512, 1024)
MICRO_BATCHES, FULL_SEQUENCES = 8, 16
"""Size of a measured step: number of micro-batches of one rank, and number of full-length sequences in each."""
_NUM_SPECIALS = 2
_MAX_BATCHES = 64
_MAX_STEPS = 8

Boundaries = tuple[np.ndarray, np.ndarray]
"""(sentences,) tokens of each sentence, and (documents,) sentences of each document, of one record batch."""


def packing_efficiency(batches: Iterable[Boundaries]) -> dict[int, float]:
    """Returns real tokens / token budgets, in [0, 1], by sequence length, for single segments.

    Args:
        batches: All record batches of a store; an evenly spaced sample of them is used.
    """
    sample = _evenly_spaced(batches)
    return {length: _efficiency(sample, length) for length in SEQUENCE_LENGTHS}


def _efficiency(batches: list[Boundaries], sequence_length: int) -> float:
    division = Division(sequence_length - _NUM_SPECIALS, pairs=False)
    lengths = np.concatenate([_chunk_lengths(division, boundaries) for boundaries in batches]) + _NUM_SPECIALS
    lengths = lengths[permute(0, len(lengths), np.arange(len(lengths)))]
    budget = sequence_length * FULL_SEQUENCES
    # The mean length determines the number of sequences of a step, so a step can be slightly short of its budget.
    step = max(1, int(MICRO_BATCHES * budget / lengths.mean()))
    tokens = room = 0
    for first in range(0, min(len(lengths), step * _MAX_STEPS), step):
        sample = lengths[first : first + step]
        if first and len(sample) < step:
            break
        tokens += int(sample.sum())
        room += sum(pack(sample, budget_sizes(budget, sequence_length), 1, len(sample)).budgets)
    return tokens / room


def _chunk_lengths(division: Division, boundaries: Boundaries) -> np.ndarray:
    pieces, _, chunks, _ = division.divide(*boundaries)
    return np.diff(pieces[chunks])


def _evenly_spaced(batches: Iterable[Boundaries]) -> list[Boundaries]:
    """Returns at most `_MAX_BATCHES` batches; whenever there are more, every second one is dropped."""
    kept: list[Boundaries] = []
    stride = 1
    for number, boundaries in enumerate(batches):
        if number % stride == 0:
            kept.append(boundaries)
            if len(kept) > _MAX_BATCHES:
                kept, stride = kept[::2], 2 * stride
    return kept
