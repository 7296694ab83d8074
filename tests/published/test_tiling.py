"""Larger encoders tiled from smaller ones: where each number comes from, and bad input."""

from dataclasses import replace

import pytest
import torch

from framework.errors import ConfigError
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.published.pretrained import PretrainedWeights
from framework.published.tiling import tile, tiled

SMALL = EncoderConfig(
    family="modernbert",
    vocab_size=11,
    hidden_size=8,
    num_layers=2,
    num_heads=2,
    intermediate_size=6,
    max_position_embeddings=16,
    type_vocab_size=0,
    position_encoding="rotary",
    norm_placement="pre",
    gated=True,
    bias=False,
    norm_bias=False,
)
LARGE = replace(SMALL, hidden_size=16, num_layers=5, num_heads=4, intermediate_size=10)


@pytest.fixture
def weights() -> PretrainedWeights:
    torch.manual_seed(0)
    encoder = {name: torch.randn(each.shape) for name, each in TransformerEncoder(SMALL).named_parameters()}
    heads = {"mlm.dense.weight": torch.randn(8, 8), "mlm.decoder.bias": torch.randn(11)}
    return PretrainedWeights("base", SMALL, encoder, heads)


def test_a_tensor_lies_in_the_middle_and_is_repeated_at_both_sides():
    assert tile(torch.arange(4), [8]).tolist() == [2, 3, 0, 1, 2, 3, 0, 1]
    assert tile(torch.arange(3), [6]).tolist() == [2, 0, 1, 2, 0, 1]
    assert tile(torch.tensor([[1, 2], [3, 4]]), [2, 4]).tolist() == [[2, 1, 2, 1], [4, 3, 4, 3]]


def test_heads_are_tiled_whole_and_layers_come_from_the_same_relative_depth(weights):
    large = tiled(weights, LARGE)
    shapes = {name: each.shape for name, each in TransformerEncoder(LARGE).named_parameters()}
    assert {name: each.shape for name, each in large.encoder.items()} == shapes
    for layer, source in enumerate([0, 0, 0, 1, 1]):
        name = "attention.qkv.weight"
        ours = large.encoder[f"layers.{layer}.{name}"].reshape(4, 3, 4, 16)
        theirs = weights.encoder[f"layers.{source}.{name}"].reshape(2, 3, 4, 8)
        assert ours[1:3, :, :, 4:12].equal(theirs) and ours[0, :, :, 4:12].equal(theirs[1])
    # The first layer of the smaller encoder has no norm before attention.
    assert large.encoder["layers.1.attention_norm.weight"][4:12].equal(
        weights.encoder["layers.1.attention_norm.weight"]
    )
    assert large.heads["mlm.dense.weight"][4:12, 4:12].equal(weights.heads["mlm.dense.weight"])
    assert large.heads["mlm.decoder.bias"].equal(weights.heads["mlm.decoder.bias"])
    assert large.changes == ("tiled from 2 layers of 8 to 5 of 16",)


def test_equal_sizes_change_nothing(weights):
    same = tiled(weights, SMALL)
    assert all(each.equal(weights.encoder[name]) for name, each in same.encoder.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gated": False}, r"model\.gated is False, and init_from=base has True"),
        ({"num_layers": 1}, r"model\.num_layers is 1, and init_from=base has 2\. Tiling enlarges"),
        ({"num_heads": 2}, r"heads of the model have 8 channels, and those of init_from=base 4"),
    ],
)
def test_encoders_of_another_kind_are_refused(weights, changes, message):
    with pytest.raises(ConfigError, match=message):
        tiled(weights, replace(LARGE, **changes))
