"""The components of the forms of loss against slow references, and the rejected combinations."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn import functional

from framework.batch import IGNORE_INDEX
from framework.config.checks import check_regularization
from framework.data.planning.plan import StepSequences
from framework.distributed.gather_rows import gather_rows
from framework.distributed.mesh import MeshShape, build_mesh
from framework.errors import ConfigError
from framework.modules.passes.adversarial import Adversarial, perturbation
from framework.modules.passes.one_pass import OnePass
from framework.modules.passes.r_drop import RDrop, full_logits, symmetric_divergence_sum
from framework.nn.dropout import HashedDropout
from framework.tasks.step_level import in_order, real_rows
from framework.tasks.task import TaskModel
from tests.support.processes.workers import WorkerPool
from tests.support.training.toy_contrast import ContrastTask
from tests.support.training.toy_run import ToySource, ToyTask, build_module


def test_divergence_is_the_mean_of_both_directions_over_the_counted_targets() -> None:
    first, second = torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0)) * 3
    labels = torch.tensor([[0, 1, IGNORE_INDEX, 3, 4], [IGNORE_INDEX] * 5, [6, 5, 4, 3, IGNORE_INDEX]])
    expected = 0.0
    for position in (labels != IGNORE_INDEX).nonzero().tolist():
        p, q = (logits[tuple(position)].double().softmax(0) for logits in (first, second))
        expected += float(
            functional.kl_div(q.log(), p, reduction="sum") + functional.kl_div(p.log(), q, reduction="sum")
        )
    found = symmetric_divergence_sum(first, second, labels)
    assert found.item() == pytest.approx(expected / 2, rel=1e-5)
    assert symmetric_divergence_sum(first, first, labels) == 0


def test_divergence_counts_the_targets_of_all_outputs() -> None:
    batch = ToySource(37).build(StepSequences(np.zeros(3), np.array([2, 3, 5]), np.arange(3)), 0)
    counts = RDrop(1.0).counts(ToyTask(), batch)
    # Word, pair and z are those of the task; only sequences with an even index have a label.
    assert counts.tolist() == [batch.counts["word"], 1, batch.counts["word"], batch.counts["word"] + 1]


def split_divergence() -> tuple[Tensor, Tensor]:
    """Returns the gradient of this rank's part of logits whose 6 words are on two ranks, and the whole gradient."""
    mesh = init_device_mesh("cpu", (2,))
    logits = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, IGNORE_INDEX, 5, 1])
    plain = logits.clone().requires_grad_()
    symmetric_divergence_sum(plain[0], plain[1], labels).backward()
    part = logits.chunk(2, dim=2)[dist.get_rank()].clone().requires_grad_()
    first, second = (DTensor.from_local(part[i], mesh, [Shard(1)], run_check=False) for i in (0, 1))
    symmetric_divergence_sum(full_logits(first), full_logits(second), labels).backward()
    assert part.grad is not None and plain.grad is not None
    return part.grad, plain.grad.chunk(2, dim=2)[dist.get_rank()]


def test_partial_logits_get_the_gradients_of_their_parts(workers: WorkerPool) -> None:
    for found, expected in workers.run(split_divergence, 2):
        torch.testing.assert_close(found, expected)


def test_perturbation_has_the_length_epsilon_in_each_sequence_for_any_scale() -> None:
    batch = ToySource(37).build(StepSequences(np.zeros(4), np.arange(4), np.arange(4)), 0)
    gradient = torch.randn(batch.num_tokens, 16, generator=torch.Generator().manual_seed(0)) * 1e-9
    parts = gradient.split(list(batch.lengths))
    parts[1].zero_()
    parts[3][0, 0] = torch.inf
    expected = [2.5 * part.double() / part.double().norm() for part in parts]
    expected[1], expected[3] = torch.zeros_like(parts[1]), torch.zeros_like(parts[3])
    found = perturbation(gradient, batch, 2.5)
    torch.testing.assert_close(found.double(), torch.cat(expected).double(), rtol=1e-6, atol=0)
    assert torch.equal(perturbation(gradient * 2.0**40, batch, 2.5), found)


