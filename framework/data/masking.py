"""Masks tokens for masked language modelling: an exact number per sequence, a function of the sequence's key alone.

Devlin et al. 2019 (arXiv:1810.04805, section 3.1) replace 80 % of the chosen tokens by the mask token and 10 % by a
random word, and keep 10 % (`Replacements`). They choose each token independently; here an exact share of each sequence
is chosen. Spans follow SpanBERT (Joshi et al. 2020, arXiv:1907.10529, section 3.1). All functions are vectorised over a
micro-batch.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from framework import ragged
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError
from framework.random import mix, random_integers

Masking = Literal["token", "whole_word", "span"]
"""Units that are masked as a whole.

- "token" chooses exactly `num_masked` tokens.
- "whole_word" takes words in random order until that number is reached. The word that would exceed the number is taken
  if this comes closer to the number than stopping before it, or if no other word was taken. So the number of masked
  tokens differs from `num_masked` by at most half of that word, except if a single word is taken. A word begins at a
  token of `starts_word`, at the first token of a sequence, and after a token that is not maskable.
- "span" divides each run of words between tokens that are not maskable into spans. The number of words of each span is
  drawn; the last span ends with the run. Whole spans are then chosen by the rule of whole words.
"""

SPAN_PROB = 0.2
MAX_SPAN_WORDS = 10
MAX_LENGTH = 2**16
"""Largest number of tokens of a sequence; a longer one would have too few random bits in its 32-bit sorting keys."""
REPLACEMENT_DRAWS, SPAN_DRAWS = MAX_LENGTH, MAX_LENGTH + 1
"""Counters that are mixed with a sequence's key; lower counters are reserved for the sorting keys."""
SMALLEST_WIDTH_BITS = 7
PADDING = np.uint32(2**32 - 1)


def _span_lengths() -> np.ndarray:
    """Returns (65536,) the number of words of a span for each 16-bit draw.

    The paper "clips" the geometric distribution at 10 words and states a mean of 3.8. This is the mean of the
    distribution truncated at 10 and renormalised, as in the released code. Counting longer spans as 10 would give 4.5.
    """
    shares = (1 - SPAN_PROB) ** np.arange(MAX_SPAN_WORDS)
    bounds = np.round(np.cumsum(shares / shares.sum()) * 2**16)
    return np.searchsorted(bounds, np.arange(2**16), side="right") + 1


_SPAN_LENGTHS = _span_lengths()


@dataclass(frozen=True)
class Replacements:
    """Shares of the chosen tokens by what replaces them; the others stay as they are.

    Attributes:
        mask: Share that becomes the mask token.
        random: Share that becomes a random word.

    Raises:
        ConfigError: A share is negative, or both together exceed 1.
    """

    mask: float = 0.8
    random: float = 0.1

    def __post_init__(self) -> None:
        if self.mask < 0 or self.random < 0 or self.mask + self.random > 1 + 1e-9:
            raise ConfigError(
                f"task.masked_share is {self.mask} and task.random_share is {self.random}. They are shares of the "
                "chosen tokens and must not exceed 1 together. Choose, for example, 0.8 and 0.1."
            )


BERT_REPLACEMENTS = Replacements()


@dataclass(frozen=True)
class MaskingFacts:
    """Facts about a vocabulary that masking needs.

    Attributes:
        mask_id: Id of the mask token.
        ordinary_ids: (words,) int64, ids from which random replacements are drawn.
        is_special: (vocab,) True for special tokens, which are never masked.
        starts_word: (vocab,) True for tokens that begin a word.
    """

    mask_id: int
    ordinary_ids: np.ndarray
    is_special: np.ndarray
    starts_word: np.ndarray

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "MaskingFacts":
        """Returns the facts about the vocabulary of a tokenizer."""
        is_special = np.zeros(tokenizer.vocab_size, dtype=bool)
        is_special[tokenizer.special_ids] = True
        return cls(tokenizer.mask_id, tokenizer.ordinary_ids, is_special, tokenizer.starts_word)


def num_masked(num_maskable: np.ndarray, rate: float) -> np.ndarray:
    """Returns the number of tokens to mask in each sequence.

    It is max(1, round(rate * maskable)), with halves rounded up; 0 if no token of the sequence is maskable.
    """
    # Floating-point products such as 0.29 * 50 are slightly below their half.
    rounded = np.floor(rate * num_maskable + (0.5 + 1e-9)).astype(np.int64)
    return np.minimum(np.maximum(rounded, 1), num_maskable)


