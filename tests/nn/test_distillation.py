"""Differences between a model and its teacher against explicit loops over sequences and published code."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from framework.batch import IGNORE_INDEX
from framework.nn.distillation import hidden_error_sum, logit_divergence_sum, relation_divergence_sum

LENGTHS = (5, 18, 1, 16, 7)
NUM_REAL = 4


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 2


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_logits_diverge_as_torch_computes_it_over_counted_targets_and_common_words(temperature: float) -> None:
    own, taught = normal(6, 9, seed=0), normal(6, 11, seed=1)
    labels = torch.tensor([1, IGNORE_INDEX, 2, 0, IGNORE_INDEX, 8])
    q, p = (each[labels != IGNORE_INDEX, :9].double().div(temperature).log_softmax(1) for each in (own, taught))
    expected = functional.kl_div(q, p, reduction="sum", log_target=True) * temperature**2
    found = logit_divergence_sum(own, taught, labels, temperature)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


def test_hidden_states_differ_by_the_mean_square_of_each_token() -> None:
    own, taught = normal(6, 9, seed=0), normal(6, 9, seed=1)
    torch.testing.assert_close(hidden_error_sum(own, taught), functional.mse_loss(own, taught) * 6)


def relations_in_a_loop(own: Tensor, taught: Tensor, num_heads: int) -> Tensor:
    """Returns the divergence of MiniLMv2 by its formula, sequence by sequence and head by head."""
    total, start = torch.zeros((), dtype=torch.float64), 0
    for length in LENGTHS[:NUM_REAL]:
        rows = slice(start, start + length)
        start += length
        for kind in range(3):
            parts = []
            for each in (own, taught):
                joined = each[rows, :, kind].double().flatten(1)  # (length, width), the heads one after the other
                parts.append([head @ head.T / head.shape[1] ** 0.5 for head in joined.chunk(num_heads, dim=1)])
            for scores, taught_scores in zip(*parts, strict=True):
                p = taught_scores.log_softmax(1)
                total += functional.kl_div(scores.log_softmax(1), p, reduction="sum", log_target=True) / num_heads
    return total


@pytest.mark.parametrize("num_heads", [2, 6])
def test_relations_of_models_of_unlike_widths(num_heads: int) -> None:
    own, taught = normal(sum(LENGTHS), 2, 3, 6, seed=0), normal(sum(LENGTHS), 4, 3, 9, seed=1)
    own.requires_grad_()
    found = relation_divergence_sum(own, taught, num_heads, LENGTHS, NUM_REAL)
    expected = relations_in_a_loop(own, taught, num_heads)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(found, own)
    (wanted,) = torch.autograd.grad(expected, own)
    torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)
    assert not gradient[sum(LENGTHS[:NUM_REAL]) :].any()


def test_no_sequence_has_no_relations() -> None:
    empty = torch.zeros(4, 2, 3, 6)
    assert relation_divergence_sum(empty, empty, 2, (4,), 0) == 0
