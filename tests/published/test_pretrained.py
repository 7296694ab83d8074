"""Published weights enter a model completely or not at all: names, regrouped rows, shapes, arithmetic."""

import pytest
import torch

from framework.errors import CheckpointError
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.published.modernbert import MODERNBERT
from framework.published.pretrained import load_pretrained, match_parameters, weights_from_state
from framework.published.rules import join_qkv, split_qkv
from framework.tasks.pretraining.head import build_pretraining_head
from framework.tasks.sequence_classification.head import build_sequence_classification_head
from framework.tasks.task import TaskModel
from tests.support.models import peers
from tests.support.models.loading import load_into


def test_rows_of_qkv_contain_whole_heads():
    query, key, value = (torch.arange(4)[:, None] + start for start in (0, 10, 20))
    (joined,) = join_qkv([query, key, value], num_heads=2)
    assert joined.flatten().tolist() == [0, 1, 10, 11, 20, 21, 2, 3, 12, 13, 22, 23]
    assert all(
        torch.equal(part, whole) for part, whole in zip(split_qkv([joined], 2), (query, key, value), strict=True)
    )


def test_rows_of_wqkv_and_wi_of_modernbert():
    config = EncoderConfig(
        family="modernbert", vocab_size=9, hidden_size=4, num_layers=1, num_heads=2, intermediate_size=2,
        max_position_embeddings=8, type_vocab_size=0, position_encoding="rotary", norm_placement="pre", gated=True,
        bias=False, norm_bias=False,
    )  # fmt: skip
    rules = {rule.theirs[0]: rule for rule in MODERNBERT.encoder_rules(config)}
    rows = torch.tensor([0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23])[:, None]
    rule = rules["layers.0.attn.Wqkv.weight"]
    (ours,) = rule.to_ours([rows], 2)
    assert ours.flatten().tolist() == [0, 1, 10, 11, 20, 21, 2, 3, 12, 13, 22, 23]
    assert torch.equal(rule.to_theirs([ours], 2)[0], rows)
    rule = rules["layers.0.mlp.Wi.weight"]
    assert rule.ours == ("layers.0.feed_forward.gate.weight", "layers.0.feed_forward.up.weight")
    assert [half.flatten().tolist() for half in rule.to_ours([torch.arange(4)[:, None]], 2)] == [[0, 1], [2, 3]]


def test_missing_pooler_and_heads(folder, weights):
    peers.edit_tensors(
        folder, lambda tensors: {n: t for n, t in tensors.items() if "pooler" not in n and "cls." not in n}
    )
    again = load_pretrained(str(folder))
    assert again.heads == {}
    encoder = TransformerEncoder(again.config)
    model = TaskModel(encoder, build_pretraining_head(encoder, again.config, nsp=True))
    head_names = ["mlm.dense.weight", "mlm.dense.bias", "mlm.norm.weight", "mlm.norm.bias", "mlm.decoder.bias"]
    head_names += ["pooler.dense.weight", "pooler.dense.bias", "nsp.weight", "nsp.bias"]
    assert load_into(model, again) == [f"head.{name}" for name in head_names]
    assert torch.equal(model.encoder.layers[3].attention.qkv.weight, weights.encoder["layers.3.attention.qkv.weight"])


def test_modernbert_classifier_starts_from_the_transform_of_the_mlm_head(tmp_path):
    peer = peers.peer("ModernBertForMaskedLM", "modernbert")
    peer.save_pretrained(tmp_path)
    weights = load_pretrained(str(tmp_path))
    model = TaskModel(TransformerEncoder(weights.config), build_sequence_classification_head(weights.config, 2))
    assert load_into(model, weights) == ["head.classifier.weight", "head.classifier.bias"]
    assert torch.equal(model.head.transform.dense.weight, peer.head.dense.weight)


def model_like(config, **changes):
    settings = {name: getattr(config, name) for name in config.__dataclass_fields__}
    encoder = TransformerEncoder(EncoderConfig(**(settings | changes)))
    return TaskModel(encoder, build_pretraining_head(encoder, encoder.config, nsp=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 8}, r"num_heads=4, but this model has model.num_heads=8"),
        ({"norm_placement": "pre"}, "norm_placement='post', but this model has model.norm_placement='pre'"),
        ({"norm_eps": 1e-5}, "norm_eps=1e-12"),
        ({"num_layers": 3}, "has encoder.layers.3.*, which this model lacks"),
        ({"num_layers": 5}, "has no encoder.layers.4.*which this model requires"),
        ({"intermediate_size": 32}, r"shape \(64, 32\), but this model requires \(32, 32\)"),
        ({"vocab_size": 98}, r"shape \(99, 32\), but this model requires \(98, 32\)"),
        ({"vocab_size": 99 + 128}, r"shape \(99, 32\), but this model requires \(227, 32\)"),
        ({"max_position_embeddings": 65}, r"shape \(64, 32\), but this model requires \(65, 32\)"),
    ],
)
def test_a_model_that_the_weights_do_not_fit(changes, message, weights):
    model = model_like(weights.config, **changes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_into(model, weights)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_padded_vocabulary(weights):
    model = model_like(weights.config, vocab_size=128)
    assert load_into(model, weights) == []
    table = model.encoder.embeddings.word_embeddings.weight
    assert torch.equal(table[:99], weights.encoder["embeddings.word_embeddings.weight"])
    assert torch.equal(table[99:], torch.zeros(29, 32))
    assert torch.equal(model.head.mlm.decoder.bias[99:], torch.zeros(29))
    assert model.head.mlm.decoder.weight is table


def test_a_model_on_meta_is_matched_with_full_values(weights):
    with torch.device("meta"):
        model = model_like(weights.config)
    values, new = match_parameters(model, weights)
    assert torch.equal(values["head.nsp.weight"], weights.heads["nsp.weight"])
    assert values.keys() == dict(model.named_parameters()).keys() and not new


def test_weights_of_a_run(weights):
    model = model_like(weights.config)
    load_into(model, weights)
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    again = weights_from_state("runs/a", weights.config, state, "pretraining", {"k": 1})
    assert again.task_record == {"k": 1}
    other = model_like(weights.config)
    assert load_into(other, again) == []
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(CheckpointError, match=r"runs/a lacks 1 of"):
        weights_from_state(
            "runs/a", weights.config, {n: t for n, t in state.items() if "layers.0.attention.output.bias" not in n}
        )


def test_classifier_with_other_labels(tmp_path):
    peers.peer("BertForSequenceClassification", "bert", num_labels=2).save_pretrained(tmp_path)
    weights = load_pretrained(str(tmp_path))
    assert weights.task_record["labels"] == ["LABEL_0", "LABEL_1"]
    model = TaskModel(TransformerEncoder(weights.config), build_sequence_classification_head(weights.config, 5))
    with pytest.raises(
        CheckpointError, match=r"head.classifier.weight of shape \(2, 32\), but this model requires \(5, 32\)"
    ):
        load_into(model, weights)


def test_the_peers_have_no_trivial_parameters():
    """The parity tests prove little if a bias were zero or a norm one."""
    for family, class_name in (("bert", "BertForPreTraining"), ("modernbert", "ModernBertForMaskedLM")):
        for name, parameter in peers.peer(class_name, family).named_parameters():
            assert parameter.std() > 0.05, name
