"""Published weights in our encoder and heads give the outputs of transformers."""

import pytest
import torch
import transformers
from torch.testing import assert_close

from framework.published.bert import BERT
from framework.published.pretrained import load_pretrained
from framework.published.rules import to_theirs
from framework.tasks.pretraining.head import build_pretraining_head
from framework.tasks.sequence_classification.head import build_sequence_classification_head
from framework.tasks.task import TaskModel
from tests.support.models import peers
from tests.support.models.loading import load_into

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
FAMILIES = ("bert", "roberta", "modernbert")
BASE = {"bert": "BertModel", "roberta": "RobertaModel", "modernbert": "ModernBertModel"}
# class, family, config
CLASSIFIERS = [
    ("BertForSequenceClassification", "bert", {}),
    ("RobertaForSequenceClassification", "roberta", {}),
    ("ModernBertForSequenceClassification", "modernbert", {"classifier_pooling": "cls"}),
    ("ModernBertForSequenceClassification", "modernbert", {"classifier_pooling": "mean"}),
]


def both_forms(family: str, lengths=peers.LENGTHS):
    ids = peers.sequences(lengths)
    token_types = peers.segments(ids) if family == "bert" else None
    return peers.pack(ids, token_types), peers.pad(ids, peers.CONFIGS[family].pad_token_id, token_types)


@pytest.mark.parametrize("config", [{}, {"hidden_act": "relu"}, {"hidden_act": "gelu_new"}])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_hidden_states_of_every_layer(family, config, tmp_path):
    if family == "modernbert" and config:
        config = {
            "hidden_activation": config["hidden_act"],
            "attention_bias": True,
            "mlp_bias": True,
            "norm_bias": True,
        }
    peer = peers.peer(BASE[family], family, **config)
    peer.save_pretrained(tmp_path)
    encoder = peers.encoder_of(load_pretrained(str(tmp_path)))
    batch, inputs = both_forms(family)
    expected = peer(**inputs, output_hidden_states=True).hidden_states
    ours = encoder.hidden_states(batch)
    assert len(ours) == len(expected) == 1 + peers.SHAPE["num_hidden_layers"]
    for mine, theirs in zip(ours, expected, strict=True):
        assert_close(mine, peers.unpadded(theirs, inputs), **TOLERANCE)


@torch.no_grad()
def test_modernbert_with_the_config_keys_of_published_folders(tmp_path):
    old = {"global_attn_every_n_layers": 2, "global_rope_theta": 5000.0, "local_rope_theta": 100.0}
    settings = peers.CONFIGS["modernbert"].to_dict()
    for name in ("layer_types", "rope_parameters"):
        settings.pop(name)
    peer = transformers.ModernBertModel(transformers.ModernBertConfig(**(settings | old))).eval()
    assert peer.config.rope_parameters["sliding_attention"]["rope_theta"] == 100.0
    peer.save_pretrained(tmp_path)
    encoder = peers.encoder_of(load_pretrained(str(tmp_path)))
    batch, inputs = both_forms("modernbert")
    assert_close(encoder(batch), peers.unpadded(peer(**inputs).last_hidden_state, inputs), **TOLERANCE)


def pretraining_model(folder, nsp):
    weights = load_pretrained(str(folder))
    encoder = peers.encoder_of(weights)
    model = TaskModel(encoder, build_pretraining_head(encoder, weights.config, nsp))
    return model, load_into(model, weights)


@pytest.mark.parametrize(
    ("class_name", "family", "config"),
    [
        ("BertForMaskedLM", "bert", {}),
        ("BertForMaskedLM", "bert", {"hidden_act": "relu"}),
        ("RobertaForMaskedLM", "roberta", {}),
        # Its head has GELU regardless.
        ("RobertaForMaskedLM", "roberta", {"hidden_act": "relu"}),
        ("ModernBertForMaskedLM", "modernbert", {}),
    ],
)
@torch.no_grad()
def test_logits_of_masked_language_modelling(class_name, family, config, tmp_path):
    peer = peers.peer(class_name, family, **config)
    peer.save_pretrained(tmp_path)
    model, new = pretraining_model(tmp_path, nsp=False)
    assert new == []
    batch, inputs = both_forms(family)
    expected = peers.unpadded(peer(**inputs).logits, inputs)
    assert_close(model(batch)["mlm"], expected, **TOLERANCE)


