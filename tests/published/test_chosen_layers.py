"""Smaller encoders that start from some layers of a larger one."""

from dataclasses import replace

import pytest
import torch

from framework.errors import ConfigError
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.published.chosen_layers import with_layers
from framework.published.pretrained import PretrainedWeights, match_parameters
from framework.tasks.task import TaskModel

BERT = EncoderConfig(
    family="bert",
    vocab_size=11,
    hidden_size=8,
    num_layers=4,
    num_heads=2,
    intermediate_size=6,
    max_position_embeddings=16,
)
MODERN = replace(
    BERT,
    family="modernbert",
    type_vocab_size=0,
    position_encoding="rotary",
    norm_placement="pre",
    input_norm="embeddings",
    local_attention_window=4,
    global_attention_every=2,
)


def weights_of(config: EncoderConfig) -> PretrainedWeights:
    torch.manual_seed(0)
    encoder = {name: torch.randn(each.shape) for name, each in TransformerEncoder(config).named_parameters()}
    return PretrainedWeights("large", config, encoder)


def test_each_layer_starts_from_its_layer_and_all_else_stays() -> None:
    large = weights_of(BERT)
    small = with_layers(large, (4, 2))
    model = TaskModel(TransformerEncoder(replace(BERT, num_layers=2)), torch.nn.Identity())
    values, new = match_parameters(model, small)
    assert not new and small.config.num_layers == 2 and small.changes == ("layers 4, 2 of 4",)
    for name, value in values.items():
        source = name.removeprefix("encoder.").replace("layers.1.", "layers.one.").replace("layers.0.", "layers.3.")
        assert torch.equal(value, large.encoder[source.replace("layers.one.", "layers.1.")])


@pytest.mark.parametrize(
    ("config", "layers", "message"),
    [
        (BERT, (1, 5), r"`init_layers` names layer 5, but init_from=large has layers 1 to 4"),
        (BERT, (), "`init_layers` is empty"),
        (MODERN, (2, 3), r"are not alike: layers\.0\.attention_norm\.\w+ exists in one place only"),
        (MODERN, (1, 3), "layer 3 of init_from=large attends to another window"),
    ],
)
def test_impossible_choices_are_rejected(config: EncoderConfig, layers: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_layers(weights_of(config), layers)
