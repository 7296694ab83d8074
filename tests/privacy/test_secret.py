"""Noise and samples of a secret: their distribution, and their independence of the part that is drawn."""

import hashlib
import math
import pickle

import numpy as np
import pytest
import torch

from framework.privacy.secret import Secret

DRAWS = 1_000_000


def secret_of(byte: int) -> Secret:
    secret = Secret()
    secret.set(bytes([byte]) * 32)
    return secret


@pytest.fixture(scope="module")
def normals() -> np.ndarray:
    return secret_of(1).normals(0, "weight", 0, DRAWS).double().numpy()


@pytest.mark.parametrize("threshold", [-3.0, -1.5, -0.5, 0.0, 0.3, 1.0, 2.0, 3.5, 4.2])
def test_noise_is_normal_within_binomial_bounds(normals: np.ndarray, threshold: float):
    probability = 0.5 * math.erfc(-threshold / math.sqrt(2))
    bound = 4.5 * math.sqrt(DRAWS * probability * (1 - probability))
    assert abs(int((normals < threshold).sum()) - DRAWS * probability) < bound


def test_noise_is_independent_of_its_neighbours_steps_parameters_and_secrets(normals: np.ndarray):
    others = {
        "next element": np.roll(normals, 1),
        "other half of a block": np.roll(normals, 1 << 13),
        "step": secret_of(1).normals(1, "weight", 0, DRAWS).double().numpy(),
        "parameter": secret_of(1).normals(0, "bias", 0, DRAWS).double().numpy(),
        "secret": secret_of(2).normals(0, "weight", 0, DRAWS).double().numpy(),
    }
    for name, other in others.items():
        assert not np.array_equal(other, normals), name
        assert abs(float(np.mean(other * normals))) < 4.5 / math.sqrt(DRAWS), name
        assert abs(float(np.mean((other**2 - 1) * (normals**2 - 1)))) < 4.5 * 2 / math.sqrt(DRAWS), name


def test_any_part_equals_that_of_the_whole(normals: np.ndarray):
    secret = secret_of(1)
    for start, stop in ((0, 1), (5, 5), (16_383, 16_385), (100, 40_000), (32_768, 49_152)):
        assert torch.equal(secret.normals(0, "weight", start, stop), torch.from_numpy(normals[start:stop]).float())
        uniforms = secret.uniforms("sampling", 3, "", 0, 50_000)[start:stop]
        assert np.array_equal(secret.uniforms("sampling", 3, "", start, stop), uniforms)


def test_uniform_numbers_are_uniform_and_never_0_or_1():
    draws = secret_of(3).uniforms("sampling", 0, "", 0, DRAWS)
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    assert abs(counts - DRAWS / 20).max() < 4.5 * math.sqrt(DRAWS * 0.05 * 0.95)
    assert draws.min() > 0 and draws.max() < 1


def test_a_secret_has_no_text_form_and_must_be_set():
    secret = secret_of(7)
    assert "7" not in repr(secret) and repr(secret) == str(secret) == "Secret(...)"
    copy = pickle.loads(pickle.dumps(secret))  # for a loader process
    assert torch.equal(copy.normals(0, "x", 0, 3), secret.normals(0, "x", 0, 3))
    with pytest.raises(RuntimeError, match="not set"):
        Secret().normals(0, "x", 0, 1)
    with pytest.raises(ValueError, match="31 bytes"):
        Secret().set(bytes(31))


def test_both_numbers_of_a_pair_follow_from_64_bits():
    """Computes the first block in plain Python, in fp64."""
    message = b"noise\x000\x000\x00weight"
    raw = hashlib.shake_128((bytes([1]) * 32).ljust(168, b"\0") + message).digest(8 * 8192)
    drawn = secret_of(1).normals(0, "weight", 0, 1 << 14)
    for pair in (0, 1, 77, 8191):
        signed = int.from_bytes(raw[8 * pair : 8 * pair + 8], "little", signed=True)
        radius = math.sqrt(-2 * math.log(((signed >> 24) + 2**39 + 0.5) / 2**40))
        angle = 2 * math.pi * (signed % 2**24) / 2**24
        assert drawn[pair].item() == pytest.approx(radius * math.cos(angle), abs=2e-6)
        assert drawn[8192 + pair].item() == pytest.approx(radius * math.sin(angle), abs=2e-6)
