"""Counter-based random numbers: every draw is a function of a key, without generator state.

Keys are 64-bit and come from `key(seed, "purpose", epoch, index, ...)`. The mixing function is the finaliser of
SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"). Bulk draws use NumPy's Philox,
keyed the same way.
"""

import functools
import hashlib

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15
MULTIPLIER_1 = 0xBF58476D1CE4E5B9
MULTIPLIER_2 = 0x94D049BB133111EB
_MASK = 0xFFFFFFFFFFFFFFFF
# The same values as 0-d arrays: NumPy would convert scalars in every call.
_STEPS = [np.array(value, dtype=np.uint64) for value in (GOLDEN, 30, MULTIPLIER_1, 27, MULTIPLIER_2, 31)]


def _mix_int(value: int) -> int:
    value = (value + GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * MULTIPLIER_1) & _MASK
    value = ((value ^ (value >> 27)) * MULTIPLIER_2) & _MASK
    return value ^ (value >> 31)


def key(*parts: int | str) -> int:
    """Mixes integers and purpose names into one 64-bit key; the order of the parts matters."""
    state = 0
    for part in parts:
        state = _mix_int(state ^ (_hash_name(part) if isinstance(part, str) else int(part) & _MASK))
    return state


@functools.cache
def _hash_name(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def mix(base: int | np.ndarray, counters: int | np.ndarray) -> np.ndarray:
    """Hashes each counter with the base key (vectorised `key`).

    Args:
        base: One 64-bit key, or one for each counter (broadcast).
        counters: Integers of any shape.

    Returns:
        uint64 array of the broadcast shape. Each element equals `key` with the counter appended to the parts of a key
        whose state is `base`.
    """
    counters = np.asarray(counters)
    # A view if possible: copies cost as much as the hash.
    counters = counters.view(np.uint64) if counters.dtype == np.int64 else counters.astype(np.uint64, copy=False)
    golden, shift_1, multiplier_1, shift_2, multiplier_2, shift_3 = _STEPS
    value: np.ndarray = np.asarray(np.asarray(base, dtype=np.uint64) ^ counters)
    value += golden
    shifted = np.right_shift(value, shift_1, out=np.empty_like(value))
    value ^= shifted
    value *= multiplier_1
    np.right_shift(value, shift_2, out=shifted)
    value ^= shifted
    value *= multiplier_2
    np.right_shift(value, shift_3, out=shifted)
    value ^= shifted
    return value


def uniform(hashes: np.ndarray) -> np.ndarray:
    """Maps uint64 hashes to float64 in [0, 1), using their upper 53 bits."""
    return (hashes >> np.uint64(11)) * 2.0**-53


def random_integers(hashes: np.ndarray, bounds: int | np.ndarray) -> np.ndarray:
    """Maps uint64 hashes to integers in [0, bound); the bias is below bound / 2**32.

    Bounds must be smaller than 2**32 (multiply-shift on the upper half of the hash, Lemire 2019).
    """
    products = (hashes >> np.uint64(32)) * np.asarray(bounds, dtype=np.uint64)
    products >>= np.uint64(32)
    return products.view(np.int64)


def generator(*parts: int | str) -> np.random.Generator:
    """Returns a Philox generator keyed by the parts, for bulk draws in a fixed order (initial weights)."""
    return np.random.Generator(np.random.Philox(key=[key(*parts), key("second half", *parts)]))
