"""Packs the sequences of a global step into the micro-batches of all ranks: vectorized bin packing.

Every rank runs the same number of micro-batches. All have the full token budget, except that the last one of each rank
may have a smaller one. It is the same on every rank and one of few sizes, so that few shapes are compiled. A bin is a
micro-batch of any rank. The packer deals sequences to the bins in rounds. Then overfull bins exchange sequences with
others. No loop runs over sequences.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from framework import ragged
from framework.errors import ConfigError

NUM_SIZES = 16
"""Number of possible budgets of a rank's last micro-batch without fixed shapes: multiples of 1/16 of the budget."""

_EXCHANGED = 4
"""Sequences of a bin that one exchange considers, in any subset."""
_SUBSETS = (np.arange(2**_EXCHANGED)[:, None] >> np.arange(_EXCHANGED)) & 1
_EXCHANGES_AT_ONCE, _MOST_EXCHANGES = 2**13, 2**15
"""Limits on exchanges: per round, and over all rounds before the packer gives up a number of micro-batches. They bound
time and memory with thousands of bins."""
_PATIENCE = 32
"""Rounds of exchanges within which the excess tokens must shrink by a quarter."""


@dataclass(frozen=True, slots=True)
class Packing:
    """Assignment of the sequences of a step to micro-batches.

    Attributes:
        budgets: (micro_batches,) most tokens of each micro-batch of a rank, the same on every rank. All but the last
            are equal, and the last is no larger.
        assignment: (sequences,) int64, rank * micro_batches + micro-batch.
    """

    budgets: tuple[int, ...]
    assignment: np.ndarray

    def of_rank(self, rank: int) -> list[np.ndarray]:
        """Returns the sequences of each micro-batch of a rank, as ascending int64 indices into the step."""
        count = len(self.budgets)
        if count == 1:
            return [np.flatnonzero(self.assignment == rank)]
        slots = np.flatnonzero(self.assignment // count == rank)
        micro_batches = self.assignment[slots] % count
        order = np.argsort(micro_batches, kind="stable")
        ends = np.cumsum(np.bincount(micro_batches, minlength=count))
        return np.split(slots[order], ends[:-1])

    def fullest_rank(self, lengths: np.ndarray) -> int:
        """Returns the rank with the most tokens in a micro-batch, the first of several.

        Args:
            lengths: (sequences,) tokens of each.
        """
        tokens = np.bincount(self.assignment, weights=lengths)
        return int(tokens.argmax()) // len(self.budgets)


def budget_sizes(budget: int, max_length: int, num_sizes: int = NUM_SIZES) -> list[int]:
    """Returns the possible budgets of a micro-batch: multiples of budget / num_sizes, ascending from `max_length`."""
    sizes = np.unique(-(-budget * np.arange(1, num_sizes + 1) // num_sizes))
    return [int(size) for size in sizes if size >= max_length]


def pack(lengths: np.ndarray, sizes: list[int], num_ranks: int, max_sequences: int) -> Packing:
    """Packs sequences into as few micro-batches per rank as possible, with the last one as small as possible.

    Args:
        lengths: (sequences,) tokens of each, all positive and none above the smallest size.
        sizes: Possible budgets of a rank's last micro-batch, ascending; the other micro-batches have the largest.
        num_ranks: Number of ranks.
        max_sequences: Most sequences of a micro-batch.

    Raises:
        ConfigError: A sequence is longer than the smallest size.
    """
    if len(lengths) and lengths.max() > sizes[0]:
        raise ConfigError(
            f"a sequence has {lengths.max()} tokens, but a micro-batch may be as small as {sizes[0]} tokens. Sequences "
            f"cannot be split. Raise micro_batch_tokens and the source's max_length to at least {lengths.max()}, or "
            "shorten the sequences."
        )
    num_tokens = int(lengths.sum())
    if num_ranks == 1 and len(lengths) <= max_sequences and num_tokens <= sizes[-1]:
        last = next(size for size in sizes if size >= num_tokens)
        return Packing((last,), np.zeros(len(lengths), dtype=np.int64))
    order = np.argsort(-lengths, kind="stable")
    descending = lengths[order]
    least_room = 0
    for num_micro_batches, last in _candidates(descending, sizes, num_ranks, max_sequences):
        budgets = np.full(num_micro_batches * num_ranks, sizes[-1])
        budgets[-num_ranks:] = last
        room = int(budgets.sum())
        if room < least_room:
            continue
        bins, excess = _assign(descending, budgets, max_sequences)
        if excess == 0:
            assignment = np.empty_like(order)
            assignment[order] = _to_ranks(bins, descending, num_micro_batches, num_ranks)
            return Packing((sizes[-1],) * (num_micro_batches - 1) + (last,), assignment)
        # The excess tokens need at least about that much more room.
        least_room = room + excess
    raise AssertionError("the candidates ended before every sequence had a bin of its own")


def _candidates(
    descending: np.ndarray, sizes: list[int], num_ranks: int, max_sequences: int
) -> Iterator[tuple[int, int]]:
    """Yields numbers of micro-batches per rank with the size of the last one, by ascending room.

    Candidates that are certainly too small are skipped: those with less room than tokens, and those that cannot hold
    the k longest sequences for some k. A bin holds at most as many of these as copies of the k-th would fit into it.
    """
    total, full = int(descending.sum()), sizes[-1]
    ranking = np.arange(1, len(descending) + 1)
    most = np.minimum(full // descending, max_sequences)
    fewest_bins = max(1, -(-total // full), int((-(-ranking // most)).max(initial=1)))
    num_micro_batches = -(-fewest_bins // num_ranks)
    while True:
        for last in sizes:
            if num_ranks * ((num_micro_batches - 1) * full + last) >= total:
                fitting = (num_micro_batches - 1) * most + np.minimum(last // descending, max_sequences)
                if (num_ranks * fitting >= ranking).all():
                    yield num_micro_batches, last
        num_micro_batches += 1


def _assign(descending: np.ndarray, budgets: np.ndarray, max_sequences: int) -> tuple[np.ndarray, int]:
    """Deals sequences to bins and repairs overfull bins.

    Returns:
        (sequences,) int64 bin of each, and the excess tokens over all bins.
    """
    fewest = None
    # The even deal goes first since it makes even bins. Where bins hold few sequences, only the tight deal may fit.
    for deal in (_deal_evenly, _deal_tightly):
        bins = deal(descending, budgets.copy(), np.full(len(budgets), max_sequences))
        excess = _exchange_until_it_fits(bins, descending, budgets, max_sequences)
        if excess == 0:
            return bins, 0
        fewest = excess if fewest is None else min(fewest, excess)
    assert fewest is not None
    return bins, fewest


def _deal_evenly(descending: np.ndarray, rooms: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Deals sequences, longest first, each to the bin with the most room (LPT: Graham 1969).

    A round deals one sequence to each bin that would have the most room when its turn comes. While many sequences
    remain, a round deals several rows at once, and later rounds even out the differences.

    Args:
        descending: (sequences,) tokens of each.
        rooms: (bins,) tokens that each bin may still take; modified. A bin is overfilled if no other has room.
        free: (bins,) sequences that each bin may still take; modified.

    Returns:
        (sequences,) int64 bin of each.
    """
    bins = np.empty(len(descending), dtype=np.int64)
    first = 0
    while first < len(descending):
        open_bins = np.flatnonzero(free > 0)
        order = open_bins[np.argsort(-rooms[open_bins], kind="stable")]
        left, longest = len(descending) - first, int(descending[first])
        row = descending[first : first + len(order)]
        room = rooms[order]
        before = np.maximum.accumulate(room[: len(row)] - row)[:-1]
        overtaken = np.flatnonzero(room[1 : len(row)] < before)
        width = int(overtaken[0]) + 1 if len(overtaken) else len(row)
        rows = min(left // width, int(room[width - 1]) // longest) // 2
        if width < len(order):
            rows = min(rows, int(room[0] - room[width]) // longest)
        rows = max(1, min(rows, int(free[order[:width]].min())))
        dealt = np.tile(order[:width], rows)[:left]
        bins[first : first + len(dealt)] = dealt
        rooms -= np.bincount(dealt, descending[first : first + len(dealt)], len(rooms)).astype(np.int64)
        free -= np.bincount(dealt, minlength=len(free))
        first += len(dealt)
    return bins


def _deal_tightly(descending: np.ndarray, rooms: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Deals sequences in rounds, in which each bin, roomiest first, takes the longest remaining sequence that fits.

    Sequences that fit into no bin are dealt evenly. Arguments and result are those of `_deal_evenly`.
    """
    bins = np.empty(len(descending), dtype=np.int64)
    left = np.arange(len(descending))
    while len(left):
        order = np.argsort(-np.where(free > 0, rooms, 0), kind="stable")
        fitting = np.searchsorted(-descending[left], -np.where(free > 0, rooms, 0)[order])
        # Each bin's choice comes after those of the bins before it.
        turns = np.arange(len(order))
        choice = np.maximum.accumulate(fitting - turns) + turns
        order, choice = order[choice < len(left)], choice[choice < len(left)]
        if not len(choice):
            break
        taken = left[choice]
        bins[taken] = order
        rooms[order] -= descending[taken]
        free[order] -= 1
        left = np.delete(left, choice)
    bins[left] = _deal_evenly(descending[left], rooms, free)
    return bins


def _exchange_until_it_fits(bins: np.ndarray, descending: np.ndarray, budgets: np.ndarray, max_sequences: int) -> int:
    """Pairs overfull bins with roomy ones and evens them out, in place, with new partners in each round.

    Returns:
        Excess tokens over all bins that remain.
    """
    num_bins = len(budgets)
    rooms = budgets - np.bincount(bins, descending, num_bins).astype(np.int64)
    excess = -int(np.minimum(rooms, 0).sum())
    goal, turn, last_gain, tried = excess, 0, 0, 0
    while excess and num_bins > 1 and tried < _MOST_EXCHANGES and turn - last_gain < _PATIENCE:
        by_room = np.argsort(rooms, kind="stable")
        num_pairs = min(int(np.count_nonzero(rooms < 0)), num_bins // 2, _EXCHANGES_AT_ONCE)
        partners = (np.arange(num_pairs) + turn) % (num_bins - num_pairs)
        pairs = np.stack([by_room[:num_pairs], by_room[::-1][partners]])
        growth = _exchange(bins, descending, pairs, rooms, max_sequences, turn)
        rooms[pairs[0]] += growth
        rooms[pairs[1]] -= growth
        excess = -int(np.minimum(rooms, 0).sum())
        tried += num_pairs
        turn += 1
        if 4 * excess <= 3 * goal:
            goal, last_gain = excess, turn
    return excess


def _exchange(
    bins: np.ndarray, descending: np.ndarray, pairs: np.ndarray, rooms: np.ndarray, max_sequences: int, turn: int
) -> np.ndarray:
    """Evens out the rooms of each pair of bins, in place, by the best exchange of a few sequences.

    Args:
        bins: (sequences,) bin of each; modified.
        descending: (sequences,) tokens of each.
        pairs: (2, pairs) bins, each at most once; those of the first row have less room.
        rooms: (bins,) tokens that each bin could still take.
        max_sequences: Most sequences of a bin.
        turn: Round number; selects the sequences that a bin with more than a few may exchange.

    Returns:
        (pairs,) tokens that move from the first bin to the second, never negative.
    """
    chosen = np.zeros(len(rooms), dtype=bool)
    chosen[pairs] = True
    members = np.flatnonzero(chosen[bins])
    members = members[np.argsort(bins[members], kind="stable")]
    num_members = np.bincount(bins[members], minlength=len(rooms))
    starts = ragged.starts(num_members)[pairs][..., None]
    counts = num_members[pairs][..., None]
    # (2, pairs, few) members of each bin, spread over its lengths.
    few = np.arange(_EXCHANGED)
    picked = np.where(counts <= _EXCHANGED, few, (few * counts // _EXCHANGED + turn) % np.maximum(counts, 1))
    exists = picked < counts
    slots = members[np.where(exists, starts + picked, 0)]
    # (pairs, subsets, subsets) tokens that move when one subset is exchanged for the other.
    given, taken = np.where(exists, descending[slots], 0) @ _SUBSETS.T
    moved = given[:, :, None] - taken[:, None, :]
    gap = rooms[pairs[1]] - rooms[pairs[0]]
    unevenness = np.abs(2 * moved - gap[:, None, None])
    if max_sequences < len(bins):
        num_given, num_taken = exists.astype(np.int64) @ _SUBSETS.T
        growth = num_given[:, :, None] - num_taken[:, None, :]
        free = max_sequences - counts[..., None]
        unevenness[(growth > free[1]) | (-growth > free[0])] = np.iinfo(np.int64).max
    every = np.arange(len(gap))
    best = unevenness.reshape(len(gap), -1).argmin(axis=1)
    better = unevenness.reshape(len(gap), -1)[every, best] < gap
    for row, subset in enumerate(np.divmod(best, len(_SUBSETS))):
        leaves = exists[row] & (_SUBSETS[subset] == 1) & better[:, None]
        bins[slots[row][leaves]] = np.repeat(pairs[1 - row], leaves.sum(axis=1))
    return np.where(better, moved.reshape(len(gap), -1)[every, best], 0)


def _to_ranks(bins: np.ndarray, descending: np.ndarray, num_micro_batches: int, num_ranks: int) -> np.ndarray:
    """Deals bins to ranks, fullest first, row by row in alternating direction; the last row evens out the ranks' loads.

    Returns:
        (sequences,) int64, rank * micro_batches + micro-batch.
    """
    loads = np.bincount(bins, descending, num_micro_batches * num_ranks)
    rows = np.argsort(-loads[:-num_ranks], kind="stable").reshape(num_micro_batches - 1, num_ranks)
    rows[1::2] = rows[1::2, ::-1]
    last = np.empty(num_ranks, dtype=np.int64)
    by_tokens = np.argsort(-loads[rows].sum(axis=0), kind="stable")
    last[by_tokens] = len(loads) - num_ranks + np.argsort(loads[-num_ranks:], kind="stable")
    assignment = np.empty(len(loads), dtype=np.int64)
    assignment[np.concatenate([rows, last[None]]).T.reshape(-1)] = np.arange(len(loads))
    return assignment[bins]
