"""A run starts from the matching parts of a published head, and reports them."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from framework.models.encoder import TransformerEncoder
from framework.nn.lora import LoraSettings, apply_lora
from framework.published.pretrained import PretrainedWeights, load_pretrained
from framework.published.starting_head import describe_start, fit_head
from framework.tasks.sequence_classification.head import build_sequence_classification_head
from framework.tasks.task import TaskModel
from tests.support.models import peers
from tests.support.models.heads import TokenHead
from tests.support.models.loading import load_into
from tests.support.models.shapes import BERT

LABELS = ["bad", "good", "so so"]


def source(head_kind="token_classification", **record) -> PretrainedWeights:
    """Makes every value of row i of the scores i, so that rows can be recognized."""
    rows = torch.arange(3.0)
    heads = {
        "pooler.dense.bias": torch.zeros(2),
        "classifier.weight": rows[:, None].expand(3, 2),
        "classifier.bias": rows,
    }
    return PretrainedWeights("there", BERT, {}, heads, head_kind, record)


def scores(weights: PretrainedWeights) -> list[float] | None:
    bias, weight = weights.heads.get("classifier.bias"), weights.heads.get("classifier.weight")
    assert (bias is None) == (weight is None)
    if bias is None or weight is None:
        return None
    assert torch.equal(weight, bias[:, None].expand(3, 2))
    return bias.tolist()


@pytest.mark.parametrize(
    ("given", "kind", "record", "expected"),
    [
        (source(labels=LABELS), "token_classification", {"labels": LABELS}, [0, 1, 2]),
        (source(labels=LABELS), "token_classification", {"labels": ["so so", "bad", "good"]}, [2, 0, 1]),
        (source(labels=LABELS), "token_classification", {"labels": ["so so", "bad", "fine"]}, None),
        (source(labels=LABELS), "token_classification", {"labels": ["bad", "good"]}, None),
        (source(labels=LABELS), "sequence_classification", {"labels": LABELS}, None),
        (source(labels=["LABEL_0", "LABEL_1", "LABEL_2"]), "token_classification", {"labels": LABELS}, [0, 1, 2]),
        (source(labels=["LABEL_0", "LABEL_1", "LABEL_2"]), "token_classification", {"labels": ["bad", "good"]}, None),
        (source(), "token_classification", {"labels": LABELS}, [0, 1, 2]),
        (source(labels=LABELS), "token_classification", {}, [0, 1, 2]),
        (source(None, labels=LABELS), "token_classification", {"labels": ["x", "y", "z"]}, [0, 1, 2]),
        (
            source(labels=LABELS, problem="multi_label"),
            "token_classification",
            {"labels": LABELS, "problem": "single_label"},
            None,
        ),
        (source(labels=LABELS, problem="single_label"), "token_classification", {"labels": LABELS}, [0, 1, 2]),
    ],
)
def test_scores_are_copied_by_label(given, kind, record, expected):
    fitted = fit_head(given, kind, record)
    assert scores(fitted) == expected
    assert "pooler.dense.bias" in fitted.heads
    assert set(fitted.unused) == (set() if expected else {"classifier.weight", "classifier.bias"})
    assert scores(given) == [0, 1, 2]


class BareSpanHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qa_outputs = nn.Linear(32, 2)


def test_a_classifier_of_tokens_does_not_start_one_of_sequences(tmp_path):
    """Both have one `classifier` of one shape; only their kind distinguishes them."""
    for class_name, family in (
        ("BertForTokenClassification", "bert"),
        ("ModernBertForTokenClassification", "modernbert"),
    ):
        peers.peer(class_name, family).save_pretrained(tmp_path / family)
        weights = fit_head(load_pretrained(str(tmp_path / family)), "sequence_classification", {"labels": ["a", "b"]})
        model = TaskModel(TransformerEncoder(weights.config), build_sequence_classification_head(weights.config, 2))
        new = [name for name in load_into(model, weights) if "pooler" not in name]
        assert new == ["head.classifier.weight", "head.classifier.bias"]


def line(weights, head):
    with torch.device("meta"):
        model = TaskModel(TransformerEncoder(weights.config), head(weights.config))
    return describe_start(model, weights)


def test_the_message_about_scores(tmp_path):
    peers.peer("BertForPreTraining", "bert").save_pretrained(tmp_path / "bert")
    weights = replace(load_pretrained(str(tmp_path / "bert")), source="bert")
    assert line(weights, lambda config: build_sequence_classification_head(config, 2)) == (
        "weights from bert; head reused: pooler.dense; head new: classifier; "
        "unused weights of the source: mlm.dense, mlm.norm, mlm.decoder, nsp"
    )
    assert line(weights, lambda _config: BareSpanHead()) == (
        "weights from bert; head new: qa_outputs; "
        "unused weights of the source: pooler.dense, mlm.dense, mlm.norm, mlm.decoder, nsp"
    )


def test_low_rank_updates_are_counted_and_are_no_part_of_the_head(tmp_path):
    peers.peer("BertForPreTraining", "bert").save_pretrained(tmp_path / "bert")
    weights = replace(load_pretrained(str(tmp_path / "bert")), source="bert")
    with torch.device("meta"):
        head = build_sequence_classification_head(weights.config, 2)
        model = TaskModel(TransformerEncoder(weights.config), head)
        apply_lora(model.encoder.layers, weights.config.num_heads, LoraSettings(2, 4.0, ("query", "value", "up")))
    message = describe_start(model, weights)
    num_updates = 3 * weights.config.num_layers
    assert f"; head new: classifier; low-rank updates new: {num_updates}; unused weights of" in message


def test_the_message_about_the_transform_of_an_mlm_head(tmp_path):
    peers.peer("ModernBertForMaskedLM", "modernbert").save_pretrained(tmp_path / "m")
    weights = replace(load_pretrained(str(tmp_path / "m")), source="m")
    assert line(weights, lambda config: TokenHead(config, 3)) == (
        "weights from m; head reused: transform.dense, transform.norm; head new: classifier; "
        "unused weights of the source: mlm.decoder"
    )


def test_the_message_about_a_fine_tuned_model(tmp_path):
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: index for index, name in enumerate(LABELS)}}
    peers.peer("RobertaForTokenClassification", "roberta", **names).save_pretrained(tmp_path / "r")
    weights = replace(load_pretrained(str(tmp_path / "r")), source="r")
    same = fit_head(weights, "token_classification", {"labels": LABELS})
    assert line(same, lambda config: TokenHead(config, 3)) == "weights from r; head reused: classifier"
    other = fit_head(weights, "token_classification", {"labels": ["x", "y"]})
    assert line(other, lambda config: TokenHead(config, 2)) == (
        "weights from r; head new: classifier; unused weights of the source: classifier"
    )


@pytest.mark.parametrize("named", [{"num_labels": 3}, {"num_labels": 3, "id2label": {"0": "no", "1": "yes"}}, {}])
@pytest.mark.parametrize("class_name", ["BertForSequenceClassification", "BertForTokenClassification"])
def test_the_scores_determine_the_number_of_labels(named, class_name, tmp_path):
    """A published config may name fewer labels than there are scores; those without a name get the default."""
    peer = peers.peer(class_name, "bert", num_labels=3)
    peer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    written = {key: value for key, value in config.items() if key not in ("id2label", "label2id", "num_labels")}
    (tmp_path / "config.json").write_text(json.dumps(written | named))
    weights = load_pretrained(str(tmp_path))
    expected = ["no", "yes"] if "id2label" in named else ["LABEL_0", "LABEL_1"]
    assert weights.task_record["labels"] == [*expected, "LABEL_2"]
    kind = {"BertForSequenceClassification": "sequence_classification"}.get(class_name, "token_classification")
    labels = [*expected, "LABEL_2"] if "id2label" in named else LABELS
    fitted = fit_head(weights, kind, {"labels": labels})
    assert torch.equal(fitted.heads["classifier.weight"], peer.classifier.weight)
    assert fitted.unused == ()
