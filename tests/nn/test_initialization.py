"""Initial values: functions of (seed, name), with the standard deviations of the config."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from framework.models.encoder import TransformerEncoder
from framework.nn.initialization import initial_values
from tests.support.models.shapes import BERT, MODERN


class Tied(nn.Module):
    """Builds an encoder under a prefix, and a decoder tied to it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = TransformerEncoder(BERT)
        self.head = nn.Linear(BERT.hidden_size, BERT.vocab_size)
        self.head.weight = self.encoder.embeddings.word_embeddings.weight


def test_values_do_not_depend_on_the_order_or_on_the_selected_parameters() -> None:
    model = TransformerEncoder(MODERN)
    everything = {name: make() for name, make in initial_values(model, MODERN, seed=1)}
    makers = dict(initial_values(model, MODERN, seed=1))
    for name in reversed(list(makers)[::3]):
        assert torch.equal(makers[name](), everything[name])
    assert torch.equal(makers["layers.1.attention.qkv.weight"](), everything["layers.1.attention.qkv.weight"])


def test_values_need_no_memory_of_the_model_and_ignore_wrappers() -> None:
    with torch.device("meta"):
        on_meta = TransformerEncoder(MODERN)
    on_meta.layers[1] = torch.compile(on_meta.layers[1])
    wrapped = {name.replace("_orig_mod.", ""): make() for name, make in initial_values(on_meta, MODERN, seed=1)}
    plain = {name: make() for name, make in initial_values(TransformerEncoder(MODERN), MODERN, seed=1)}
    assert wrapped.keys() == plain.keys()
    assert all(torch.equal(wrapped[name], value) and value.dtype == torch.float32 for name, value in plain.items())


def test_seed_and_name_both_matter() -> None:
    model = TransformerEncoder(BERT)
    one, two = (dict(initial_values(model, BERT, seed)) for seed in (1, 2))
    first, second = "layers.0.attention.qkv.weight", "layers.1.attention.qkv.weight"
    assert not torch.equal(one[first](), two[first]())
    assert not torch.equal(one[first](), one[second]())


def test_every_parameter_comes_once_with_its_shape_and_tied_ones_under_the_first_name() -> None:
    model = Tied()
    values = {name: make() for name, make in initial_values(model, BERT, seed=1)}
    assert {name: value.shape for name, value in values.items()} == {
        name: parameter.shape for name, parameter in model.named_parameters()
    }
    assert "encoder.embeddings.word_embeddings.weight" in values
    assert "head.weight" not in values


@pytest.mark.parametrize(("rule", "factor"), [("normal", 1.0), ("scaled", 1 / math.sqrt(2 * 3)), ("zero", 0.0)])
def test_standard_deviations(rule: str, factor: float) -> None:
    config = dataclasses.replace(BERT, output_initialization=rule, hidden_size=64, initializer_range=0.05)
    values = {name: make() for name, make in initial_values(TransformerEncoder(config), config, seed=3)}
    for name, value in values.items():
        if name.endswith("bias"):
            assert not value.any()
        elif "norm" in name:
            assert torch.equal(value, torch.ones_like(value))
        else:
            is_output = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
            std = 0.05 * (factor if is_output else 1.0)
            error = 4.5 * std / math.sqrt(2 * value.numel())
            assert value.std().item() == pytest.approx(std, abs=error + 1e-12)
            assert abs(value.mean().item()) <= 4.5 * std / math.sqrt(value.numel())
