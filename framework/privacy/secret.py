"""The secret of a private run, and the random numbers that it determines.

Whoever knows the noise of a step can subtract it, so it must not follow from the seed, which is in config.yaml and on
the model card. Each number is a function of (secret, purpose, step, parameter, element): SHAKE-128 (FIPS 202) over the
secret and a counter, so that ranks draw their own parts and a resumed run draws the same.
"""

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

SECRET_BYTES = 32
_RATE_BYTES = 168
"""Block of SHAKE-128. The secret fills one block, as in KMAC (NIST SP 800-185)."""
_BLOCK = 1 << 14
"""Numbers of one counter. A part of them is computed with all of them, so that no number depends on the part."""
_ANGLE_BITS = 24
_ANGLES = 1 << _ANGLE_BITS
"""Angles of Box and Muller's method, whole numbers that fp32 represents exactly."""


class Secret:
    """Key of a run, which is set once the run folder is known.

    It has no text form, and is not pickled by value except to the loader processes of the same rank.
    """

    def __init__(self) -> None:
        self._state: bytes | None = None

    def __repr__(self) -> str:
        return "Secret(...)"

    def set(self, value: bytes) -> None:
        """Sets the 32 bytes of the key."""
        if len(value) != SECRET_BYTES:
            raise ValueError(f"The secret has {len(value)} bytes. It must have {SECRET_BYTES}.")
        self._state = value

    def uniforms(self, purpose: str, step: int, name: str, start: int, stop: int) -> np.ndarray:
        """Returns float64 numbers in (0, 1) that are uniform on a grid of 2^-52, for the elements start to stop."""
        return np.concatenate([np.zeros(0), *self._parts(purpose, step, name, start, stop)])

    def normals(self, step: int, name: str, start: int, stop: int) -> Tensor:
        """Returns fp32 standard normal numbers (Box and Muller 1958), the noise of a parameter in a step.

        A pair of numbers takes 64 random bits: 40 for the radius, which is at most 7.5, and 24 for the angle.

        Args:
            step: Optimizer steps completed before this one.
            name: Name of the parameter.
            start: First element of the flattened parameter.
            stop: Element after the last one.
        """
        return torch.cat([torch.zeros(0), *self.normal_parts(step, name, start, stop)])

    def normal_parts(self, step: int, name: str, start: int, stop: int) -> Iterator[Tensor]:
        """Yields the numbers of `normals` in parts that fit into the cache of a CPU."""
        half = _BLOCK // 2
        for block, first, last in _blocks(start, stop):
            bits = torch.frombuffer(bytearray(self._bytes("noise", step, name, block, 8 * half)), dtype=torch.int64)
            angle = bits.bitwise_and(_ANGLES - 1).float().mul_(2 * math.pi / _ANGLES)
            # The shift keeps the sign: whole numbers from -2^39 to 2^39, moved to the centres of intervals in (0, 1).
            uniform = bits.bitwise_right_shift_(_ANGLE_BITS).double().add_(2.0**39 + 0.5).mul_(2.0**-40)
            radius = uniform.log_().float().mul_(-2).sqrt_()
            values = torch.empty(_BLOCK)
            torch.cos(angle, out=values[:half]).mul_(radius)
            torch.sin(angle, out=values[half:]).mul_(radius)
            yield values[first:last]

    def _parts(self, purpose: str, step: int, name: str, start: int, stop: int) -> Iterator[np.ndarray]:
        for block, first, last in _blocks(start, stop):
            random = self._bytes(purpose, step, name, block, 8 * _BLOCK)
            # The centre of each interval, so that no number is 0 or 1.
            yield ((np.frombuffer(random, dtype="<u8")[first:last] >> np.uint64(12)) + 0.5) * 2.0**-52

    def _bytes(self, purpose: str, step: int, name: str, block: int, count: int) -> bytes:
        """Returns the random bytes of one counter."""
        if self._state is None:
            raise RuntimeError("The secret of the run is not set.")
        message = f"{purpose}\0{step}\0{block}\0{name}".encode()
        return hashlib.shake_128(self._state.ljust(_RATE_BYTES, b"\0") + message).digest(count)


def _blocks(start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Yields each block that has elements of a range, with the range within the block."""
    for block in range(start // _BLOCK, -(-stop // _BLOCK)):
        yield block, max(start - block * _BLOCK, 0), min(stop - block * _BLOCK, _BLOCK)
