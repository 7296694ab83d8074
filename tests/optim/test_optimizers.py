"""The combined optimizer compared with torch's AdamW and Muon, and the optimizer of each parameter."""

import pytest
import torch
from torch import Tensor, nn
from torch.optim._muon import _zeropower_via_newtonschulz

from framework.errors import ConfigError
from framework.optim.combined import CombinedOptimizer
from framework.optim.muon import join_rows, learning_rate_factor, orthogonalize, split_rows
from framework.optim.parameter_groups import AdamW, Lamb, Muon, StableAdamW

Parameters = dict[str, nn.Parameter]

SHAPES = {
    "embeddings.word_embeddings.weight": (11, 8),
    "embeddings.norm.weight": (8,),
    "layers.0.attention.qkv.weight": (24, 8),
    "layers.0.attention.qkv.bias": (24,),
    "layers.0.attention_norm.weight": (8,),
    "layers.0.feed_forward.up.weight": (16, 8),
    "layers.0.feed_forward.down.weight": (8, 16),
    "head.dense.weight": (8, 8),
}
ROW_PARTS = {"*.attention.qkv.weight": (2, 3)}


def make_parameters() -> Parameters:
    torch.manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape)) for name, shape in SHAPES.items()}


def set_gradients(parameters: Parameters, step: int) -> None:
    torch.manual_seed(100 + step)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape)


def groups_by_name(optimizer: CombinedOptimizer) -> dict[str, dict]:
    return {name: group for group in optimizer.param_groups for name in group["names"]}


def test_adamw_equals_torch() -> None:
    ours, theirs = make_parameters(), make_parameters()
    optimizer = AdamW(lr=0.01, betas=(0.8, 0.95), eps=1e-5, weight_decay=0.1).build(ours.items(), {}, torch.float32)
    decayed = [theirs[name] for name in SHAPES if not name.endswith(("bias", "norm.weight"))]
    kept = [theirs[name] for name in SHAPES if name.endswith(("bias", "norm.weight"))]
    reference = torch.optim.AdamW(
        [{"params": decayed}, {"params": kept, "weight_decay": 0.0}], 0.01, (0.8, 0.95), 1e-5, 0.1, foreach=False
    )
    for step in range(3):
        for parameters, stepper in ((ours, optimizer), (theirs, reference)):
            set_gradients(parameters, step)
            stepper.step()
    for name in SHAPES:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-7)


def test_muon_equals_torch_on_each_matrix() -> None:
    ours, theirs = make_parameters(), make_parameters()
    recipe = Muon(adamw=AdamW(lr=0.01), lr=0.02, weight_decay=0.1)
    # bf16, as torch's own always computes.
    optimizer = recipe.build(ours.items(), ROW_PARTS, torch.bfloat16)
    before = {name: parameter.detach().clone() for name, parameter in theirs.items()}
    matrices = ["layers.0.feed_forward.up.weight", "layers.0.feed_forward.down.weight"]
    # Query, key and value of two heads as separate matrices, split by hand.
    qkv = theirs["layers.0.attention.qkv.weight"].detach().view(2, 3, 4, 8)
    parts = [nn.Parameter(qkv[:, part].reshape(8, 8).clone()) for part in range(3)]
    reference = torch.optim.Muon([*(theirs[name] for name in matrices), *parts], lr=0.02, weight_decay=0.1)
    for step in range(3):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        for part, parameter in enumerate(parts):
            gradient = theirs["layers.0.attention.qkv.weight"].grad
            assert gradient is not None
            parameter.grad = gradient.view(2, 3, 4, 8)[:, part].reshape(8, 8)
        optimizer.step()
        reference.step()
    tolerance = {"rtol": 2e-2, "atol": 2e-3}
    for name in matrices:
        torch.testing.assert_close(ours[name], theirs[name], **tolerance)
    found = ours["layers.0.attention.qkv.weight"].detach().view(2, 3, 4, 8)
    for part, parameter in enumerate(parts):
        torch.testing.assert_close(found[:, part].reshape(8, 8), parameter.detach(), **tolerance)
    assert not torch.allclose(found.reshape(24, 8), before["layers.0.attention.qkv.weight"], atol=0.02)


def test_newton_schulz_equals_torch_and_brings_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for rows, columns in ((8, 8), (24, 8), (8, 24)):
        matrices = torch.randn(3, rows, columns)
        found = orthogonalize(matrices, 5)
        for index in range(3):
            expected = _zeropower_via_newtonschulz(matrices[index], (3.4445, -4.7750, 2.0315), 5, 1e-7)
            torch.testing.assert_close(found[index], expected.float(), rtol=0, atol=0.05)
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.3 and values.max() < 1.3
    assert torch.isfinite(orthogonalize(torch.zeros(1, 4, 4), 5)).all()


def test_rows_of_a_fused_weight() -> None:
    # Heads 2, parts 3, head_dim 1: rows are q0 k0 v0 q1 k1 v1.
    fused = torch.tensor([[0.0], [10.0], [20.0], [1.0], [11.0], [21.0]])
    split = split_rows(fused, (2, 3))
    assert split.squeeze(-1).tolist() == [[0.0, 1.0], [10.0, 11.0], [20.0, 21.0]]
    assert torch.equal(join_rows(split, (2, 3)), fused)
    assert torch.equal(join_rows(split_rows(fused, None), None), fused)


