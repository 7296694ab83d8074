"""Every kind of head: its class of transformers has the same scores, and heads without a class are read back too."""

import json

import pytest
import torch
import transformers
from torch import nn
from torch.testing import assert_close

from framework.data.tokenization.tokenizer import TOKENIZER_KEY, Tokenizer
from framework.errors import CheckpointError
from framework.exports.huggingface import export_huggingface
from framework.published.pretrained import load_pretrained
from framework.tasks.sequence_classification.head import build_sequence_classification_head
from tests.support.exports.random_models import TOLERANCE, both_forms, random_model
from tests.support.exports.small_exports import CONFIGS, load_peer
from tests.support.models import peers
from tests.support.models.heads import ChoiceHead, SpanHead, TokenHead
from tests.support.models.loading import load_into

FAMILIES = {"bert": "Bert", "roberta": "Roberta", "modernbert": "ModernBert"}
CLASSIFIERS = (
    transformers.AutoModelForSequenceClassification,
    transformers.AutoModelForTokenClassification,
    transformers.AutoModelForQuestionAnswering,
    transformers.AutoModelForMultipleChoice,
)
LABELLED = {"labels": list(peers.LABELS)}


def export(tmp_path, model, tokenizer_dirs, head_kind, **record):
    folder = tmp_path / "export"
    config = model.encoder.config
    export_huggingface(folder, config, model.state_dict(), head_kind, tokenizer_dirs[config.family], record)
    return folder


def check_comes_back(folder, model, make_head, head_kind, record):
    """Compares bit for bit, with no new and no unused tensors."""
    weights = load_pretrained(str(folder))
    recorded = {TOKENIZER_KEY: Tokenizer.from_folder(folder).fingerprint}
    assert (weights.head_kind, weights.task_record, weights.unused) == (head_kind, record | recorded, ())
    again = random_model(model.encoder.config, make_head(), seed=5)
    assert load_into(again, weights) == []
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_token_classification(family, tmp_path, tokenizer_dirs):
    model = random_model(CONFIGS[family], TokenHead(CONFIGS[family], 3))
    folder = export(tmp_path, model, tokenizer_dirs, "token_classification", **LABELLED)
    peer, report = load_peer(transformers.AutoModelForTokenClassification, folder)
    assert report == {}
    assert peer.config.id2label == dict(enumerate(peers.LABELS))
    batch, inputs = both_forms(family)
    assert_close(model(batch)["logits"], peers.unpadded(peer(**inputs).logits, inputs), **TOLERANCE)
    check_comes_back(folder, model, lambda: TokenHead(CONFIGS[family], 3), "token_classification", LABELLED)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_question_answering(family, tmp_path, tokenizer_dirs):
    model = random_model(CONFIGS[family], SpanHead(CONFIGS[family]))
    folder = export(tmp_path, model, tokenizer_dirs, "question_answering", max_length=32)
    peer, report = load_peer(transformers.AutoModelForQuestionAnswering, folder)
    assert report == {}
    batch, inputs = both_forms(family)
    start, end = model(batch)["logits"].unbind(-1)
    expected = peer(**inputs)
    assert_close(start, peers.unpadded(expected.start_logits, inputs), **TOLERANCE)
    assert_close(end, peers.unpadded(expected.end_logits, inputs), **TOLERANCE)
    check_comes_back(folder, model, lambda: SpanHead(CONFIGS[family]), "question_answering", {"max_length": 32})


@pytest.mark.parametrize(
    ("family", "pooling"), [(name, "cls") for name in FAMILIES] + [(name, "mean") for name in FAMILIES]
)
@torch.no_grad()
def test_multiple_choice(family, pooling, tmp_path, tokenizer_dirs):
    model = random_model(CONFIGS[family], ChoiceHead(CONFIGS[family], pooling))
    folder = export(tmp_path, model, tokenizer_dirs, "multiple_choice", pooling=pooling)
    peer, report = load_peer(transformers.AutoModelForMultipleChoice, folder)
    assert report == {}
    batch, inputs = both_forms(family, lengths=(5, 50, 1, 23, 9, 12))
    expected = peer(**{name: tensor.view(2, 3, -1) for name, tensor in inputs.items()}).logits
    assert_close(model(batch)["logits"].view(2, 3), expected, **TOLERANCE)
    record = {"pooling": pooling}
    check_comes_back(folder, model, lambda: ChoiceHead(CONFIGS[family], pooling), "multiple_choice", record)


@pytest.mark.parametrize("family", FAMILIES)
def test_our_class_is_not_mistaken_for_one_of_transformers(family, tmp_path, tokenizer_dirs):
    head = build_sequence_classification_head(CONFIGS["bert"], 3, "mean")
    folder = export(
        tmp_path, random_model(CONFIGS["bert"], head), tokenizer_dirs, "sequence_classification", pooling="mean"
    )
    for suffix in ("Model", "ForSequenceClassification"):
        with pytest.raises(KeyError, match=r"modeling_cloze\.py: load with trust_remote_code=True"):
            getattr(transformers, FAMILIES[family] + suffix).from_pretrained(folder, num_attention_heads=4)
    # An earlier export has the type of the encoder among its settings.
    before = load_pretrained(str(folder))
    published = json.loads((folder / "config.json").read_text())
    published["encoder"]["model_type"] = published.pop("encoder_type")
    (folder / "config.json").write_text(json.dumps(published))
    record = json.loads((folder / "cloze.json").read_text())
    (folder / "cloze.json").write_text(json.dumps(record | {"blake2b": None}))
    assert peers.same(load_pretrained(str(folder)), before)


