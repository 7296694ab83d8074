"""The trained parameters: patterns of names, and the messages for wrong patterns."""

import re

import pytest
import torch
from torch import nn

from framework.batch import PackedBatch
from framework.errors import ConfigError
from framework.models.encoder import TransformerEncoder
from framework.models.freezing import freeze, freeze_others
from framework.tasks.task import TaskModel
from tests.support.models.tiny import make_batch, tiny_config


class FirstTokenHead(nn.Module):
    """Head with two scores from the first token of each sequence."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.pair = nn.Linear(hidden_size, 2)

    def forward(self, hidden_states: torch.Tensor, batch: PackedBatch, dropout_keys: torch.Tensor | None) -> dict:
        return {"pair": self.pair(hidden_states[batch.cu_seqlens[:-1].long()])}


def build(modern: bool = False) -> TaskModel:
    config = tiny_config(modern)
    return TaskModel(TransformerEncoder(config), FirstTokenHead(config.hidden_size))


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_only_matching_parameters_are_frozen():
    model = build()
    everything = trained(model)
    freeze(model, ["encoder.embeddings.*", "encoder.layers.0.attention.*"], "trainer.freeze")
    gone = everything - trained(model)
    assert gone == {
        "encoder.embeddings.word_embeddings.weight",
        "encoder.embeddings.position_embeddings.weight",
        "encoder.embeddings.token_type_embeddings.weight",
        "encoder.embeddings.norm.weight",
        "encoder.embeddings.norm.bias",
        "encoder.layers.0.attention.qkv.weight",
        "encoder.layers.0.attention.qkv.bias",
        "encoder.layers.0.attention.output.weight",
        "encoder.layers.0.attention.output.bias",
    }


def test_freezing_all_others_keeps_matching_parameters_trained():
    model = build()
    freeze_others(model, ["head.*", "encoder.layers.1.attention_norm.*"], "adapter.train_also")
    assert trained(model) == {
        "head.pair.weight",
        "head.pair.bias",
        "encoder.layers.1.attention_norm.weight",
        "encoder.layers.1.attention_norm.bias",
    }


def test_a_pattern_that_matches_nothing_is_an_error_with_similar_names():
    with pytest.raises(ConfigError) as caught:
        freeze(build(), ["encoder.*", "encoder.layers.0.atention.qkv.weight"], "trainer.freeze")
    assert "`trainer.freeze` has the pattern 'encoder.layers.0.atention.qkv.weight'" in str(caught.value)
    assert "encoder.layers.0.attention.qkv.weight" in str(caught.value)


def test_freezing_everything_is_an_error():
    with pytest.raises(ConfigError, match=re.escape("`trainer.freeze` is ['encoder.*', 'head.*'], which freezes all")):
        freeze(build(), ["encoder.*", "head.*"], "trainer.freeze")


def graph_tensors(model: TaskModel) -> int:
    """Returns the number of tensors that the graph of a forward pass keeps."""
    count = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return tensor

    keys = torch.arange(make_batch(0, [0, 1]).input_ids.shape[0])
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(make_batch(0, [0, 1]), keys)
    return count


@pytest.mark.parametrize("modern", [False, True])
def test_a_frozen_encoder_builds_no_graph(modern: bool):
    whole = graph_tensors(build(modern))
    model = build(modern)
    freeze(model, ["encoder.*"], "trainer.freeze")
    # Only the input of the head's linear layer.
    assert graph_tensors(model) == 1 < whole
