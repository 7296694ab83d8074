"""Configs: the rejected ones, and presets compared with published numbers."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from framework.errors import ConfigError
from framework.models.accounting import count_parameters, training_flops
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from tests.support.models.shapes import BERT, MODERN

CONF = Path(__file__).parents[2] / "conf" / "model"
# from_weights describes no shape: the published weights provide theirs.
PRESETS = sorted(path for path in CONF.glob("*.yaml") if path.stem != "from_weights")


def preset(name: str) -> EncoderConfig:
    return EncoderConfig(**yaml.safe_load((CONF / f"{name}.yaml").read_text()))


def count_on_meta(config: EncoderConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in TransformerEncoder(config).parameters())


def pooler(config: EncoderConfig) -> int:
    return config.hidden_size * (config.hidden_size + 1)


def mlm_head(config: EncoderConfig) -> int:
    """Counts a dense layer with bias, a norm with bias, and a bias per word (the decoder is tied)."""
    return config.hidden_size * (config.hidden_size + 1) + 2 * config.hidden_size + config.vocab_size


def test_there_are_seventeen_presets() -> None:
    assert len(PRESETS) == 17


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_builds_has_a_source_and_is_counted_by_formula(path: Path) -> None:
    config = preset(path.stem)
    assert count_parameters(config).total == count_on_meta(config)
    header = path.read_text().split("family:")[0]
    assert "arXiv:" in header and "section" in header


# bert_*: table 1 of Turc et al. 2019 and the README of google-research/bert, in millions, pre-training heads included.
@pytest.mark.parametrize(("name", "millions"), [("tiny", 4.4), ("mini", 11.3), ("small", 29.1), ("base", 110.1)])
def test_sizes_of_bert_are_the_published_ones(name: str, millions: float) -> None:
    config = preset(f"bert_{name}")
    assert round((count_on_meta(config) + pooler(config) + mlm_head(config)) / 1e6, 1) == millions


# Number of elements of the published safetensors of the base model (with the pooler where the class has one), and for
# ModernBERT the millions of its paper.
@pytest.mark.parametrize(
    ("name", "published", "digits"),
    [
        ("bert_base", 109_482_240, 0),
        ("bert_large", 335_141_888, 0),
        ("minilm_l6", 22_713_216, 0),
        ("roberta_base", 124_645_632, 0),
        ("distilbert_base", 66_362_880, 0),
        ("mpnet_base", 109_486_464, 0),
        ("deberta_v3_base", 183_831_552, 0),
        ("electra_small", 14_000_000, -6),
        ("nomic_bert_base", 137_000_000, -6),
        ("modernbert_base", 149_000_000, -6),
        ("modernbert_large", 395_000_000, -6),
    ],
)
def test_other_sizes_are_the_published_ones(name: str, published: int, digits: int) -> None:
    config = preset(name)
    extra = pooler(config) if config.family in ("bert", "roberta", "mpnet", "electra") else 0
    assert round(count_on_meta(config) + extra, digits) == published


def test_modernbert_has_a_global_layer_every_third() -> None:
    config = preset("modernbert_base")
    windows = [config.attention_window(index) for index in range(config.num_layers)]
    assert windows[:7] == [None, 128, 128, None, 128, 128, None]
    assert sum(window is None for window in windows) == 8


def test_roberta_uses_512_positions_of_its_514() -> None:
    assert preset("roberta_base").max_sequence_length == 512


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"num_heads": 5}, "num_heads is 5, which does not divide model.hidden_size 32"),
    ({"family": "gpt"}, "family is 'gpt', which is unknown. Choose one of bert, roberta, xlm-roberta"),
    ({"norm_placement": "middle"}, "norm_placement is 'middle', which is unknown"),
    ({"input_norm": "both"}, "input_norm is 'both', but model.norm_placement is post"),
    ({"activation": "swish"}, "activation is 'swish', which is unknown"),
    ({"vocab_size": 0}, "vocab_size is 0. It must be at least 1"),
    ({"num_layers": -1}, "num_layers is -1. It must be at least 1"),
    ({"type_vocab_size": -1}, "type_vocab_size is -1. It must not be negative"),
    ({"hidden_dropout": 1.0}, "hidden_dropout is 1.0. It must be a probability below 1"),
    ({"embedding_dropout": -0.1}, "embedding_dropout is -0.1. It must be a probability"),
    ({"attention_dropout": 0.1}, "attention_dropout is 0.1. Packed attention"),
    ({"norm_eps": 0.0}, "norm_eps is 0.0. It must be greater than 0"),
    ({"initializer_range": -1.0}, "initializer_range is -1.0. It must not be negative"),
    ({"local_attention_window": 5}, "local_attention_window is 5. It must be an even number"),
    ({"global_attention_every": 0}, "global_attention_every is 0. It must be at least 1"),
    ({"embedding_size": 0}, "embedding_size is 0. It must be a width from 1"),
    ({"norm": "rms"}, "norm is 'rms' and model.norm_bias is True. An RMS norm has no bias"),
    ({"relative_bias": "bucketed", "position_encoding": "rotary"}, "A relative bias requires attention to the whole"),
    ({"relative_bias": "bucketed", "relative_buckets": 6}, "relative_buckets is 6 .*must be a multiple of 4"),
    ({"relative_bias": "disentangled", "relative_distance": 8}, "the distance must exceed a quarter"),
    ({"position_offset": 64}, "position_offset is 64. It must be smaller"),
    ({"position_encoding": "rotary", "num_heads": 32}, "Rotary positions require an even head size"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_impossible_configs_are_rejected_with_value_and_rule(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(BERT, **change)


@pytest.mark.parametrize(
    "change",
    [{}, {"gated": True}, {"bias": False}, {"norm_bias": False}, {"norm_placement": "pre"}, {"type_vocab_size": 0}],
    ids=str,
)
def test_parameters_are_counted_by_formula(change: dict[str, Any]) -> None:
    for base in (BERT, MODERN):
        config = dataclasses.replace(base, **change)
        assert count_parameters(config).total == count_on_meta(config)


@pytest.mark.parametrize("input_norm", ["embeddings", "first_layer", "both"])
@pytest.mark.parametrize("patch_positions", ["factorised", "grid"])
def test_parameters_of_encoders_of_pictures_are_counted_by_formula(input_norm: str, patch_positions: str) -> None:
    pictures = {"patch_size": 4, "patch_grid": 5, "patch_positions": patch_positions, "input_norm": input_norm}
    config = dataclasses.replace(MODERN, **pictures)
    assert count_parameters(config).total == count_on_meta(config)


def test_flops_equal_those_of_the_matrix_products() -> None:
    """The formula is compared with torch's count over forward and backward of two sequences of 8."""
    from torch.utils.flop_counter import FlopCounterMode

    from tests.support.models.packs import make_batch

    for config in (BERT, MODERN):
        config = dataclasses.replace(config, local_attention_window=None)
        model, batch = TransformerEncoder(config), make_batch([8, 8])
        with FlopCounterMode(display=False) as counter:
            model.encode(model.embed(batch), batch).sum().backward()
        assert counter.get_total_flops() == training_flops(config, [8, 8])


def test_flops_count_squared_lengths_windows_and_predicted_tokens() -> None:
    """Numbers by hand, for sequences of 10 and 4 tokens."""
    # 3 layers of 4 x 32 x 32 + 2 x 32 x 48 weights for 14 tokens, 116 pairs in each layer.
    assert training_flops(BERT, [10, 4]) == 6 * 21_504 * 14 + 12 * 32 * 3 * 116 == 1_939_968
    # Two tokens pass 32 x 32 and 32 x 50.
    assert training_flops(BERT, [10, 4], 2) == 1_939_968 + 6 * 2 * (1_024 + 1_600)
    # 4 gated layers. Two see all 116 pairs, two only 5 tokens from each: 10 x 5 + 4 x 4 pairs.
    assert training_flops(MODERN, [10, 4]) == 6 * 34_816 * 14 + 12 * 32 * 2 * (116 + 66) == 3_064_320
    # The same 14 tokens in equal lengths attend to fewer pairs.
    assert training_flops(BERT, [7, 7]) == 6 * 21_504 * 14 + 12 * 32 * 3 * 98
    assert training_flops(BERT, []) == 0
