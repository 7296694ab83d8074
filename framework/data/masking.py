"""Which tokens are hidden, and behind what: an exact count in every sequence, a function of the sequence's key alone.

Devlin et al. 2019 (arXiv:1810.04805, section 3.1): of the chosen tokens 80 % become the mask token, 10 % a random word,
10 % stay. They draw each token by itself; here each sequence hides an exact share. Everything is vectorised over a
micro-batch.
"""

from dataclasses import dataclass

import numpy as np

from framework.data.tokenizer import Tokenizer
from framework.random import below, mix, uniform

MASK_PROB = 0.8
RANDOM_PROB = 0.1
MAX_SEQUENCES = MAX_LENGTH = 2**16
"""Limits of one call: places and sequences share a 64-bit sorting key with 31 random bits."""


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
    wanted = np.floor(rate * num_maskable + 0.5).astype(np.int64)
    return np.minimum(np.maximum(wanted, 1), num_maskable)


def mask_tokens(
    input_ids: np.ndarray,
    lengths: np.ndarray,
    maskable: np.ndarray,
    keys: np.ndarray,
    rate: float,
    facts: MaskingFacts,
    whole_word: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hides tokens of every sequence.

    Token by token, exactly `num_masked` are chosen. By whole words, words are taken in random order until that count is
    reached; the word that would exceed it is taken too if that comes closer to the count than leaving it, and in any
    case if no other word was taken. So the count is missed by at most half of that word, a single taken word aside. A
    word begins at a token of `starts_word`, at the first token of a sequence and after a token that is not maskable.

    Args:
        input_ids: (tokens,) of all sequences end to end.
        lengths: (sequences,) tokens of each.
        maskable: (tokens,) True where a token may be hidden: not a special token.
        keys: (sequences,) uint64, the randomness of each sequence.
        rate: Share of the maskable tokens, in [0, 1].
        facts: Of the vocabulary.
        whole_word: Hide whole words.

    Returns:
        Ascending positions of the hidden tokens (targets,), their true ids (targets,), and the new ids (tokens,).
    """
    starts = np.cumsum(lengths) - lengths
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(input_ids)) - starts[sequence]
    hashes = mix(keys[sequence], place)
    wanted = num_masked(np.bincount(sequence[maskable], minlength=len(lengths)), rate)
    if whole_word:
        begins = maskable & (facts.starts_word[input_ids] | (place == 0) | ~np.concatenate([[False], maskable[:-1]]))
        chosen = _choose_words(np.cumsum(begins) - 1, sequence, place, maskable, hashes, wanted)
    else:
        chosen = _choose_tokens(sequence, place, maskable, hashes, starts, wanted)
    positions = np.flatnonzero(chosen)
    labels = input_ids[positions]
    draws = uniform(mix(hashes[positions], np.ones_like(positions)))
    random_ids = facts.ordinary_ids[below(mix(hashes[positions], np.full_like(positions, 2)), len(facts.ordinary_ids))]
    replaced = np.where(draws < MASK_PROB, facts.mask_id, np.where(draws < MASK_PROB + RANDOM_PROB, random_ids, labels))
    new_ids = input_ids.copy()
    new_ids[positions] = replaced
    return positions, labels, new_ids


def _sorting_keys(sequence: np.ndarray, place: np.ndarray, last: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Distinct uint64 that order by sequence, then whether `last`, then the hash, then the place."""
    if len(place) and (sequence[-1] >= MAX_SEQUENCES or place.max() >= MAX_LENGTH):
        raise ValueError(f"a micro-batch has at most {MAX_SEQUENCES} sequences of at most {MAX_LENGTH} tokens.")
    order = sequence.astype(np.uint64) << np.uint64(48)
    order |= last.astype(np.uint64) << np.uint64(47)
    order |= (hashes >> np.uint64(33)) << np.uint64(16)
    order |= place.astype(np.uint64)
    return order


def _choose_tokens(
    sequence: np.ndarray,
    place: np.ndarray,
    maskable: np.ndarray,
    hashes: np.ndarray,
    starts: np.ndarray,
    wanted: np.ndarray,
) -> np.ndarray:
    """(tokens,) True for the `wanted` maskable tokens of each sequence that have the smallest hashes."""
    order = _sorting_keys(sequence, place, ~maskable, hashes)
    ranked = np.sort(order)
    some = wanted > 0
    thresholds = np.zeros(len(wanted), dtype=np.uint64)
    thresholds[some] = ranked[starts[some] + wanted[some] - 1]
    return order <= thresholds[sequence]


def _choose_words(
    words: np.ndarray,
    sequence: np.ndarray,
    place: np.ndarray,
    maskable: np.ndarray,
    hashes: np.ndarray,
    wanted: np.ndarray,
) -> np.ndarray:
    """(tokens,) True for the tokens of the chosen words; `words` numbers the words over the micro-batch from 0."""
    tokens = np.flatnonzero(maskable)
    sizes = np.bincount(words[tokens])
    # A word is ordered by the hash of its first token.
    firsts = tokens[np.cumsum(sizes) - sizes]
    order = np.argsort(
        _sorting_keys(sequence[firsts], place[firsts], np.zeros(len(firsts), dtype=bool), hashes[firsts])
    )
    owner, size = sequence[firsts][order], sizes[order]
    reached = np.cumsum(size)
    per_sequence = np.bincount(owner, weights=size, minlength=len(wanted)).astype(np.int64)
    before_sequence = (np.cumsum(per_sequence) - per_sequence)[owner]
    after = reached - before_sequence
    before = after - size
    goal = wanted[owner]
    closer = (before < goal) & (after - goal < goal - before)
    taken = (after <= goal) | closer | ((before == 0) & (goal > 0))
    is_taken = np.zeros(len(sizes), dtype=bool)
    is_taken[order] = taken
    chosen = np.zeros(len(words), dtype=bool)
    chosen[tokens] = is_taken[words[tokens]]
    return chosen