def test_learning_rate_rules() -> None:
    assert learning_rate_factor("original", 16, 4) == 2.0
    assert learning_rate_factor("original", 4, 16) == 1.0
    assert learning_rate_factor("match_rms_adamw", 4, 16) == pytest.approx(0.8)


def test_the_optimizer_of_each_parameter() -> None:
    recipe = Muon(adamw=AdamW(lr=0.01, weight_decay=0.1), lr=0.02, weight_decay=0.3)
    optimizer = recipe.build(make_parameters().items(), ROW_PARTS, torch.float32)
    groups = groups_by_name(optimizer)
    assert groups.keys() == SHAPES.keys()
    muon = {name for name, group in groups.items() if group["algorithm"] == "muon"}
    assert muon == {
        name
        for name in SHAPES
        if name.startswith("layers.0") and name.endswith(("qkv.weight", "up.weight", "down.weight"))
    }
    assert groups["layers.0.attention.qkv.weight"]["row_parts"] == (2, 3)
    assert groups["layers.0.feed_forward.up.weight"]["row_parts"] is None
    decayed = {name for name, group in groups.items() if group["weight_decay"] > 0}
    assert decayed == muon | {"embeddings.word_embeddings.weight", "head.dense.weight"}


def test_rates_follow_the_factor() -> None:
    optimizer = Muon(adamw=AdamW(lr=0.01), lr=0.02).build(make_parameters().items(), {}, torch.float32)
    optimizer.set_learning_rates(0.5)
    assert {(group["algorithm"], group["lr"]) for group in optimizer.param_groups} == {("adamw", 0.005), ("muon", 0.01)}
    optimizer.set_learning_rates(1.0)
    assert {(group["algorithm"], group["lr"]) for group in optimizer.param_groups} == {("adamw", 0.01), ("muon", 0.02)}


def test_decay_follows_the_rate_or_only_the_schedule() -> None:
    """With gradients of zero a step multiplies weights by 1 - decay: 0.1 times the rate, or times the schedule."""
    for lr in (1e-2, 1e-3):
        for times, decay in (("rate", 0.1 * lr * 0.5), ("schedule", 0.1 * 0.5)):
            for settings in (AdamW, StableAdamW):
                weight = nn.Parameter(torch.full((3, 2), 2.0))
                adam = settings(lr=lr, weight_decay=0.1, weight_decay_times=times)
                optimizer = adam.build([("layers.0.weight", weight)], {}, torch.float32)
                optimizer.set_learning_rates(0.5)
                weight.grad = torch.zeros_like(weight)
                optimizer.step()
                torch.testing.assert_close(weight.detach(), torch.full((3, 2), 2.0 * (1 - decay)))


def test_parameters_without_gradient_do_not_change() -> None:
    parameters = make_parameters()
    parameters["head.dense.weight"].requires_grad_(False)
    optimizer = Muon(adamw=AdamW(lr=0.01), lr=0.02).build(parameters.items(), {}, torch.float32)
    assert "head.dense.weight" not in groups_by_name(optimizer)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer.step()
    assert all(torch.equal(parameters[name], before[name]) for name in SHAPES)


def test_state_has_names_from_the_start() -> None:
    parameters = make_parameters()
    optimizer = Muon(adamw=AdamW(lr=0.01), lr=0.02).build(parameters.items(), {}, torch.float32)
    state: dict[str, Tensor] = optimizer.named_state()
    assert state["layers.0.feed_forward.up.weight.momentum_buffer"].shape == (16, 8)
    assert {name for name in state if name.startswith("embeddings.norm")} == {
        f"embeddings.norm.weight.{key}" for key in ("exp_avg", "exp_avg_sq", "step")
    }
    set_gradients(parameters, 0)
    optimizer.step()
    assert state["embeddings.norm.weight.step"] == 1.0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AdamW(lr=-1.0), "optimizer.lr is -1.0"),
        (lambda: AdamW(lr=float("nan")), "optimizer.lr is nan"),
        (lambda: AdamW(lr=0.1, betas=(0.9, 1.0)), "optimizer.betas"),
        (lambda: Muon(adamw=AdamW(lr=0.1), lr=0.1, momentum=1.0), "optimizer.momentum is 1.0"),
        (lambda: Muon(adamw=AdamW(lr=0.1), lr=0.1, learning_rate_rule="none"), "learning_rate_rule is .none."),
        (lambda: AdamW(lr=0.0, weight_decay_times="schedule"), r"weight_decay_times is schedule, optimizer.lr is 0.0"),
        (lambda: AdamW(lr=1e-3, weight_decay=1.0, weight_decay_times="schedule"), "optimizer.weight_decay is 1.0"),
        (lambda: Lamb(lr=1e-3, weight_decay_times="schedule"), "LAMB adds the decay to the update"),
    ],
)
def test_bad_settings_are_named(build: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()  # type: ignore[operator]
