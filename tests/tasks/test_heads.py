"""Pooling and heads compared with loops over sequences; tests of published weights cover parity with transformers."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from framework.errors import ConfigError
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.nn.dropout import dropout_base, token_keys
from framework.tasks.pooling import pool_first, pool_mean
from framework.tasks.pretraining.head import build_pretraining_head
from framework.tasks.question_answering.head import build_question_answering_head
from framework.tasks.sequence_classification.head import build_sequence_classification_head
from framework.tasks.task import TaskModel
from tests.support.models import peers

LENGTHS = (3, 1, 5)
CONFIG = EncoderConfig(
    family="bert",
    vocab_size=40,
    hidden_size=8,
    num_layers=1,
    num_heads=2,
    intermediate_size=16,
    max_position_embeddings=16,
)


def test_pooling_against_a_loop():
    batch = peers.pack(peers.sequences(LENGTHS))
    hidden_states = torch.randn(9, 4, requires_grad=True)
    parts = hidden_states.split(LENGTHS)
    assert_close(pool_first(hidden_states, batch), torch.stack([part[0] for part in parts]))
    expected = torch.stack([part.mean(0) for part in parts])
    assert_close(pool_mean(hidden_states, batch), expected)
    (gradient,) = torch.autograd.grad(pool_mean(hidden_states, batch).square().sum(), hidden_states)
    assert_close(gradient, torch.autograd.grad(expected.square().sum(), hidden_states)[0])


def test_mean_is_computed_in_fp32():
    batch = peers.pack(peers.sequences((300,), vocab_size=40))
    assert pool_mean(torch.full((300, 1), 1.0078125, dtype=torch.bfloat16), batch).tolist() == [[1.0078125]]


def test_the_decoder_shares_the_word_embeddings():
    encoder = TransformerEncoder(CONFIG)
    head = build_pretraining_head(encoder, CONFIG, nsp=False)
    assert head.mlm.decoder.weight is encoder.embeddings.word_embeddings.weight
    names = {name for name, _ in head.named_parameters()}
    assert not any(name.startswith(("nsp", "pooler")) for name in names)


def test_words_are_scored_only_at_the_targets():
    encoder = TransformerEncoder(CONFIG)
    head = build_pretraining_head(encoder, CONFIG, nsp=True)
    batch = peers.pack(peers.sequences(LENGTHS, vocab_size=40))
    batch.targets["mlm_positions"] = torch.tensor([7, 2])
    hidden_states = torch.randn(9, 8)
    outputs = head(hidden_states, batch)
    assert outputs["mlm"].shape == (2, 40)
    for row, position in zip(outputs["mlm"], (7, 2), strict=True):
        x = head.mlm.norm(torch.nn.functional.gelu(head.mlm.dense(hidden_states[position])))
        assert_close(row, encoder.embeddings.word_embeddings.weight @ x + head.mlm.decoder.bias)
    firsts = torch.stack([hidden_states[0], hidden_states[3], hidden_states[4]])
    assert_close(outputs["nsp"], head.nsp(torch.tanh(head.pooler.dense(firsts))))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_dropout_of_the_classifier_follows_the_sequence(pooling):
    head = build_sequence_classification_head(CONFIG, 3, pooling, classifier_dropout=0.5)
    ids = peers.sequences(LENGTHS, vocab_size=40)
    batch, alone = peers.pack(ids), peers.pack(ids[1:2])
    alone.sequence_ids.fill_(1)
    hidden_states = torch.randn(9, 8)
    dropped = head(hidden_states, batch, token_keys(dropout_base(1, 2, 0), batch))["logits"]
    assert not torch.allclose(dropped, head(hidden_states, batch)["logits"])
    assert_close(head(hidden_states[3:4], alone, token_keys(dropout_base(1, 2, 0), alone))["logits"], dropped[1:2])
    assert not torch.allclose(head(hidden_states, batch, token_keys(dropout_base(1, 3, 0), batch))["logits"], dropped)


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_without_a_projection_the_head_is_linear_in_the_pooled_hidden_state(family):
    head = build_sequence_classification_head(replace(CONFIG, family=family), 3, "mean", projection="none")
    assert {name for name, _ in head.named_parameters()} == {"classifier.weight", "classifier.bias"}
    batch = peers.pack(peers.sequences(LENGTHS, vocab_size=40))
    hidden_states = torch.randn(9, 8)
    means = torch.stack([part.mean(0) for part in hidden_states.split(LENGTHS)])
    expected = means @ head.classifier.weight.T + head.classifier.bias
    assert_close(head(hidden_states, batch)["logits"], expected)


def test_scores_are_not_rounded_to_bf16():
    head = build_sequence_classification_head(CONFIG, 2, projection="none")
    batch = peers.pack(peers.sequences(LENGTHS, vocab_size=40))
    hidden_states = torch.randn(9, 8)
    firsts, weight, bias = (
        tensor.bfloat16().double()
        for tensor in (hidden_states[[0, 3, 4]], head.classifier.weight, head.classifier.bias)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = head(hidden_states, batch)["logits"]
    assert_close(logits, (firsts @ weight.T + bias).float(), atol=1e-6, rtol=1e-6)


def test_unknown_projection():
    with pytest.raises(ConfigError, match=r"projection is 'mlp', which is unknown\. Choose one of family, none"):
        build_sequence_classification_head(CONFIG, 2, projection="mlp")


def test_unknown_pooling():
    with pytest.raises(ConfigError, match=r"pooling is 'max', which is unknown\. Choose one of cls, mean"):
        build_sequence_classification_head(CONFIG, 2, "max")


def test_outputs_are_no_views_because_fsdp2_puts_hooks_on_them():
    encoder = TransformerEncoder(CONFIG)
    outputs = TaskModel(encoder, build_question_answering_head(CONFIG))(
        peers.pack(peers.sequences(LENGTHS, vocab_size=40))
    )
    assert outputs and all(output.requires_grad and output._base is None for output in outputs.values())