def mask_tokens(
    input_ids: np.ndarray,
    lengths: np.ndarray,
    maskable: np.ndarray,
    keys: np.ndarray,
    rate: float,
    facts: MaskingFacts,
    masking: Masking = "token",
    replacements: Replacements = BERT_REPLACEMENTS,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks tokens of every sequence.

    One draw per token decides whether it becomes the mask token, becomes a random word, or stays. With "span", one draw
    decides this for all tokens of a span.

    Args:
        input_ids: (tokens,) ids of all sequences, end to end.
        lengths: (sequences,) number of tokens of each, positive and at most MAX_LENGTH.
        maskable: (tokens,) True where a token may be masked: not a special token.
        keys: (sequences,) uint64, random key of each sequence.
        rate: Share of the maskable tokens to mask, in [0, 1].
        facts: Facts about the vocabulary.
        masking: Unit that is masked as a whole.
        replacements: Shares of mask tokens and random words among the chosen tokens.

    Returns:
        Ascending positions of the masked tokens (targets,), their original ids (targets,), and the new ids (tokens,).

    Raises:
        ValueError: A sequence is longer than MAX_LENGTH.
    """
    if lengths.max(initial=0) > MAX_LENGTH:
        raise ValueError(
            f"a sequence has {lengths.max()} tokens. Masking supports at most {MAX_LENGTH}. Use shorter sequences."
        )
    ends = np.cumsum(lengths)
    starts = ends - lengths
    sizes = None
    if masking == "token":
        firsts = np.flatnonzero(maskable)
    else:
        begins_run = _run_begins(maskable, starts)
        firsts, sizes = _words(facts.starts_word.take(input_ids), maskable, begins_run)
        if masking == "span":
            run_starts = np.flatnonzero(begins_run)
            sequence = np.searchsorted(starts, run_starts, side="right") - 1
            span_keys = mix(mix(keys, SPAN_DRAWS)[sequence], run_starts - starts[sequence])
            firsts, sizes = _spans(firsts, sizes, np.searchsorted(firsts, run_starts), span_keys)
    chosen = choose_units(sizes, _offsets(firsts, ends), keys, rate)
    chosen_sizes = None if sizes is None else sizes[chosen]
    positions = _positions(firsts[chosen], chosen_sizes)
    num_chosen = np.diff(_offsets(positions, ends))
    draws = mix(np.repeat(mix(keys, REPLACEMENT_DRAWS), num_chosen), positions - np.repeat(starts, num_chosen))
    labels = input_ids.take(positions)
    new_ids = input_ids.copy()
    group_sizes = chosen_sizes if masking == "span" else None
    new_ids[positions] = _replacements(labels, draws, group_sizes, facts, replacements)
    return positions, labels, new_ids


def _offsets(ascending: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Returns (sequences + 1,) the number of positions before each sequence, followed by their total number."""
    return np.concatenate([[0], np.searchsorted(ascending, ends)])


def _run_begins(maskable: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Returns (tokens,) bool, True for maskable tokens that begin a sequence or follow a non-maskable token."""
    begins = np.empty_like(maskable)
    np.logical_not(maskable[:-1], out=begins[1:])
    begins[starts] = True
    begins &= maskable
    return begins


def _words(starts_word: np.ndarray, maskable: np.ndarray, begins_run: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the positions of the first tokens (words,) and the sizes (words,) of words.

    Args:
        starts_word: (tokens,) bool, as in MaskingFacts.
        maskable: (tokens,) bool.
        begins_run: (tokens,) bool, as `_run_begins` returns it.
    """
    begins = (starts_word & maskable) | begins_run
    # A word ends before the next word and before a token that is not maskable.
    is_last = maskable.copy()
    is_last[:-1] &= begins[1:] | ~maskable[1:]
    firsts = np.flatnonzero(begins)
    return firsts, np.flatnonzero(is_last) - firsts + 1


def _spans(
    firsts: np.ndarray, sizes: np.ndarray, first_words: np.ndarray, keys: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Divides each run of words into spans.

    Args:
        firsts: (words,) position of the first token of each word.
        sizes: (words,) number of tokens of each word.
        first_words: (runs,) index of the first word of each run.
        keys: (runs,) uint64, random key of each run.

    Returns:
        Positions of the first tokens (spans,) and numbers of tokens (spans,) of the spans.
    """
    end_words = np.append(first_words, len(firsts))[1:]
    # One hash provides four draws. As many draws as words are enough because no span is empty.
    num_hashes = (end_words - first_words + 3) // 4
    offsets = ragged.starts(num_hashes)
    counters = ragged.offsets_within(num_hashes)
    num_words = _SPAN_LENGTHS.take(mix(np.repeat(keys, num_hashes), counters).view(np.uint16))
    begins = ragged.starts(num_words)
    begins += np.repeat(first_words - begins[4 * offsets], 4 * num_hashes)
    begins = begins[np.flatnonzero(begins < np.repeat(end_words, 4 * num_hashes))]
    tokens_before = ragged.bounds(sizes)
    return firsts[begins], np.diff(tokens_before[np.append(begins, len(firsts))])


def choose_units(sizes: np.ndarray | None, offsets: np.ndarray, keys: np.ndarray, rate: float) -> np.ndarray:
    """Chooses tokens, words, spans or patches, of each sequence `num_masked`.

    Sequences with similar numbers of units become the rows of a matrix whose width is a power of two. Sorting such rows
    of 32-bit keys costs a tenth of sorting the whole micro-batch at once. Width and sorting keys depend on the sequence
    alone.

    Args:
        sizes: (units,) number of tokens of each unit; None if each has one.
        offsets: (sequences + 1,) index of the first unit of each sequence, followed by the number of all units.
        keys: (sequences,) uint64, random key of each sequence.
        rate: Share of the maskable tokens to mask.

    Returns:
        Ascending indices of the chosen units.
    """
    num_units = np.diff(offsets)
    num_maskable = num_units if sizes is None else np.diff(ragged.bounds(sizes)[offsets])
    goals = num_masked(num_maskable, rate)
    # The smallest exponent with num_units <= 2**exponent.
    width_bits = np.maximum(np.frexp(num_units - 0.5)[1], SMALLEST_WIDTH_BITS)
    width_bits[num_units == 0] = 0
    is_chosen = np.zeros(offsets[-1], dtype=bool)
    for bits in range(SMALLEST_WIDTH_BITS, int(width_bits.max(initial=0)) + 1):
        rows = np.flatnonzero(width_bits == bits)
        if len(rows):
            first, goal = offsets[rows], goals[rows]
            order = _sorting_keys(keys[rows], num_units[rows], bits)
            ranked = np.sort(order, axis=1)
            num_taken = goal
            if sizes is not None:
                # Each unit has at least one token, so no unit after the goal-th is taken.
                numbers = ranked[:, : goal.max()] & np.uint32(2**bits - 1)
                num_taken = _num_taken(sizes.take(first[:, None] + numbers, mode="clip"), goal[:, None])
            last = ranked[np.arange(len(rows)), num_taken - 1]
            cells = np.flatnonzero(order <= last[:, None])
            is_chosen[first.take(cells >> bits) + (cells & 2**bits - 1)] = True
    return np.flatnonzero(is_chosen)


def _sorting_keys(keys: np.ndarray, num_units: np.ndarray, bits: int) -> np.ndarray:
    """Returns (rows, 2**bits) uint32, a random key per unit of each row, followed by PADDING.

    The low `bits` bits of a key are the index of its unit.
    """
    number = np.arange(2**bits, dtype=np.uint32)
    # One hash provides two keys.
    order = mix(keys[:, None], np.arange(2**bits // 2)).view(np.uint32)
    order &= np.uint32(2**32 - 2**bits)
    order |= number
    np.copyto(order, PADDING, where=number >= num_units.astype(np.uint32)[:, None])
    return order


def _num_taken(sizes: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Returns (rows,) the number of units (rows, units) to take, in this order, to reach the goal (rows, 1)."""
    after = np.cumsum(sizes, axis=1)
    before = after - sizes
    closer = (before < goal) & (after - goal < goal - before)
    return np.count_nonzero((after <= goal) | closer | (before == 0), axis=1)


def _positions(firsts: np.ndarray, sizes: np.ndarray | None) -> np.ndarray:
    """Returns (targets,) the positions of all tokens of units, from their first tokens and sizes."""
    if sizes is None:
        return firsts
    return ragged.ranges(firsts, sizes)


def _replacements(
    labels: np.ndarray,
    draws: np.ndarray,
    group_sizes: np.ndarray | None,
    facts: MaskingFacts,
    replacements: Replacements,
) -> np.ndarray:
    """Returns (targets,) the ids that replace the masked tokens.

    Args:
        labels: (targets,) original ids of the masked tokens.
        draws: (targets,) uint64. The lower half selects mask token, random word or original; the upper half selects the
            random word.
        group_sizes: Numbers of consecutive targets that share the selection of their first one; None if each target
            has its own.
        facts: Facts about the vocabulary.
        replacements: Shares of mask tokens and random words.
    """
    actions = draws.astype(np.uint32)
    if group_sizes is not None:
        actions = np.repeat(actions[ragged.starts(group_sizes)], group_sizes)
    result = np.full_like(labels, facts.mask_id)
    others = np.flatnonzero(actions >= round(replacements.mask * 2**32))
    is_random = actions[others] < round((replacements.mask + replacements.random) * 2**32)
    random_ids = facts.ordinary_ids[random_integers(draws[others], len(facts.ordinary_ids))]
    result[others] = np.where(is_random, random_ids, labels[others])
    return result