def gathered(num_rows: list[int]) -> tuple[list[int], list[float], list[float]]:
    """Returns ids in order, received values, and the gradient of the sum of (id + 1) x value for this rank's values."""
    rank = dist.get_rank()
    mesh = build_mesh("ddp", MeshShape(replicate=len(num_rows)), "cpu")
    ids = torch.tensor([len(num_rows) * i + rank for i in range(num_rows[rank])] + [-1], dtype=torch.int64)
    values = (ids.float() / 2)[:, None].expand(-1, 2).clone().requires_grad_()
    rows = in_order(gather_rows(real_rows({"values": values, "sequence_ids": ids}), mesh))
    (rows["values"].sum(dim=1) * (rows["sequence_ids"] + 1)).sum().backward()
    assert values.grad is not None
    return rows["sequence_ids"].tolist(), rows["values"][:, 1].tolist(), values.grad[:, 0].tolist()


@pytest.mark.parametrize("num_rows", [[2, 0, 3], [0, 0, 0], [4, 1, 1]])
def test_rows_of_all_ranks_are_in_order_and_keep_their_gradient(num_rows: list[int], workers: WorkerPool) -> None:
    owned = [[3 * i + rank for i in range(count)] for rank, count in enumerate(num_rows)]
    expected = sorted(position for own in owned for position in own)
    for rank, (ids, values, gradient) in enumerate(workers.run(gathered, 3, num_rows)):
        assert ids == expected
        assert values == [position / 2 for position in expected]
        assert gradient == [position + 1.0 for position in owned[rank]] + [0.0]  # the last is a dummy


def model_with(task: ToyTask | ContrastTask, dropout: float) -> TaskModel:
    model = build_module(task=task).model
    for module in model.modules():
        if isinstance(module, HashedDropout):
            module.threshold = round(dropout * 2**15)
    return model


class Silent(ToyTask):
    """Task without scores of classes."""

    @property
    def class_scores(self) -> Mapping[str, str]:
        return {}


@pytest.mark.parametrize(
    ("regularization", "task", "dropout", "message"),
    [
        (RDrop(1.0), ContrastTask(), 0.1, "ContrastTask needs all .*=RDrop makes .* Choose regularization=none"),
        (Adversarial(1.0), ContrastTask(), 0.1, "ContrastTask needs all .*=Adversarial makes .* Choose"),
        (RDrop(1.0), Silent(), 0.1, "Silent has no class scores"),
        (RDrop(1.0), ToyTask(), 0.0, "the model has no dropout"),
        (OnePass(), ContrastTask(), 0.0, None),
        (RDrop(1.0), ToyTask(), 0.1, None),
        (Adversarial(1.0), Silent(), 0.0, None),
    ],
)
def test_impossible_combinations_are_rejected(
    regularization: OnePass | RDrop | Adversarial, task: ToyTask, dropout: float, message: str | None
) -> None:
    model: nn.Module = model_with(task, dropout)
    if message is None:
        check_regularization(regularization, task, model)  # type: ignore[arg-type]
        return
    with pytest.raises(ConfigError, match=message):
        check_regularization(regularization, task, model)  # type: ignore[arg-type]


@pytest.mark.parametrize("values", [{"alpha": 0.0}, {"epsilon": -1.0}, {"epsilon": 1.0, "weight": 0.0}])
def test_values_that_are_not_positive_are_rejected(values: dict[str, float]) -> None:
    name, value = list(values.items())[-1]
    with pytest.raises(ConfigError, match=rf"`regularization\.{name}` is {value}. It must be above 0"):
        RDrop(**values) if "alpha" in values else Adversarial(**values)


def test_a_single_term_is_made_adversarial_by_its_name() -> None:
    task = ToyTask()
    task.loss_weights = {"word": 2.0}
    assert Adversarial(1.0, weight=0.5).weights(task) == {"word": 2.0, "adversarial": 1.0}
