"""Windows over sentences that are too long for one sequence. Exactly one window predicts each word."""

import itertools
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Window:
    """Word range of a sentence.

    Attributes:
        words: Words in the window.
        predicted: Subrange of `words` that this window predicts. The windows of a sentence together predict each word
            once, in order.
    """

    words: slice
    predicted: slice


def split_windows(sizes: np.ndarray, room: int, stride: int) -> list[Window]:
    """Splits a sentence into windows of whole words. A sentence that fits gets one window.

    The context of a word in a window is the smaller of the numbers of tokens before and after it. The window with the
    largest context predicts the word; of equal windows, the first (Devlin et al. 2019, `_check_is_max_context` in their
    run_squad.py).

    Args:
        sizes: (words,) number of tokens of each word, 1 to `room`.
        room: Maximum number of tokens of a window.
        stride: Tokens from the start of a window to the start of the next, at least 1. The real distance is smaller if
            a word would otherwise be skipped, and up to one word larger because windows begin with a word.
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
        before, after = starts[first:stop] - starts[first], ends[stop - 1] - ends[first:stop]
        context = np.minimum(before, after)
        better = context > best[first:stop]
        owner[first:stop][better] = number
        best[first:stop][better] = context[better]
    # Along a sentence, context before a word grows and context after it shrinks, so each owner's words are contiguous.
    edges = np.searchsorted(owner, np.arange(len(bounds) + 1)).tolist()
    return [
        Window(slice(*bound), slice(*owned))
        for bound, owned in zip(bounds, itertools.pairwise(edges), strict=True)
        if owned[0] < owned[1]
    ]
