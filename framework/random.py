"""Counter-based random numbers: every draw is a function of a key, no generator is carried along.

Keys are 64-bit and come from `key(seed, "purpose", epoch, index, ...)`. The mixing function is the finaliser of
SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"). Bulk draws use NumPy's Philox,
keyed the same way.
"""

import hashlib

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9
_MULTIPLIER_2 = 0x94D049BB133111EB
_MASK = 0xFFFFFFFFFFFFFFFF


def _mix_int(value: int) -> int:
    value = (value + _GOLDEN) & _MASK
    value = ((value ^ (value >> 30)) * _MULTIPLIER_1) & _MASK
    value = ((value ^ (value >> 27)) * _MULTIPLIER_2) & _MASK
    return value ^ (value >> 31)


def key(*parts: int | str) -> int:
    """Mixes integers and purpose names into one 64-bit key; the order of the parts matters."""
    state = 0
    for part in parts:
        if isinstance(part, str):
            part = int.from_bytes(hashlib.blake2b(part.encode(), digest_size=8).digest(), "little")
        state = _mix_int(state ^ (int(part) & _MASK))
    return state


def mix(base: int | np.ndarray, counters: np.ndarray) -> np.ndarray:
    """Hashes each counter with the base key (vectorised `key`).

    Args:
        base: One 64-bit key, or one for each counter (broadcast).
        counters: Integers of any shape.

    Returns:
        uint64 array of the broadcast shape, each element equal to what `key` gives when the counter is appended as a
        part to a key whose state is `base`.
    """
    base = np.asarray(base, dtype=np.uint64)
    value: np.ndarray = base ^ np.asarray(counters).astype(np.uint64)
    with np.errstate(over="ignore"):
        value = value + np.uint64(_GOLDEN)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(_MULTIPLIER_1)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(_MULTIPLIER_2)
    return value ^ (value >> np.uint64(31))


def uniform(hashes: np.ndarray) -> np.ndarray:
    """Maps uint64 hashes to float64 in [0, 1), using their upper 53 bits."""
    return (hashes >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(hashes: np.ndarray, bounds: int | np.ndarray) -> np.ndarray:
    """Maps uint64 hashes to integers in [0, bound); the bias is below bound / 2**32.

    Bounds must be smaller than 2**32 (multiply-shift on the upper half of the hash, Lemire 2019).
    """
    upper = hashes >> np.uint64(32)
    return ((upper * np.asarray(bounds, dtype=np.uint64)) >> np.uint64(32)).astype(np.int64)


def generator(*parts: int | str) -> np.random.Generator:
    """A Philox generator keyed by the parts, for bulk draws of a fixed order (initial weights)."""
    return np.random.Generator(np.random.Philox(key=[key(*parts), key("second half", *parts)]))
