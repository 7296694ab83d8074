"""The sum-and-count form of a loss, with numbers computed by hand."""

import torch

from framework.modules.passes.objective import SumCountObjective


def test_terms_are_divided_by_their_global_counts_and_weighted():
    objective = SumCountObjective({"mlm": 1.0, "nsp": 0.5})
    values = objective.values(
        torch.tensor([12.0, 3.0], dtype=torch.float64), torch.tensor([8.0, 2.0], dtype=torch.float64)
    )
    assert {name: float(value) for name, value in values.items()} == {"loss": 2.25, "mlm_loss": 1.5, "nsp_loss": 1.5}


def test_micro_batch_losses_add_up_to_the_loss_of_the_step():
    objective = SumCountObjective({"mlm": 1.0, "nsp": 0.5})
    counts = torch.tensor([8.0, 2.0], dtype=torch.float64)
    first = objective.loss({"mlm": torch.tensor(9.0), "nsp": torch.tensor(3.0)}, counts)
    second = objective.loss({"mlm": torch.tensor(3.0), "nsp": torch.tensor(0.0)}, counts)
    assert float(first) == 9 / 8 + 0.5 * 3 / 2
    assert float(first + second) == 2.25


def test_a_count_of_zero_gives_zero_and_finite_gradients():
    objective = SumCountObjective({"mlm": 1.0, "nsp": 1e30})
    total = torch.zeros((), requires_grad=True)
    loss = objective.loss({"mlm": total * 1.0, "nsp": total * 1.0}, torch.zeros(2, dtype=torch.float64))
    loss.backward()
    assert float(loss) == 0.0
    assert torch.isfinite(total.grad)
    assert float(objective.values(torch.zeros(2).double(), torch.zeros(2).double())["nsp_loss"]) == 0.0


def test_a_single_term_is_not_listed_separately():
    values = SumCountObjective({"classification": 1.0}).values(torch.ones(1).double(), torch.ones(1).double())
    assert list(values) == ["loss"]


def test_weights_of_one_are_left_out_without_a_change_of_any_bit():
    objective = SumCountObjective({"mlm": 1.0, "nsp": 1.0})
    sums, counts = torch.tensor([10.0, 7.0], dtype=torch.float64), torch.tensor([3.0, 49.0], dtype=torch.float64)
    ones = torch.ones(2, dtype=torch.float64)
    assert torch.equal(objective.values(sums, counts)["loss"], (sums / counts * ones).sum())
    loss = objective.loss({"mlm": torch.tensor(10.0), "nsp": torch.tensor(7.0)}, counts)
    assert torch.equal(loss, torch.tensor([10.0, 7.0]).mul((ones / counts).float()).sum())
