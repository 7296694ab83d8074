"""Published heads of tokens, choices, numbers and several labels give the outputs of transformers."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from framework.published.pretrained import load_pretrained
from framework.tasks.sequence_classification.head import build_sequence_classification_head
from framework.tasks.task import TaskModel
from tests.support.models import peers
from tests.support.models.heads import ChoiceHead, SpanHead, TokenHead
from tests.support.models.loading import load_into

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
FAMILIES = {"bert": "Bert", "roberta": "Roberta", "modernbert": "ModernBert"}
NAMED = {"id2label": dict(enumerate(peers.LABELS)), "label2id": {name: i for i, name in enumerate(peers.LABELS)}}


def both_forms(family: str, lengths=peers.LENGTHS):
    ids = peers.sequences(lengths)
    token_types = peers.segments(ids) if family == "bert" else None
    return peers.pack(ids, token_types), peers.pad(ids, peers.CONFIGS[family].pad_token_id, token_types)


def saved(tmp_path, family, suffix, **config):
    """Returns a model of transformers, and the weights that we read from its folder."""
    peer = peers.peer(FAMILIES[family] + suffix, family, **config)
    peer.save_pretrained(tmp_path)
    return peer, load_pretrained(str(tmp_path))


def whole_model(weights, head: nn.Module) -> TaskModel:
    model = TaskModel(peers.encoder_of(weights), head)
    assert load_into(model, weights) == []
    return model


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_token_classification(family, tmp_path):
    peer, weights = saved(tmp_path, family, "ForTokenClassification", **NAMED)
    assert weights.head_kind == "token_classification"
    assert weights.task_record == {"labels": list(peers.LABELS)}
    assert weights.unused == ()
    batch, inputs = both_forms(family)
    logits = whole_model(weights, TokenHead(weights.config, 3))(batch)["logits"]
    assert_close(logits, peers.unpadded(peer(**inputs).logits, inputs), **TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_question_answering(family, tmp_path):
    peer, weights = saved(tmp_path, family, "ForQuestionAnswering")
    assert (weights.head_kind, weights.task_record, weights.unused) == ("question_answering", {}, ())
    batch, inputs = both_forms(family)
    start, end = whole_model(weights, SpanHead(weights.config))(batch)["logits"].unbind(-1)
    expected = peer(**inputs)
    assert_close(start, peers.unpadded(expected.start_logits, inputs), **TOLERANCE)
    assert_close(end, peers.unpadded(expected.end_logits, inputs), **TOLERANCE)


@pytest.mark.parametrize(("family", "pooling"), [(name, "cls") for name in FAMILIES] + [("modernbert", "mean")])
@torch.no_grad()
def test_multiple_choice(family, pooling, tmp_path):
    config = {"classifier_pooling": pooling} if family == "modernbert" else {}
    peer, weights = saved(tmp_path, family, "ForMultipleChoice", **config)
    assert (weights.head_kind, weights.task_record, weights.unused) == ("multiple_choice", {"pooling": pooling}, ())
    batch, inputs = both_forms(family, lengths=(5, 50, 1, 23, 9, 12))
    scores = whole_model(weights, ChoiceHead(weights.config, pooling))(batch)["logits"]
    expected = peer(**{name: tensor.view(2, 3, -1) for name, tensor in inputs.items()}).logits
    assert_close(scores.view(2, 3), expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("config", "problem", "labels"),
    [
        ({"num_labels": 1}, "regression", ["LABEL_0"]),
        ({"problem_type": "regression", **NAMED}, "regression", list(peers.LABELS)),
        ({"problem_type": "multi_label_classification", **NAMED}, "multi_label", list(peers.LABELS)),
        ({"problem_type": "single_label_classification", **NAMED}, "single_label", list(peers.LABELS)),
        (NAMED, "single_label", list(peers.LABELS)),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_problems_of_sequence_classification(family, config, problem, labels, tmp_path):
    peer, weights = saved(tmp_path, family, "ForSequenceClassification", **config)
    assert weights.task_record == {"labels": labels, "problem": problem, "pooling": "cls"}
    batch, inputs = both_forms(family)
    model = whole_model(weights, build_sequence_classification_head(weights.config, len(labels)))
    assert_close(model(batch)["logits"], peer(**inputs).logits, **TOLERANCE)


@torch.no_grad()
def test_the_dense_layer_of_a_roberta_classifier_takes_precedence_over_a_pooler(tmp_path):
    """Older RoBERTa classifiers were published with the pooler of their base model, which they never use."""
    peer = peers.peer("RobertaForSequenceClassification", "roberta")
    peer.save_pretrained(tmp_path)
    stray = torch.ones(32, 32)
    peers.edit_tensors(tmp_path, lambda tensors: tensors | {"roberta.pooler.dense.weight": stray})
    weights = load_pretrained(str(tmp_path))
    assert torch.equal(weights.heads["pooler.dense.weight"], peer.classifier.dense.weight)
    assert weights.unused == ("pooler.dense.weight",)
