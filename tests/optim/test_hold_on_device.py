"""Holding an update by a flag on the device equals skipping it on the host, bit for bit."""

import math

import pytest
import torch
from torch import Tensor, nn

from framework.optim import combined
from framework.optim.combined import CombinedOptimizer
from framework.optim.parameter_groups import AdamW, Lamb, Muon

NAMES = ("embeddings.weight", "encoder.layers.0.feed_forward.up.weight", "encoder.layers.0.feed_forward.up.bias")


def build(recipe: AdamW | Muon | Lamb) -> tuple[dict[str, nn.Parameter], CombinedOptimizer]:
    torch.manual_seed(0)
    parameters = {name: nn.Parameter(torch.randn((5,) if name.endswith("bias") else (5, 4))) for name in NAMES}
    return parameters, recipe.build(parameters.items(), {}, torch.float32)


def values_after(held_step: int | None, bad: float, by_device: bool) -> dict[str, Tensor]:
    """Returns weights and state after four steps of which one may be held."""
    parameters, optimizer = build(AdamW(lr=1e-2, layer_decay=0.8))
    assert optimizer.holds_on_device == by_device
    for step in range(4):
        for parameter in parameters.values():
            parameter.grad = torch.randn_like(parameter)
        optimizer.set_learning_rates(1 / (step + 1.3))
        is_held = step == held_step
        if by_device:
            optimizer.hold_unless_finite(torch.tensor(2.0, dtype=torch.float64), torch.tensor(bad if is_held else 1.0))
        elif is_held:
            optimizer.hold_update()
        optimizer.step()
    return dict(parameters) | optimizer.named_state()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("held_step", [None, 0, 2])
def test_the_device_holds_exactly_the_updates_that_are_not_finite(
    held_step: int | None, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = values_after(held_step, bad, by_device=False)
    monkeypatch.setattr(combined, "HOLDING_DEVICES", ("cpu",))
    found = values_after(held_step, bad, by_device=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert found[f"{NAMES[0]}.step"] == (4 if held_step is None else 3)


@pytest.mark.parametrize("recipe", [Muon(adamw=AdamW(lr=1e-2), lr=1e-2), Lamb(lr=1e-2)], ids=["muon", "lamb"])
def test_only_adamw_without_an_average_holds_on_the_device(
    recipe: Muon | Lamb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(combined, "HOLDING_DEVICES", ("cpu",))
    assert not build(recipe)[1].holds_on_device
    _, optimizer = build(AdamW(lr=1e-2))
    assert optimizer.holds_on_device
    optimizer.keep_average(0.9)
    assert not optimizer.holds_on_device
