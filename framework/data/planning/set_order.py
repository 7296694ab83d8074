"""Order of an epoch in which each step has sequences of one data set only, and each set a share of the steps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from framework.data.planning.order import Shuffle, permute
from framework.errors import ConfigError
from framework.random import key


@dataclass(frozen=True, eq=False)
class SetShuffle(Shuffle):
    """Random order of an epoch over several sets of sequences. A step has sequences of one set, drawn by the shares.

    A set is run through again and again, each time in a new order. The sequences that remain after its last full step
    are left out of that round.

    Attributes:
        names: Names of the sets, for messages.
        sizes: Number of sequences of each set; the sequences of a set are adjacent.
        shares: Share of the steps of each set; their sum is 1.
        step_size: Sequences of a step; 0: the plan has not set it (`for_steps`).
    """

    names: Sequence[str] = ()
    sizes: Sequence[int] = ()
    shares: Sequence[float] = ()
    step_size: int = 0

    def for_steps(self, global_batch_size: int) -> "SetShuffle":
        """Returns the order for steps of a size.

        Raises:
            ConfigError: A set is smaller than a step.
        """
        for name, size in zip(self.names, self.sizes, strict=True):
            if size < global_batch_size:
                raise ConfigError(
                    f"the data set {name} has {size} training rows, but trainer.global_batch_size is "
                    f"{global_batch_size}. A step has rows of one set, each at most once. Lower "
                    "trainer.global_batch_size, or add rows."
                )
        return replace(self, step_size=global_batch_size)

    def steps_of_sets(self, num_steps: int) -> np.ndarray:
        """Returns (sets,) the number of steps of each set in an epoch."""
        ends = np.floor(np.cumsum(self.shares) * num_steps + 0.5).astype(np.int64)
        ends[-1] = num_steps
        return np.diff(ends, prepend=0)

    def indices(self, order_key: int, size: int, positions: np.ndarray) -> np.ndarray:
        """Maps positions in an epoch's order to sequence indices; a position has the same index for the same key."""
        num_steps = -(-size // self.step_size)
        steps, offsets = np.divmod(positions, self.step_size)
        slots = permute(key(order_key, "sets"), num_steps, steps)
        counts = self.steps_of_sets(num_steps)
        ends = np.cumsum(counts)
        owners = np.searchsorted(ends, slots, side="right")
        indices = np.empty_like(slots)
        first = 0
        for number, members in enumerate(self.sizes):
            own = np.flatnonzero(owners == number)
            rounds, within = np.divmod(slots[own] - (ends[number] - counts[number]), members // self.step_size)
            places = within * self.step_size + offsets[own]
            for each in np.unique(rounds):
                chosen = rounds == each
                order = permute(key(order_key, "set", number, int(each)), members, places[chosen])
                indices[own[chosen]] = first + order
            first += members
        return indices

    def mean(self, values: np.ndarray) -> float:
        """Returns the mean over sets of the mean of each, by their shares."""
        parts = np.split(values, np.cumsum(self.sizes)[:-1])
        return float(sum(share * part.mean() for share, part in zip(self.shares, parts, strict=True)))
