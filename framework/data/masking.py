"""Which tokens are hidden, and behind what: an exact count in every sequence, a function of the sequence's key alone.

Devlin et al. 2019 (arXiv:1810.04805, section 3.1): of the chosen tokens 80 % become the mask token, 10 % a random word,
10 % stay. They draw each token by itself; here each sequence hides an exact share. Spans are those of SpanBERT (Joshi
et al. 2020, arXiv:1907.10529, section 3.1). Everything is vectorised over a micro-batch.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from framework import ragged
from framework.data.tokenization.tokenizer import Tokenizer
from framework.random import below, mix

Masking = Literal["token", "whole_word", "span"]

MASK_PROB = 0.8
RANDOM_PROB = 0.1
SPAN_PROB = 0.2
MAX_SPAN_WORDS = 10
MAX_LENGTH = 2**16
"""Tokens of one sequence: more would leave too few random bits in its 32-bit sorting keys."""
REPLACEMENT_DRAWS, SPAN_DRAWS = MAX_LENGTH, MAX_LENGTH + 1
"""Counters under a sequence's key; the lower ones belong to the sorting keys."""
SMALLEST_WIDTH_BITS = 7
PADDING = np.uint32(2**32 - 1)


def _span_lengths() -> np.ndarray:
    """(65536,) words of a span for each 16-bit draw.

    The paper "clips" the geometric distribution at 10 words and gives 3.8 as its mean. That is the mean of the
    distribution cut off at 10, as in its released code; counting longer spans as 10 would make it 4.5.
    """
    shares = (1 - SPAN_PROB) ** np.arange(MAX_SPAN_WORDS)
    bounds = np.round(np.cumsum(shares / shares.sum()) * 2**16)
    return np.searchsorted(bounds, np.arange(2**16), side="right") + 1


_SPAN_LENGTHS = _span_lengths()


@dataclass(frozen=True)
class MaskingFacts:
    """What masking must know about a vocabulary.

    Attributes:
        mask_id: Id of the mask token.
        ordinary_ids: (words,) int64, from which random replacements are drawn.
        is_special: (vocab,) True for special tokens, which are never hidden.
        starts_word: (vocab,) True for tokens that begin a word.
    """

    mask_id: int
    ordinary_ids: np.ndarray
    is_special: np.ndarray
    starts_word: np.ndarray

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "MaskingFacts":
        """Takes them from a tokenizer."""
        is_special = np.zeros(tokenizer.vocab_size, dtype=bool)
        is_special[tokenizer.special_ids] = True
        return cls(tokenizer.mask_id, tokenizer.ordinary_ids, is_special, tokenizer.starts_word)


def num_masked(num_maskable: np.ndarray, rate: float) -> np.ndarray:
    """Tokens to hide in each sequence: max(1, round(rate * maskable)), halves up; 0 where nothing is maskable."""
    # Products like 0.29 * 50 lie a little below their half.
    wanted = np.floor(rate * num_maskable + (0.5 + 1e-9)).astype(np.int64)
    return np.minimum(np.maximum(wanted, 1), num_maskable)


