"""Weights of loss terms after some steps, with numbers computed by hand."""

import json
import math

import pytest
import torch

from framework.modules.passes.objective import SumCountObjective
from framework.modules.passes.term_weights import TermWeights

NORM = torch.tensor(1.0)


def losses(a: float, b: float) -> dict[str, torch.Tensor]:
    values = {"a_loss": a, "b_loss": b, "loss": a + b}
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}


def test_weights_are_multiplied_by_exponentials_and_keep_their_sum():
    weights = TermWeights({"a": 0.5, "b": 1.5}, step_size=0.1)
    torch.testing.assert_close(weights.values, torch.tensor([0.5, 1.5], dtype=torch.float64))
    weights.update(losses(3.0, 1.0), NORM)
    weights.update(losses(2.0, 0.0), NORM)
    a, b = 0.5 * math.exp(0.1 * 5), 1.5 * math.exp(0.1 * 1)
    expected = torch.tensor([2 * a / (a + b), 2 * b / (a + b)], dtype=torch.float64)
    torch.testing.assert_close(weights.values, expected)
    assert weights.metrics()["train/b_weight"].item() == pytest.approx(2 * b / (a + b))
    assert weights.loss(losses(3.0, 1.0)).item() == pytest.approx(float(expected @ torch.tensor([3.0, 1.0]).double()))


def test_the_loss_of_a_step_has_the_current_weights():
    initial = {"a": 0.5, "b": 1.5}
    weights = TermWeights(initial, step_size=1.0)
    counts = torch.tensor([4.0, 2.0], dtype=torch.float64)
    sums = {"a": torch.tensor(12.0), "b": torch.tensor(1.0)}
    assert float(SumCountObjective(initial).loss(sums, weights.weighted(counts))) == 0.5 * 3 + 1.5 * 0.5
    weights.update(losses(math.log(3.0), 0.0), NORM)  # 0.5 x 3 and 1.5, so both are 1
    assert float(SumCountObjective(initial).loss(sums, weights.weighted(counts))) == pytest.approx(3 + 0.5)


def test_a_term_without_targets_and_one_without_weight_give_no_loss():
    weights = TermWeights({"a": 1.0, "b": 1.0}, step_size=1.0)
    weights.update(losses(2000.0, 0.0), NORM)
    assert weights.values.tolist() == [2.0, 0.0]
    counts = weights.weighted(torch.tensor([0.0, 2.0], dtype=torch.float64))
    sums = {"a": torch.tensor(0.0), "b": torch.tensor(5.0)}
    assert float(SumCountObjective({"a": 1.0, "b": 1.0}).loss(sums, counts)) == 0.0
    both = weights.weighted(torch.tensor([0.0, 0.0], dtype=torch.float64))
    assert float(SumCountObjective({"a": 1.0, "b": 1.0}).loss(dict.fromkeys("ab", torch.tensor(0.0)), both)) == 0.0


@pytest.mark.parametrize(
    ("values", "norm"), [(losses(math.nan, 1.0), 1.0), (losses(2.0, 1.0), math.inf), (losses(math.inf, 1.0), math.nan)]
)
def test_a_step_that_is_not_finite_changes_no_weight(values: dict, norm: float):
    weights = TermWeights({"a": 0.5, "b": 1.5}, step_size=0.1)
    weights.update(losses(3.0, 1.0), NORM)
    before = weights.state_dict()
    weights.update(values, torch.tensor(norm))
    assert weights.state_dict() == before


def test_the_state_is_restored_bit_for_bit_from_json_by_term():
    weights, again = TermWeights({"a": 0.3, "b": 0.7}, 0.1), TermWeights({"b": 0.7, "a": 0.3}, 0.1)
    weights.update(losses(1 / 3, 2 / 7), NORM)
    again.load_state_dict(json.loads(json.dumps(weights.state_dict())))
    assert again.values.tolist() == pytest.approx(weights.values.tolist()[::-1], abs=0, rel=1e-15)
    assert again.state_dict()["logits"] == weights.state_dict()["logits"][::-1]
