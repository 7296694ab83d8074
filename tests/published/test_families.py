"""Every family: published weights give the outputs and gradients of transformers, and exports load there unchanged."""

import json

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.testing import assert_close

from framework.batch import PackedBatch
from framework.exports.huggingface import export_huggingface
from framework.models.accounting import count_parameters
from framework.models.config import FAMILIES as FAMILY_NAMES
from framework.published.families import FAMILIES
from framework.published.pretrained import PretrainedWeights, load_pretrained
from framework.published.rules import part_of, to_theirs
from framework.tasks.pretraining.head import build_pretraining_head
from framework.tasks.sequence_classification.head import build_sequence_classification_head
from framework.tasks.task import TaskModel
from tests.support.exports.small_exports import load_peer, make_tokenizer
from tests.support.models import peers
from tests.support.models.heads import ChoiceHead, SpanHead, TokenHead
from tests.support.models.loading import load_into

TOLERANCE = {"atol": 2e-5, "rtol": 2e-5}
NEW = ("xlm-roberta", "camembert", "distilbert", "electra", "mpnet", "deberta-v2", "nomic_bert", "eurobert")
"""Families that test_pretrained_parity, test_heads_parity and the tests of exports do not cover."""

NAMED = {"id2label": dict(enumerate(peers.LABELS)), "label2id": {name: i for i, name in enumerate(peers.LABELS)}}
AUTO = {
    "pretraining": transformers.AutoModelForMaskedLM,
    "sequence_classification": transformers.AutoModelForSequenceClassification,
    "token_classification": transformers.AutoModelForTokenClassification,
    "question_answering": transformers.AutoModelForQuestionAnswering,
    "multiple_choice": transformers.AutoModelForMultipleChoice,
}


def both_forms(family: str, lengths: tuple[int, ...] = peers.LENGTHS) -> tuple[PackedBatch, dict[str, Tensor]]:
    config = peers.CONFIGS[family]
    ids = peers.sequences(lengths)
    token_types = peers.segments(ids) if getattr(config, "type_vocab_size", 0) > 1 else None
    return peers.pack(ids, token_types), peers.pad(ids, config.pad_token_id, token_types)


def class_prefix(family: str) -> str:
    return FAMILIES[family].class_prefix


def model_for(kind: str, weights: PretrainedWeights) -> TaskModel:
    encoder, config = peers.encoder_of(weights), weights.config
    heads: dict[str, nn.Module] = {
        "pretraining": build_pretraining_head(encoder, config, nsp=False),
        "sequence_classification": build_sequence_classification_head(
            config, 3, weights.task_record.get("pooling", "cls")
        ),
        "token_classification": TokenHead(config, 3),
        "question_answering": SpanHead(config),
        "multiple_choice": ChoiceHead(config),
    }
    model = TaskModel(encoder, heads[kind])
    assert load_into(model, weights) == []
    return model


def our_scores(kind: str, model: TaskModel, batch: PackedBatch) -> Tensor:
    outputs = model(batch)
    scores = outputs["mlm" if kind == "pretraining" else "logits"]
    return scores.view(2, 3) if kind == "multiple_choice" else scores


