"""The loss scale of fp16 follows torch's GradScaler, and has a lower limit."""

import pytest
import torch
from torch import nn

from framework.distributed.parallel.loss_scale import LossScale
from framework.distributed.parallel.loss_scale_limits import LARGEST_SCALE
from framework.errors import FrameworkError


@pytest.mark.parametrize("init_scale", [2.0**16, 3000.0, LARGEST_SCALE])
def test_scale_and_unscaled_gradients_are_those_of_torchs_gradscaler(init_scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    overflows = (torch.rand(200, generator=generator) < 0.2).tolist()
    ours, theirs = LossScale(init_scale, growth_interval=3), torch.amp.GradScaler("cpu", init_scale, growth_interval=3)
    parameter, other = nn.Parameter(torch.zeros(5)), nn.Parameter(torch.zeros(5))
    optimizer = torch.optim.SGD([other], lr=0.0)
    scales = []
    for step, overflowed in enumerate(overflows, start=1):
        gradient = torch.randn(5, generator=generator) * (torch.inf if overflowed else 1.0)
        parameter.grad, other.grad = gradient.clone(), gradient.clone()
        theirs.scale(torch.ones(()))
        theirs.unscale_(optimizer)
        ours.unscale([parameter, nn.Parameter(torch.zeros(1))])
        assert torch.equal(parameter.grad, other.grad)
        theirs.step(optimizer)
        theirs.update()
        ours.update(overflowed, step)
        scales.append(theirs.get_scale())
        assert ours.value == scales[-1]
        assert ours.num_finite_steps == theirs.state_dict()["_growth_tracker"]
    assert ours.num_overflows == sum(overflows)
    assert len(set(scales)) > 5


def test_the_scale_continues_from_its_saved_state() -> None:
    first, second = LossScale(8.0, 2), LossScale(64.0, 2)
    for step, overflowed in enumerate((True, False), start=1):
        first.update(overflowed, step)
    second.load_state_dict(first.state_dict())
    for scale in (first, second):
        scale.update(False, 3)
        assert (scale.value, scale.num_finite_steps, scale.num_overflows) == (8.0, 0, 1)


def test_a_scale_below_1_is_an_error() -> None:
    scale = LossScale(2.0)
    scale.update(True, 6)
    with pytest.raises(FrameworkError, match=r"^Step 7: .* loss scale of 1, .*2 steps of the run.*precision=bf16"):
        scale.update(True, 7)
