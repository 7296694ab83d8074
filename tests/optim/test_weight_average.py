"""The moving average of the weights against a loop in fp64, under every strategy, and its exchange with the weights."""

import pytest
import torch
from torch import Tensor, nn

from framework.distributed.parallel.materialization import assign_full
from framework.distributed.parallel.parallelize import drop_gathered
from framework.optim.parameter_groups import AdamW, Muon
from tests.support.models.tiny import build, full, full_parameters
from tests.support.processes.workers import WorkerPool

DECAY = 0.75
NUM_STEPS = 4


def averages_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns the full averages by parameter name. Collective."""
    state = optimizer.named_state()  # type: ignore[attr-defined]
    return {name.removesuffix(".ema"): full(value) for name, value in state.items() if name.endswith(".ema")}


def average_by_hand(history: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the weights before the first step and after each."""
    average = {name: value.double() for name, value in history[0].items()}
    for weights in history[1:]:
        average = {name: DECAY * average[name] + (1 - DECAY) * weights[name].double() for name in average}
    return average


def follow(strategy: str, precision: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the average after some steps, and its expected value."""
    tiny = build(strategy, muon=True, precision=precision)
    tiny.optimizer.keep_average(DECAY)
    history = [full_parameters(tiny.model)]
    for step in range(NUM_STEPS):
        tiny.step(step)
        history.append(full_parameters(tiny.model))
    return averages_of(tiny.optimizer), average_by_hand(history)


@pytest.mark.parametrize(("strategy", "size"), [("single", 1), ("ddp", 2), ("fsdp2", 2)])
def test_the_average_follows_every_weight_as_a_loop_in_fp64(workers: WorkerPool, strategy: str, size: int) -> None:
    found, expected = (
        follow("single", "fp32") if strategy == "single" else workers.run(follow, size, strategy, "fp32")[0]
    )
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-6, atol=1e-8)


def validate_between(strategy: str, precision: str) -> dict[str, object]:
    """Makes steps with and without a pass that uses the average; returns the outputs of the pass and the last state."""
    results: dict[str, object] = {}
    for kind in ("plain", "swapped"):
        tiny = build(strategy, precision=precision)
        tiny.optimizer.keep_average(DECAY)
        curve = [tiny.step(step) for step in range(2)]
        if kind == "swapped":
            before, average = full_parameters(tiny.model), averages_of(tiny.optimizer)
            tiny.evaluate(2)  # leaves weights gathered, as an earlier validation does
            tiny.optimizer.swap_average()
            drop_gathered(tiny.model)
            within, kept = full_parameters(tiny.model), averages_of(tiny.optimizer)
            results["in place"] = all(
                torch.equal(within[name], average[name]) and torch.equal(kept[name], before[name]) for name in before
            )
            results["seen"] = tiny.evaluate(2)
            tiny.optimizer.swap_average()
            drop_gathered(tiny.model)
            other = build(strategy, precision=precision)
            with torch.no_grad():
                for name, parameter in other.model.named_parameters():
                    assign_full(parameter, average[name])
            results["expected"] = other.evaluate(2)
        curve += [tiny.step(step) for step in range(2, 4)]
        results[kind] = (curve, full_parameters(tiny.model), averages_of(tiny.optimizer))
    return results


def same(left: object, right: object) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right)  # type: ignore[arg-type]
    if isinstance(left, dict):
        return all(same(left[name], right[name]) for name in left)  # type: ignore[index]
    if isinstance(left, tuple | list):
        return all(same(*pair) for pair in zip(left, right, strict=True))  # type: ignore[call-overload]
    return left == right


@pytest.mark.parametrize(("strategy", "precision"), [("ddp", "fp32"), ("fsdp2", "fp32"), ("fsdp2", "bf16")])
def test_the_average_replaces_the_weights_in_a_pass_without_side_effects(
    workers: WorkerPool, strategy: str, precision: str
) -> None:
    found = workers.run(validate_between, 2, strategy, precision)[0]
    assert found["in place"]
    assert torch.equal(found["seen"], found["expected"])
    assert same(found["plain"], found["swapped"])


def test_the_average_skips_held_updates_and_follows_a_parameter_without_gradient() -> None:
    parameters = {"a.weight": nn.Parameter(torch.ones(2, 2)), "b.weight": nn.Parameter(torch.full((2,), 3.0))}
    parameters["frozen.weight"] = nn.Parameter(torch.zeros(2), requires_grad=False)
    optimizer = Muon(adamw=AdamW(lr=0.5, weight_decay=0.0), lr=0.1, matrices=()).build(
        parameters.items(), {}, torch.float32
    )
    optimizer.keep_average(DECAY)
    parameters["a.weight"].grad = torch.ones(2, 2)
    averages = averages_of(optimizer)
    assert averages.keys() == {"a.weight", "b.weight"}
    assert torch.equal(averages["a.weight"], torch.ones(2, 2))
    optimizer.step()
    # Adam's first step changes the weight by the rate: 1 to 0.5, of which the average takes a quarter.
    torch.testing.assert_close(averages_of(optimizer)["a.weight"], torch.full((2, 2), 0.875), rtol=1e-5, atol=0)
    assert torch.equal(averages_of(optimizer)["b.weight"], torch.full((2,), 3.0))


def test_changes_are_announced() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = AdamW(lr=0.1).build([("weight", weight)], {}, torch.float32)
    seen: list[list[Tensor]] = []
    optimizer.before_change = lambda: seen.append([weight.detach().clone(), *clones(optimizer)])
    weight.grad = torch.ones(2)
    optimizer.swap_average()
    optimizer.hold_update()
    optimizer.step()
    assert not seen, "nothing changes without an average or in a held update"
    optimizer.keep_average(DECAY)
    for change in (optimizer.step, optimizer.swap_average, optimizer.step):
        before = [weight.detach().clone(), *clones(optimizer)]
        change()
        assert same(seen.pop(), before)
        assert not seen
        assert not same([weight.detach(), *clones(optimizer)], before)


def clones(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [value.clone() for value in optimizer.named_state().values()]  # type: ignore[attr-defined]


def test_without_an_average_nothing_is_stored_or_exchanged() -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = AdamW(lr=0.1).build([("weight", weight)], {}, torch.float32)
    optimizer.swap_average()
    assert torch.equal(weight, torch.ones(2))
    assert not averages_of(optimizer)