@pytest.mark.parametrize(
    ("problem", "labels", "problem_type"),
    [
        ("regression", [], "regression"),
        ("multi_label", list(peers.LABELS), "multi_label_classification"),
        ("single_label", list(peers.LABELS), "single_label_classification"),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_problems_of_sequence_classification(family, problem, labels, problem_type, tmp_path, tokenizer_dirs):
    model = random_model(CONFIGS[family], build_sequence_classification_head(CONFIGS[family], len(labels) or 1))
    record = {"problem": problem, "labels": labels, "pooling": "cls"}
    folder = export(tmp_path, model, tokenizer_dirs, "sequence_classification", **record)
    peer, report = load_peer(transformers.AutoModelForSequenceClassification, folder)
    assert report == {}
    assert (peer.config.problem_type, peer.config.num_labels) == (problem_type, len(labels) or 1)
    batch, inputs = both_forms(family)
    assert_close(model(batch)["logits"], peer(**inputs).logits, **TOLERANCE)
    # The class's own loss for the problem shows that config.json has the meaning that transformers expects.
    targets = {
        "regression": torch.randn(4),
        "multi_label": torch.eye(3)[[0, 1, 2, 1]],
        "single_label": torch.tensor([0, 1, 2, 1]),
    }[problem]
    losses = {
        "regression": lambda x: nn.functional.mse_loss(x.squeeze(), targets),
        "multi_label": lambda x: nn.functional.binary_cross_entropy_with_logits(x, targets),
        "single_label": lambda x: nn.functional.cross_entropy(x, targets),
    }
    assert_close(peer(**inputs, labels=targets).loss, losses[problem](model(batch)["logits"]), **TOLERANCE)


def test_a_problem_without_a_class(tmp_path, tokenizer_dirs):
    model = random_model(CONFIGS["bert"], build_sequence_classification_head(CONFIGS["bert"], 3))
    with pytest.raises(CheckpointError, match="problem='ordinal' of the task is unknown"):
        export(tmp_path, model, tokenizer_dirs, "sequence_classification", problem="ordinal")
    assert list(tmp_path.iterdir()) == []


class PairHead(nn.Module):
    """Head that scores two tokens of a sequence together, as relation classification does."""

    def __init__(self, hidden_size=32, num_labels=4):
        super().__init__()
        self.classifier = nn.Linear(2 * hidden_size, num_labels)


class ProbeHead(nn.Module):
    """Head with only a linear layer, for a frozen encoder."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(32, 3)


class ForeignHead(nn.Module):
    """Head of a task from outside the package."""

    def __init__(self):
        super().__init__()
        self.query = nn.Parameter(torch.randn(3, 32))
        self.scale = nn.Parameter(torch.randn(()))


class TaggerWithTransitions(TokenHead):
    """Head whose labels depend on more than the scores of tokens."""

    def __init__(self):
        super().__init__(CONFIGS["bert"], 3)
        self.transitions = nn.Parameter(torch.randn(3, 3))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("head_kind", "make_head"),
    [
        ("relation", PairHead),
        ("sequence_classification", PairHead),
        ("multiple_choice", ProbeHead),
        ("of_somebody_else", ForeignHead),
        ("token_classification", TaggerWithTransitions),
    ],
)
@torch.no_grad()
def test_a_head_without_a_class_is_exported_beside_the_base_class(
    family, head_kind, make_head, tmp_path, tokenizer_dirs
):
    model = random_model(CONFIGS[family], make_head())
    record = {"labels": list("abcd" if make_head is PairHead else "abc"), "pooling": "cls"}
    folder = export(tmp_path, model, tokenizer_dirs, head_kind, **record)
    config = json.loads((folder / "config.json").read_text())
    # BertForTokenClassification could load the scores of the tagger, but its labels would be different.
    assert config["architectures"] == [FAMILIES[family] + "Model"]
    assert config["id2label"] == {str(index): label for index, label in enumerate(record["labels"])}
    for auto in CLASSIFIERS:
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            auto.from_pretrained(folder)
    named = getattr(transformers, FAMILIES[family] + "ForSequenceClassification")
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        named.from_pretrained(folder)
    started, _ = named.from_pretrained(folder, ignore_mismatched_sizes=True, output_loading_info=True)
    assert started.config.num_labels == len(record["labels"])
    peer, report = load_peer(transformers.AutoModel, folder)
    assert report.pop("missing_keys", set()) <= {"pooler.dense.weight", "pooler.dense.bias"}
    assert report.pop("unexpected_keys") <= {"classifier.weight", "classifier.out_proj.weight", "qa_outputs.weight"}
    assert report == {}
    batch, inputs = both_forms(family)
    expected = peers.unpadded(peer(**inputs).last_hidden_state, inputs)
    assert_close(model.encoder(batch), expected, **TOLERANCE)
    check_comes_back(folder, model, make_head, head_kind, record)