def their_scores(kind: str, peer: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    if kind == "multiple_choice":
        return peer(**{name: tensor.view(2, 3, -1) for name, tensor in inputs.items()}).logits
    outputs = peer(**inputs)
    if kind == "sequence_classification":
        return outputs.logits
    if kind == "question_answering":
        scores = torch.stack((outputs.start_logits, outputs.end_logits), dim=-1)
        return peers.unpadded(scores, inputs)
    return peers.unpadded(outputs.logits, inputs)


NOMIC_CONFIG = {
    "model_type": "nomic_bert",
    "n_embd": 32,
    "n_layer": 4,
    "n_head": 4,
    "n_inner": 48,
    "n_positions": 64,
    "layer_norm_epsilon": 1e-12,
    "resid_pdrop": 0.0,
    "rotary_emb_base": 1000,
    "vocab_size": 99,
    "type_vocab_size": 2,
    "activation_function": "swiglu",
    "prenorm": False,
    "rotary_emb_fraction": 1.0,
}
CASES = [
    (family, kind)
    for family in NEW
    for kind, auto in AUTO.items()
    if type(peers.CONFIGS[family]) in auto._model_mapping
]


def test_every_family_has_a_description():
    assert tuple(FAMILIES) == FAMILY_NAMES
    # NeoBERT has no class in transformers; towers of pictures have tests of their own.
    assert set(peers.CONFIGS) == set(FAMILIES) - {"neobert", "vit", "clip", "siglip"}


@pytest.mark.parametrize("family", NEW)
@torch.no_grad()
def test_hidden_states_of_every_layer(family, tmp_path):
    peer = peers.peer(class_prefix(family) + "Model", family)
    peer.save_pretrained(tmp_path)
    weights = load_pretrained(str(tmp_path))
    assert weights.config.family == family
    assert {name for name in weights.unused if not name.startswith("pooler")} == set()
    encoder = peers.encoder_of(weights)
    assert count_parameters(weights.config).total == sum(each.numel() for each in encoder.parameters())
    batch, inputs = both_forms(family)
    expected = peer(**inputs, output_hidden_states=True).hidden_states
    ours = encoder.hidden_states(batch)
    assert len(ours) == len(expected)
    for mine, theirs in zip(ours, expected, strict=True):
        assert_close(mine, peers.unpadded(theirs, inputs), **TOLERANCE)
    assert_close(encoder(batch), ours[-1])


@pytest.mark.parametrize(("family", "kind"), CASES)
@torch.no_grad()
def test_heads_are_read_and_exported_with_equal_scores(family, kind, tmp_path):
    suffix = AUTO[kind]._model_mapping[type(peers.CONFIGS[family])].__name__.removeprefix(class_prefix(family))
    has_labels = kind in ("sequence_classification", "token_classification")
    peer = peers.peer(class_prefix(family) + suffix, family, **(NAMED if has_labels else {}))
    peer.save_pretrained(tmp_path / "published")
    weights = load_pretrained(str(tmp_path / "published"))
    assert (weights.head_kind, weights.unused) == (kind, ())
    model = model_for(kind, weights)
    batch, inputs = both_forms(family, (5, 50, 1, 23, 9, 12))
    expected = their_scores(kind, peer, inputs)
    assert_close(our_scores(kind, model, batch), expected, **TOLERANCE)

    (tmp_path / "tokenizer").mkdir()
    tokenizer = make_tokenizer(tmp_path / "tokenizer", weights.config.pad_token_id)
    folder, record = tmp_path / "export", dict(weights.task_record)
    export_huggingface(folder, weights.config, model.state_dict(), kind, tokenizer, record)
    again, report = load_peer(AUTO[kind], folder)
    assert (type(again), report) == (type(peer), {})
    assert_close(their_scores(kind, again, inputs), expected, rtol=1e-6, atol=1e-6)
    assert peers.same(load_pretrained(str(folder)), weights)
    # The class alone, without the record of Cloze, describes the same encoder.
    (folder / "cloze.json").unlink()
    config = load_pretrained(str(folder)).config
    assert config == weights.config


@pytest.mark.parametrize("family", NEW)
def test_gradients(family, tmp_path):
    # A key that several queries share has the sum of the gradients of its copies.
    settings = NAMED | ({"num_key_value_heads": 4} if family == "eurobert" else {})
    peer = peers.peer(class_prefix(family) + "ForTokenClassification", family, **settings)
    peer.save_pretrained(tmp_path)
    model = model_for("token_classification", load_pretrained(str(tmp_path)))
    batch, inputs = both_forms(family)
    weights = torch.randn(batch.num_tokens, 3, generator=torch.Generator().manual_seed(3)) / 10
    (model(batch)["logits"] * weights).sum().backward()
    (peers.unpadded(peer(**inputs).logits, inputs) * weights).sum().backward()
    config, description = model.encoder.config, FAMILIES[family]
    ours = part_of({name: value.grad for name, value in model.named_parameters()}, "encoder.")
    renamed = to_theirs(description.encoder_rules(config), ours, config.num_heads)
    theirs = part_of({name: value.grad for name, value in peer.named_parameters()}, description.prefix)
    assert renamed.keys() == theirs.keys()
    for name, grad in theirs.items():
        assert grad.abs().max() > 1e-4 or ".k" in name, name
        assert_close(renamed[name], grad, **TOLERANCE, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("family", [family for family in NEW if family != "eurobert"])  # its class has this pooling
@torch.no_grad()
def test_a_mean_pooled_classifier_is_exported_with_a_class_of_our_own(family, tmp_path):
    peers.peer(class_prefix(family) + "Model", family).save_pretrained(tmp_path / "published")
    weights = load_pretrained(str(tmp_path / "published"))
    head = build_sequence_classification_head(weights.config, 3, "mean")
    model = TaskModel(peers.encoder_of(weights), head).eval()
    (tmp_path / "tokenizer").mkdir()
    tokenizer = make_tokenizer(tmp_path / "tokenizer", weights.config.pad_token_id)
    record = {"pooling": "mean", "labels": list(peers.LABELS)}
    export_huggingface(
        tmp_path / "export", weights.config, model.state_dict(), "sequence_classification", tokenizer, record
    )
    again, report = load_peer(transformers.AutoModelForSequenceClassification, tmp_path / "export")
    assert (type(again).__name__, report) == ("ClozeForSequenceClassification", {})
    batch, inputs = both_forms(family)
    assert_close(again(**inputs).logits, model(batch)["logits"], **TOLERANCE)


@torch.no_grad()
def test_late_pooling_of_eurobert_is_left_out(tmp_path):
    peer = peers.peer("EuroBertForSequenceClassification", "eurobert", classifier_pooling="late", **NAMED)
    peer.save_pretrained(tmp_path)
    weights = load_pretrained(str(tmp_path))
    assert (weights.head_kind, dict(weights.heads)) == (None, {})
    assert set(weights.unused) == {"dense.weight", "dense.bias", "classifier.weight", "classifier.bias"}


@torch.no_grad()
def test_the_first_layout_of_nomic_bert(tmp_path):
    peer = peers.peer("NomicBertModel", "nomic_bert")
    peer.save_pretrained(tmp_path)
    expected = load_pretrained(str(tmp_path))

    def with_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert "encoder.layers.0.attn.Wqkv.weight" in tensors  # transformers writes this layout, and reads both
        return {f"bert.{name}": tensor for name, tensor in tensors.items()}

    peers.edit_tensors(tmp_path, with_prefix)
    weights = load_pretrained(str(tmp_path))
    assert peers.same(weights, expected) and weights.unused == ()
    (tmp_path / "config.json").write_text(json.dumps(NOMIC_CONFIG))
    assert peers.same(load_pretrained(str(tmp_path)), expected)


@torch.no_grad()
def test_the_discriminator_of_electra(tmp_path):
    peer = peers.peer("ElectraForPreTraining", "electra")
    peer.save_pretrained(tmp_path / "published")
    weights = load_pretrained(str(tmp_path / "published"))
    assert (weights.head_kind, weights.unused) == ("replaced_tokens", ())
    assert set(weights.heads) == {
        f"discriminator.{layer}.{kind}" for layer in ("dense", "scores") for kind in ("weight", "bias")
    }
    state = {f"encoder.{name}": tensor for name, tensor in weights.encoder.items()}
    state |= {f"head.{name}": tensor for name, tensor in weights.heads.items()}
    (tmp_path / "tokenizer").mkdir()
    tokenizer = make_tokenizer(tmp_path / "tokenizer", 0)
    export_huggingface(tmp_path / "export", weights.config, state, "replaced_tokens", tokenizer, {})
    again, report = load_peer(transformers.AutoModelForPreTraining, tmp_path / "export")
    assert (type(again), report) == (type(peer), {})
    _, inputs = both_forms("electra")
    assert_close(again(**inputs).logits, peer(**inputs).logits, rtol=1e-6, atol=1e-6)
