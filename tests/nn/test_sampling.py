"""Draws from softmax distributions: their frequencies, and their independence of the other rows."""

import numpy as np
import pytest
import torch

from framework.nn import sampling
from framework.nn.sampling import draw_classes
from framework.random import mix

ROWS = 40_000


def keys_of(num_rows: int, base: int = 7) -> torch.Tensor:
    return torch.from_numpy(mix(base, np.arange(num_rows)).view(np.int64))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_frequencies_are_the_probabilities(temperature: float):
    logits = torch.tensor([2.0, 1.0, 0.0, -3.0, 1.5, -20.0, 0.2])
    expected = (logits.double() / temperature).softmax(0)
    counts = torch.bincount(draw_classes(logits.expand(ROWS, -1), keys_of(ROWS), temperature), minlength=7)
    deviations = (ROWS * expected * (1 - expected)).sqrt()
    assert ((counts - ROWS * expected).abs() <= 4.5 * deviations + 1e-3).all()
    assert counts[5] == 0


def test_rare_classes_of_a_vocabulary_are_drawn_as_often_as_they_should():
    """One word has probability 1/2, and 30,521 others have the rest, each 1/61,042."""
    logits = torch.zeros(30_522)
    logits[17] = np.log(30_521)
    drawn = draw_classes(logits.expand(600, -1), keys_of(600))
    others = drawn[drawn != 17]
    assert abs(len(others) - 300) < 4.5 * np.sqrt(150)
    # 300 draws of 30,521 words repeat about 1.5 words.
    assert len(others.unique()) > len(others) - 12
    assert abs(float(others.float().mean()) - 15_260) < 4.5 * 8_811 / np.sqrt(len(others))


def test_a_draw_depends_on_its_row_only(monkeypatch: pytest.MonkeyPatch):
    logits, keys = torch.randn(50, 33, generator=torch.Generator().manual_seed(0)), keys_of(50)
    whole = draw_classes(logits, keys)
    assert torch.equal(torch.cat([draw_classes(logits[:9], keys[:9]), draw_classes(logits[9:], keys[9:])]), whole)
    monkeypatch.setattr(sampling, "_CHUNK_ELEMENTS", 100)
    assert torch.equal(draw_classes(logits, keys), whole)
    assert not torch.equal(draw_classes(logits, keys_of(50, base=8)), whole)
    assert draw_classes(logits[:0], keys[:0]).shape == (0,)


def test_rounding_errors_of_logits_rarely_change_a_draw():
    logits = torch.randn(2_000, 500, generator=torch.Generator().manual_seed(0))
    noisy = logits + 1e-6 * torch.randn(2_000, 500, generator=torch.Generator().manual_seed(1))
    assert (draw_classes(logits, keys_of(2_000)) != draw_classes(noisy, keys_of(2_000))).sum() <= 1