def mask_tokens(
    input_ids: np.ndarray,
    lengths: np.ndarray,
    maskable: np.ndarray,
    keys: np.ndarray,
    rate: float,
    facts: MaskingFacts,
    masking: Masking = "token",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hides tokens of every sequence.

    Token by token, exactly `num_masked` are chosen. By whole words, words are taken in random order until that count is
    reached; the word that would exceed it is taken too if that comes closer to the count than leaving it, and in any
    case if no other word was taken. So the count is missed by at most half of that word, a single taken word aside. A
    word begins at a token of `starts_word`, at the first token of a sequence and after a token that is not maskable.

    By spans, every stretch of words between tokens that are not maskable is cut into spans, whose numbers of words are
    drawn one after the other; the last one ends with the stretch. Then whole spans are taken by the rule of whole
    words. One draw decides for a whole span whether the mask token, random words or its own words stand in its place;
    with the other kinds there is a draw for each token.

    Args:
        input_ids: (tokens,) of all sequences end to end.
        lengths: (sequences,) tokens of each, all positive and at most MAX_LENGTH.
        maskable: (tokens,) True where a token may be hidden: not a special token.
        keys: (sequences,) uint64, the randomness of each sequence.
        rate: Share of the maskable tokens, in [0, 1].
        facts: Of the vocabulary.
        masking: What is hidden as a whole.

    Returns:
        Ascending positions of the hidden tokens (targets,), their true ids (targets,), and the new ids (tokens,).
    """
    if lengths.max(initial=0) > MAX_LENGTH:
        raise ValueError(f"a sequence has {lengths.max()} tokens, masking takes at most {MAX_LENGTH}.")
    ends = np.cumsum(lengths)
    starts = ends - lengths
    sizes = None
    if masking == "token":
        firsts = np.flatnonzero(maskable)
    else:
        begins_stretch = _stretch_begins(maskable, starts)
        firsts, sizes = _words(facts.starts_word.take(input_ids), maskable, begins_stretch)
        if masking == "span":
            stretches = np.flatnonzero(begins_stretch)
            sequence = np.searchsorted(starts, stretches, side="right") - 1
            span_keys = mix(mix(keys, SPAN_DRAWS)[sequence], stretches - starts[sequence])
            firsts, sizes = _spans(firsts, sizes, np.searchsorted(firsts, stretches), span_keys)
    chosen = _choose_units(sizes, _offsets(firsts, ends), keys, rate)
    chosen_sizes = None if sizes is None else sizes[chosen]
    positions = _positions(firsts[chosen], chosen_sizes)
    num_hidden = np.diff(_offsets(positions, ends))
    draws = mix(np.repeat(mix(keys, REPLACEMENT_DRAWS), num_hidden), positions - np.repeat(starts, num_hidden))
    labels = input_ids.take(positions)
    new_ids = input_ids.copy()
    new_ids[positions] = _replacements(labels, draws, chosen_sizes if masking == "span" else None, facts)
    return positions, labels, new_ids


def _offsets(ascending: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(sequences + 1,) how many of the positions lie before each sequence, and how many there are."""
    return np.concatenate([[0], np.searchsorted(ascending, ends)])


def _stretch_begins(maskable: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(tokens,) True for maskable tokens that begin a sequence or follow a token that is not maskable."""
    begins = np.empty_like(maskable)
    np.logical_not(maskable[:-1], out=begins[1:])
    begins[starts] = True
    begins &= maskable
    return begins


def _words(starts_word: np.ndarray, maskable: np.ndarray, begins_stretch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First tokens and sizes (words,) of the words; all arguments are flags (tokens,)."""
    begins = (starts_word & maskable) | begins_stretch
    # A word ends before the next one, and before a token that is not maskable.
    is_last = maskable.copy()
    is_last[:-1] &= begins[1:] | ~maskable[1:]
    firsts = np.flatnonzero(begins)
    return firsts, np.flatnonzero(is_last) - firsts + 1


def _spans(
    firsts: np.ndarray, sizes: np.ndarray, first_words: np.ndarray, keys: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts each stretch of words into spans.

    Args:
        firsts: (words,) position of the first token of each word.
        sizes: (words,) tokens of each word.
        first_words: (stretches,) the first word of each stretch.
        keys: (stretches,) uint64, the randomness of each stretch.

    Returns:
        First tokens and sizes (spans,) of the spans.
    """
    end_words = np.append(first_words, len(firsts))[1:]
    # One hash gives four draws. As many draws as words are enough, since no span is empty.
    num_hashes = (end_words - first_words + 3) // 4
    offsets = ragged.starts(num_hashes)
    counters = ragged.offsets_within(num_hashes)
    num_words = _SPAN_LENGTHS.take(mix(np.repeat(keys, num_hashes), counters).view(np.uint16))
    begins = ragged.starts(num_words)
    begins += np.repeat(first_words - begins[4 * offsets], 4 * num_hashes)
    begins = begins[np.flatnonzero(begins < np.repeat(end_words, 4 * num_hashes))]
    tokens_before = ragged.bounds(sizes)
    return firsts[begins], np.diff(tokens_before[np.append(begins, len(firsts))])


def _choose_units(sizes: np.ndarray | None, offsets: np.ndarray, keys: np.ndarray, rate: float) -> np.ndarray:
    """Chooses tokens, words or spans.

    Sequences with similarly many units are the rows of a rectangle, whose width is a power of two: sorting such rows of
    32-bit keys costs a tenth of sorting a micro-batch as one. Width and sorting keys follow from the sequence alone.

    Args:
        sizes: (units,) tokens of each unit; None where each has one.
        offsets: (sequences + 1,) the first unit of each sequence, and the number of all units.
        keys: (sequences,) uint64.
        rate: Share of the tokens.

    Returns:
        Ascending numbers of the chosen units.
    """
    num_units = np.diff(offsets)
    num_maskable = num_units if sizes is None else np.diff(ragged.bounds(sizes)[offsets])
    wanted = num_masked(num_maskable, rate)
    # The least exponent with num_units <= 2**exponent.
    width_bits = np.maximum(np.frexp(num_units - 0.5)[1], SMALLEST_WIDTH_BITS)
    width_bits[num_units == 0] = 0
    is_chosen = np.zeros(offsets[-1], dtype=bool)
    for bits in range(SMALLEST_WIDTH_BITS, int(width_bits.max(initial=0)) + 1):
        rows = np.flatnonzero(width_bits == bits)
        if len(rows):
            first, goal = offsets[rows], wanted[rows]
            order = _sorting_keys(keys[rows], num_units[rows], bits)
            ranked = np.sort(order, axis=1)
            num_taken = goal
            if sizes is not None:
                # Units have at least one token, so that none after the goal-th is taken.
                numbers = ranked[:, : goal.max()] & np.uint32(2**bits - 1)
                num_taken = _num_taken(sizes.take(first[:, None] + numbers, mode="clip"), goal[:, None])
            last = ranked[np.arange(len(rows)), num_taken - 1]
            cells = np.flatnonzero(order <= last[:, None])
            is_chosen[first.take(cells >> bits) + (cells & 2**bits - 1)] = True
    return np.flatnonzero(is_chosen)


def _sorting_keys(keys: np.ndarray, num_units: np.ndarray, bits: int) -> np.ndarray:
    """(rows, 2**bits) uint32: a random key for each unit of each row, its last bits the unit's number; then PADDING."""
    number = np.arange(2**bits, dtype=np.uint32)
    # One hash is two keys.
    order = mix(keys[:, None], np.arange(2**bits // 2)).view(np.uint32)
    order &= np.uint32(2**32 - 2**bits)
    order |= number
    np.copyto(order, PADDING, where=number >= num_units.astype(np.uint32)[:, None])
    return order


def _num_taken(sizes: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """(rows,) how many of the units (rows, units) are taken, in this order, to reach the goal (rows, 1)."""
    after = np.cumsum(sizes, axis=1)
    before = after - sizes
    closer = (before < goal) & (after - goal < goal - before)
    return np.count_nonzero((after <= goal) | closer | (before == 0), axis=1)


def _positions(firsts: np.ndarray, sizes: np.ndarray | None) -> np.ndarray:
    """(targets,) positions of all tokens of units with these first tokens and sizes."""
    if sizes is None:
        return firsts
    return ragged.ranges(firsts, sizes)


def _replacements(labels: np.ndarray, draws: np.ndarray, alike: np.ndarray | None, facts: MaskingFacts) -> np.ndarray:
    """(targets,) what stands in the place of the hidden tokens.

    Args:
        labels: (targets,) the hidden tokens.
        draws: (targets,) uint64: the lower half decides what stands there, the upper half which random word.
        alike: Numbers of consecutive targets for which the first one's lower half decides; None if each has its own.
        facts: Of the vocabulary.
    """
    actions = draws.astype(np.uint32)
    if alike is not None:
        actions = np.repeat(actions[ragged.starts(alike)], alike)
    result = np.full_like(labels, facts.mask_id)
    others = np.flatnonzero(actions >= round(MASK_PROB * 2**32))
    is_random = actions[others] < round((MASK_PROB + RANDOM_PROB) * 2**32)
    random_ids = facts.ordinary_ids[below(draws[others], len(facts.ordinary_ids))]
    result[others] = np.where(is_random, random_ids, labels[others])
    return result
