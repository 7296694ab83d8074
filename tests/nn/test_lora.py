"""Low-rank updates compared with dense matrices that are filled element by element."""

import itertools
import re

import pytest
import torch
from torch import Tensor, nn

from framework.errors import ConfigError
from framework.models.encoder import TransformerEncoder
from framework.nn.initialization import initial_values
from framework.nn.lora import LoraLinear, LoraSettings, apply_lora, is_update, merge_lora
from tests.support.models.tiny import make_batch, tiny_config

HIDDEN, HEADS, RANK, ALPHA = 12, 3, 2, 5.0
HEAD_DIM = HIDDEN // HEADS
EVERYTHING = ("query", "key", "value", "output", "gate", "up", "down")


def fill(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def dense_qkv(lora: LoraLinear, targets: tuple[str, ...]) -> Tensor:
    """Computes weight plus updates row by row: rows are ordered (heads, 3, head_dim)."""
    weight = lora.weight.detach().clone()
    for index, part in enumerate(("query", "key", "value")):
        if part not in targets:
            continue
        a, b = lora.updates[part].lora_a.detach(), lora.updates[part].lora_b.detach()
        for head, channel in itertools.product(range(HEADS), range(HEAD_DIM)):
            row = (head * 3 + index) * HEAD_DIM + channel
            for column in range(HIDDEN):
                total = sum(float(b[head * HEAD_DIM + channel, k] * a[k, column]) for k in range(RANK))
                weight[row, column] += ALPHA / RANK * total
    return weight


@pytest.mark.parametrize("targets", [("query", "value"), ("key",), ("query", "key", "value")])
def test_the_fused_layer_equals_the_dense_matrix(targets: tuple[str, ...]):
    settings = LoraSettings(RANK, ALPHA, targets)
    lora = LoraLinear(nn.Linear(HIDDEN, 3 * HIDDEN), ("query", "key", "value"), HEADS, settings)
    fill(lora)
    x = torch.randn(7, HIDDEN, generator=torch.Generator().manual_seed(1))
    expected = x @ dense_qkv(lora, targets).T + lora.bias
    torch.testing.assert_close(lora(x), expected, atol=1e-5, rtol=1e-5)
    state = {f"layers.0.attention.qkv.{name}": tensor for name, tensor in lora.state_dict().items()}
    merged = merge_lora(state, HEADS, settings)
    assert set(merged) == {"layers.0.attention.qkv.weight", "layers.0.attention.qkv.bias"}
    torch.testing.assert_close(merged["layers.0.attention.qkv.weight"], dense_qkv(lora, targets), atol=1e-6, rtol=1e-6)


def build(modern: bool, settings: LoraSettings) -> TransformerEncoder:
    config = tiny_config(modern)
    encoder = TransformerEncoder(config)
    apply_lora(encoder.layers, config.num_heads, settings)
    return encoder


@pytest.mark.parametrize("modern", [False, True])
def test_the_merged_encoder_computes_the_same(modern: bool):
    config = tiny_config(modern)
    settings = LoraSettings(RANK, ALPHA, EVERYTHING if modern else [name for name in EVERYTHING if name != "gate"])
    adapted = build(modern, settings)
    fill(adapted)
    plain, base = TransformerEncoder(config), TransformerEncoder(config)
    plain.load_state_dict(merge_lora(adapted.state_dict(), config.num_heads, settings))
    base.load_state_dict({name: value for name, value in adapted.state_dict().items() if not is_update(name)})
    batch = make_batch(0, [0, 1, 2])
    expected = adapted(batch)
    torch.testing.assert_close(plain(batch), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(base(batch), expected, atol=1e-2)


@pytest.mark.parametrize("modern", [False, True])
def test_training_begins_with_the_outputs_of_the_frozen_layer(modern: bool):
    config = tiny_config(modern)
    encoder, plain = build(modern, LoraSettings(RANK, ALPHA, ("query", "value", "up"))), TransformerEncoder(config)
    values = {name: make() for name, make in initial_values(encoder, config, seed=2)}
    encoder.load_state_dict(values)
    plain.load_state_dict({name: value for name, value in values.items() if not is_update(name)})
    batch = make_batch(0, [0, 1, 2])
    assert torch.equal(encoder(batch), plain(batch))
    a = torch.cat([value.flatten() for name, value in values.items() if name.endswith("lora_a")])
    assert 0.015 < a.std() < 0.025  # of initializer_range
    assert not any(value.any() for name, value in values.items() if name.endswith("lora_b"))
    assert len({float(value[0, 0]) for name, value in values.items() if name.endswith("lora_a")}) == 6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rank": 0}, "`adapter.rank` is 0. It must be at least 1"),
        ({"alpha": 0.0}, "`adapter.alpha` is 0.0. It must be greater than 0"),
        ({"targets": []}, "`adapter.targets` is empty. Choose some of query, key, value, output, gate, up, down"),
        ({"targets": ["query", "qkv"]}, "`adapter.targets` has 'qkv', which is no linear layer"),
    ],
)
def test_impossible_settings(changes: dict, words: str):
    with pytest.raises(ConfigError, match=re.escape(words)):
        LoraSettings(**{"rank": 4, "alpha": 8.0, "targets": ["query"], **changes})


def test_a_gate_that_the_model_lacks():
    with pytest.raises(ConfigError, match=r"`adapter.targets` has 'gate', which this model lacks"):
        build(False, LoraSettings(RANK, ALPHA, ("query", "gate")))
