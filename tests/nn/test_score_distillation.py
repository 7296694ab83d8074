"""Losses of score distillation against explicit loops and published implementations."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from framework.nn.score_distillation import margin_losses, score_divergences

ROWS = 4


@pytest.fixture
def scores() -> tuple[Tensor, Tensor, Tensor]:
    """Returns scores of the model and the teacher, and the real candidates: 5, 3, 1 and none."""
    generator = torch.Generator().manual_seed(0)
    model, teacher = torch.randn(2, ROWS, 5, generator=generator) * 4
    is_real = torch.arange(5) < torch.tensor([5, 3, 1, 0])[:, None]
    return model, teacher, is_real


def test_margins_are_those_of_the_relevant_candidate(scores: tuple[Tensor, Tensor, Tensor]) -> None:
    model, teacher, is_real = scores
    expected = []
    for row in range(ROWS):
        others = is_real[row, 1:].nonzero().flatten() + 1
        margins = [(each[row, 0] - each[row, others]).double() for each in (model, teacher)]
        expected.append(functional.mse_loss(*margins) if len(others) else torch.zeros((), dtype=torch.float64))
    found = margin_losses(model, teacher, is_real)
    torch.testing.assert_close(found.double(), torch.stack(expected), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(margin_losses(model + 3, teacher - 2, is_real), found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_divergences_are_those_of_the_real_candidates(
    scores: tuple[Tensor, Tensor, Tensor], temperature: float
) -> None:
    model, teacher, is_real = scores
    model.requires_grad_()
    found = score_divergences(model, teacher, is_real, temperature)
    for row in range(3):
        p, q = ((each[row, is_real[row]].double() / temperature).log_softmax(0) for each in (teacher, model))
        expected = functional.kl_div(q, p, reduction="sum", log_target=True) * temperature**2
        torch.testing.assert_close(found[row].double(), expected, rtol=1e-5, atol=1e-6)
    assert found[3] == 0
    found.sum().backward()
    assert model.grad is not None and torch.isfinite(model.grad).all()
    assert not model.grad[~is_real].any()