@torch.no_grad()
def test_logits_of_both_heads_of_bert(tmp_path):
    peer = peers.peer("BertForPreTraining", "bert")
    peer.save_pretrained(tmp_path)
    model, new = pretraining_model(tmp_path, nsp=True)
    assert new == []
    batch, inputs = both_forms("bert")
    expected = peer(**inputs)
    outputs = model(batch)
    assert_close(outputs["mlm"], peers.unpadded(expected.prediction_logits, inputs), **TOLERANCE)
    assert_close(outputs["nsp"], expected.seq_relationship_logits, **TOLERANCE)


@pytest.mark.parametrize(("class_name", "family", "config"), CLASSIFIERS)
@torch.no_grad()
def test_logits_of_sequence_classification(class_name, family, config, tmp_path):
    labels = {"id2label": dict(enumerate(peers.LABELS)), "label2id": {name: i for i, name in enumerate(peers.LABELS)}}
    peer = peers.peer(class_name, family, **config, **labels)
    peer.save_pretrained(tmp_path)
    weights = load_pretrained(str(tmp_path))
    assert weights.head_kind == "sequence_classification"
    pooling = config.get("classifier_pooling", "cls")
    assert weights.task_record == {"labels": list(peers.LABELS), "problem": "single_label", "pooling": pooling}
    encoder = peers.encoder_of(weights)
    head = build_sequence_classification_head(weights.config, 3, weights.task_record["pooling"])
    model = TaskModel(encoder, head)
    assert load_into(model, weights) == []
    batch, inputs = both_forms(family)
    assert_close(model(batch)["logits"], peer(**inputs).logits, **TOLERANCE)


def test_gradients_of_bert(tmp_path):
    peer = peers.peer("BertForPreTraining", "bert")
    peer.save_pretrained(tmp_path)
    model, _ = pretraining_model(tmp_path, nsp=True)
    batch, inputs = both_forms("bert")
    generator = torch.Generator().manual_seed(3)
    mlm_weights = torch.randn(batch.num_tokens, 99, generator=generator) / 100
    nsp_weights = torch.randn(batch.num_sequences, 2, generator=generator) / 100
    outputs = model(batch)
    ((outputs["mlm"] * mlm_weights).sum() + (outputs["nsp"] * nsp_weights).sum()).backward()
    expected = peer(**inputs)
    mlm = peers.unpadded(expected.prediction_logits, inputs)
    ((mlm * mlm_weights).sum() + (expected.seq_relationship_logits * nsp_weights).sum()).backward()

    config = model.encoder.config
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    encoder = {name.removeprefix("encoder."): grad for name, grad in ours.items() if name.startswith("encoder.")}
    head = {name.removeprefix("head."): grad for name, grad in ours.items() if name.startswith("head.")}
    renamed = to_theirs(BERT.encoder_rules(config), encoder, config.num_heads)
    (pretraining, *_) = BERT.classes(config)
    renamed |= to_theirs((*pretraining.base_rules, *pretraining.head_rules), head, config.num_heads)
    theirs = {name.removeprefix("bert."): parameter.grad for name, parameter in peer.named_parameters()}
    assert renamed.keys() == theirs.keys()
    for name, grad in theirs.items():
        assert grad.abs().max() > 1e-4 or name.endswith("key.bias"), name
        assert_close(renamed[name], grad, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")


@torch.no_grad()
def test_published_minilm_weights():
    folder = peers.minilm_folder()
    weights = load_pretrained(str(folder))
    assert weights.unused == ()
    assert weights.tokenizer_dir == folder
    assert weights.heads.keys() == {"pooler.dense.weight", "pooler.dense.bias"}
    peer = transformers.BertModel.from_pretrained(folder).eval()
    ids = peers.sequences((128, 9, 40), vocab_size=30522)
    token_types = peers.segments(ids)
    batch, inputs = peers.pack(ids, token_types), peers.pad(ids, 0, token_types)
    expected = peer(**inputs, output_hidden_states=True)
    encoder = peers.encoder_of(weights)
    for mine, theirs in zip(encoder.hidden_states(batch), expected.hidden_states, strict=True):
        assert_close(mine, peers.unpadded(theirs, inputs), **TOLERANCE)
    model = TaskModel(encoder, build_sequence_classification_head(weights.config, 2))
    assert load_into(model, weights) == ["head.classifier.weight", "head.classifier.bias"]
    pooled = model.head.pooler(encoder(batch)[batch.cu_seqlens[:-1]])
    assert_close(pooled, expected.pooler_output, **TOLERANCE)
