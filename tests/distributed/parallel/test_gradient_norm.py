"""The global norm against arithmetic by hand, and under sharding."""

import pytest
import torch
from torch import nn

from framework.distributed.parallel.gradient_norm import clip_gradients
from tests.support.models.tiny import build, full
from tests.support.processes.workers import WorkerPool


def parameter(gradient: list[float]) -> nn.Parameter:
    result = nn.Parameter(torch.zeros(len(gradient)))
    result.grad = torch.tensor(gradient)
    return result


def test_by_hand() -> None:
    first, second = parameter([3.0, 0.0]), parameter([0.0, 4.0])
    assert clip_gradients([first, second], None).item() == 5.0
    assert first.grad is not None and first.grad.tolist() == [3.0, 0.0]
    assert clip_gradients([first, second], 1.0).item() == 5.0
    torch.testing.assert_close(first.grad, torch.tensor([0.6, 0.0]))
    torch.testing.assert_close(clip_gradients([first, second], 7.0), torch.tensor(1.0))
    torch.testing.assert_close(first.grad, torch.tensor([0.6, 0.0]), msg="a small gradient stays")


def test_tied_weights_count_once_and_missing_gradients_not_at_all() -> None:
    tied = parameter([3.0])
    assert clip_gradients([tied, tied, nn.Parameter(torch.zeros(2))], None).item() == 3.0
    assert clip_gradients([nn.Parameter(torch.zeros(2))], 1.0).item() == 0.0


def norms(strategy: str) -> tuple[float, float, float]:
    """Returns the norm, that of the joined gradients, and that of the gradients after clipping at a tenth."""
    tiny = build(strategy)
    tiny.gradients(0)
    parameters = list(tiny.model.parameters())
    whole = torch.cat([full(each.grad).flatten() for each in parameters])
    found = clip_gradients(parameters, whole.norm().item() / 10)
    left = torch.cat([full(each.grad).flatten() for each in parameters])
    return found.item(), whole.double().norm().item(), left.double().norm().item()


@pytest.mark.parametrize(
    ("strategy", "world_size"), [("single", 1), ("ddp", 2), ("fsdp2", 4), ("hsdp", 4), ("tp", 2), ("fsdp2_tp", 4)]
)
def test_the_norm_is_that_of_the_complete_model(workers: WorkerPool, strategy: str, world_size: int) -> None:
    results = [norms("single")] if strategy == "single" else workers.run(norms, world_size, strategy)
    for found, whole, left in results:
        assert found == pytest.approx(whole, rel=1e-6)
        assert left == pytest.approx(whole / 10, rel=1e-4)
