"""The learning rate of each layer, and the decayed parameters, with the names of a real model."""

import pytest
import torch

from framework.errors import ConfigError
from framework.optim.combined import CombinedOptimizer
from framework.optim.layer_decay import layer_factors
from framework.optim.parameter_groups import AdamW, Lamb, Muon
from tests.support.models.tiny import TinyModel, tiny_config


def rates(optimizer: CombinedOptimizer) -> dict[str, float]:
    return {name: group["lr"] for group in optimizer.param_groups for name in group["names"]}


def expected_power(name: str) -> int:
    """Returns the depths of two layers: head 0, second layer 1, first layer 2, embeddings 3."""
    for start, power in (("encoder.embeddings.", 3), ("encoder.layers.0.", 2), ("encoder.layers.1.", 1)):
        if name.startswith(start):
            return power
    assert name.startswith(("head.", "encoder.final_norm."))
    return 0


@pytest.mark.parametrize("modern", [False, True])
def test_rates_fall_from_the_head_to_the_embeddings(modern: bool) -> None:
    model = TinyModel(tiny_config(modern))
    optimizer = Lamb(lr=0.8, layer_decay=0.5).build(model.named_parameters(), {}, torch.float32)
    found = rates(optimizer)
    assert found.keys() == {name for name, _ in model.named_parameters()}
    for name, rate in found.items():
        assert rate == pytest.approx(0.8 * 0.5 ** expected_power(name)), name
    assert optimizer.param_groups[0]["lr"] == 0.8, "the first group's rate is the one that is logged"


def test_a_schedule_keeps_the_ratios() -> None:
    model = TinyModel(tiny_config(False))
    optimizer = AdamW(lr=0.8, layer_decay=0.5).build(model.named_parameters(), {}, torch.float32)
    optimizer.set_learning_rates(0.25)
    assert rates(optimizer)["encoder.layers.0.attention.qkv.weight"] == pytest.approx(0.8 * 0.25 * 0.25)
    assert rates(optimizer)["head.dense.weight"] == pytest.approx(0.8 * 0.25)


def test_matrices_of_muon_follow() -> None:
    model = TinyModel(tiny_config(False))
    recipe = Muon(adamw=AdamW(lr=0.8, layer_decay=0.5), lr=0.4)
    optimizer = recipe.build(model.named_parameters(), {"*.attention.qkv.weight": (4, 3)}, torch.float32)
    found = rates(optimizer)
    for name, rate in found.items():
        muon = name.startswith("encoder.layers.") and name.endswith(".weight") and "norm" not in name
        assert rate == pytest.approx((0.4 if muon else 0.8) * 0.5 ** expected_power(name)), name
    qkv = next(group for group in optimizer.param_groups if "encoder.layers.1.attention.qkv.weight" in group["names"])
    assert qkv["row_parts"] == (4, 3) and qkv["names"] == ["encoder.layers.1.attention.qkv.weight"]


def test_frozen_layers_do_not_shift_the_others() -> None:
    model = TinyModel(tiny_config(False))
    model.encoder.layers[1].requires_grad_(False)
    found = rates(AdamW(lr=0.8, layer_decay=0.5).build(model.named_parameters(), {}, torch.float32))
    assert found["encoder.layers.0.attention.qkv.weight"] == pytest.approx(0.2)


def test_the_config_excludes_norms_biases_and_embeddings_from_decay() -> None:
    model = TinyModel(tiny_config(False))
    recipe = AdamW(lr=0.1, no_decay=["*bias", "*norm.weight", "*embeddings.weight"])
    optimizer = recipe.build(model.named_parameters(), {}, torch.float32)
    decayed = {name for group in optimizer.param_groups if group["weight_decay"] > 0 for name in group["names"]}
    layer = ("attention.qkv", "attention.output", "feed_forward.up", "feed_forward.down")
    assert decayed == {f"encoder.layers.{i}.{part}.weight" for i in range(2) for part in layer} | {"head.dense.weight"}


@pytest.mark.parametrize("value", [0.0, 1.1, float("nan")])
def test_a_decay_outside_its_range_is_named(value: float) -> None:
    with pytest.raises(ConfigError, match=f"optimizer.layer_decay is {value}"):
        AdamW(lr=0.1, layer_decay=value)


def test_a_relative_bias_has_the_rate_of_the_embeddings() -> None:
    names = ["encoder.embeddings.norm.weight", "encoder.relative_bias.table", "encoder.layers.0.feed_forward.up.weight"]
    assert list(layer_factors(names, 0.5).values()) == [0.25, 0.25, 0.5]


def test_a_model_without_layers_is_rejected() -> None:
    with pytest.raises(
        ConfigError, match=r"optimizer.layer_decay is 0.5, but the model has no parameters called encoder.layers.N"
    ):
        layer_factors(["head.dense.weight"], 0.5)
    assert layer_factors(["head.dense.weight"], 1.0) == {"head.dense.weight": 1.0}
