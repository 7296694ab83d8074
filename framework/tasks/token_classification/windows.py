"""Windows over sentences that are too long for a sequence: every word is in one, and is predicted in one."""

import itertools
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Window:
    """Some words of a sentence.

    Attributes:
        words: The words that it holds.
        predicted: Those of them that are predicted here; over the windows of a sentence each word once, in order.
    """

    words: slice
    predicted: slice


def split_windows(sizes: np.ndarray, room: int, stride: int) -> list[Window]:
    """Windows of whole words; one for a sentence that fits.

    A word is predicted where the smaller of its two contexts, in tokens before and behind it, is largest, of equals in
    the first window (Devlin et al. 2019, `_check_is_max_context` in their run_squad.py).

    Args:
        sizes: (words,) tokens of each word, 1 to `room`.
        room: Most tokens of a window.
        stride: Tokens from the start of a window to that of the next, at least 1; less where a word would be left out,
            and up to a word more, as windows begin with a word.
    """
    num_words = len(sizes)
    ends = np.cumsum(sizes)
    starts = ends - sizes
    if num_words == 0 or ends[-1] <= room:
        return [Window(slice(0, num_words), slice(0, num_words))]
    bounds = [(0, 0)]
    while bounds[-1][1] < num_words:
        first = min(int(np.searchsorted(starts, starts[bounds[-1][0]] + stride)), bounds[-1][1])
        bounds.append((first, int(np.searchsorted(ends, starts[first] + room, side="right"))))
    del bounds[0]
    best = np.full(num_words, -1)
    owner = np.zeros(num_words, dtype=np.int64)
    for number, (first, stop) in enumerate(bounds):
        before, behind = starts[first:stop] - starts[first], ends[stop - 1] - ends[first:stop]
        context = np.minimum(before, behind)
        better = context > best[first:stop]
        owner[first:stop][better] = number
        best[first:stop][better] = context[better]
    # Contexts before grow and those behind shrink along a sentence, so the words of an owner lie side by side.
    edges = np.searchsorted(owner, np.arange(len(bounds) + 1)).tolist()
    return [
        Window(slice(*bound), slice(*owned))
        for bound, owned in zip(bounds, itertools.pairwise(edges), strict=True)
        if owned[0] < owned[1]
    ]
