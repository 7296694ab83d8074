"""The ONNX file of an export has the scores of the class; a file with other scores is deleted."""

import importlib.util

import pytest
import torch
import transformers
from torch import nn
from torch.testing import assert_close

from framework.errors import CheckpointError, ConfigError
from framework.exports import onnx as exporter
from framework.exports.onnx import check_onnx_installed, export_onnx
from framework.tasks.sequence_classification.head import build_sequence_classification_head
from tests.support.exports.module_files import embed_by_the_files
from tests.support.exports.onnx_files import exported, scores
from tests.support.exports.random_models import both_forms
from tests.support.models import peers
from tests.support.models.heads import ChoiceHead, SpanHead


@torch.no_grad()
def test_spans_of_modernbert(tmp_path, tokenizer_dirs):
    folder = exported(tmp_path, "modernbert", SpanHead, "question_answering", tokenizer_dirs)
    assert export_onnx(folder) == folder / "onnx" / "model.onnx"
    peer = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    for lengths in ((50, 5, 23), (7,)):
        _, inputs = both_forms("modernbert", lengths)
        actual, expected = scores(folder, inputs), peer(**inputs)
        assert actual.keys() == {"start_logits", "end_logits"}
        for name, values in actual.items():
            # Padding is excluded: a padding token that attends to no other one may have any value.
            ours, theirs = (peers.unpadded(x, inputs) for x in (torch.from_numpy(values), expected[name]))
            assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert "`input_ids`, `attention_mask` (int64) to `start_logits`, `end_logits`" in (folder / "README.md").read_text()


@torch.no_grad()
def test_choices_of_bert(tmp_path, tokenizer_dirs):
    folder = exported(tmp_path, "bert", ChoiceHead, "multiple_choice", tokenizer_dirs)
    export_onnx(folder)
    peer = transformers.AutoModelForMultipleChoice.from_pretrained(folder).eval()
    _, inputs = both_forms("bert", (9, 30, 4, 17, 12, 8))
    shaped = {name: tensor.view(3, 2, -1) for name, tensor in inputs.items()}
    actual = torch.from_numpy(scores(folder, shaped)["logits"])
    assert_close(actual, peer(**shaped).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_our_own_class(tmp_path, tokenizer_dirs):
    def make_head(config):
        return build_sequence_classification_head(config, 3, "mean")

    folder = exported(tmp_path, "bert", make_head, "sequence_classification", tokenizer_dirs, pooling="mean")
    export_onnx(folder)
    classes = transformers.AutoModelForSequenceClassification
    peer = classes.from_pretrained(folder, trust_remote_code=True).eval()
    _, inputs = both_forms("bert", (9, 30, 4))
    assert_close(torch.from_numpy(scores(folder, inputs)["logits"]), peer(**inputs).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("cls", False)])
@torch.no_grad()
def test_vectors_of_texts(pooling, normalize, tmp_path, tokenizer_dirs):
    folder = exported(
        tmp_path,
        "bert",
        lambda _config: nn.Identity(),
        "embedding",
        tokenizer_dirs,
        pooling=pooling,
        normalize=normalize,
    )
    export_onnx(folder)
    _, inputs = both_forms("bert", (9, 30, 4))
    expected = embed_by_the_files(folder, inputs)
    assert_close(torch.from_numpy(scores(folder, inputs)["sentence_embedding"]), expected, atol=1e-4, rtol=1e-4)
    assert "`sentence_embedding` holds one vector per text" in (folder / "README.md").read_text()


@torch.no_grad()
def test_a_file_with_other_scores_is_deleted(tmp_path, tokenizer_dirs, monkeypatch):
    folder = exported(tmp_path, "bert", lambda _config: nn.Identity(), "embedding", tokenizer_dirs)
    export_onnx(folder)
    _, inputs = both_forms("bert", (9, 4))
    # The pooler, which the export does not have, would be random.
    assert scores(folder, inputs).keys() == {"last_hidden_state", "sentence_embedding"}
    right = (folder / "onnx" / "model.onnx").read_bytes()
    card = (folder / "README.md").read_text()

    def write_what_is_almost_right(file, model):
        file.write_bytes(right)
        model.model.encoder.layer[0].output.dense.weight.mul_(1.01)

    monkeypatch.setattr(exporter, "_write", write_what_is_almost_right)
    with pytest.raises(CheckpointError, match="computes other outputs than BertModel: they differ by"):
        export_onnx(folder)
    assert not (folder / "onnx").exists()
    assert (folder / "model.safetensors").is_file()
    assert (folder / "README.md").read_text() == card


def test_missing_extra_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else find(name))
    with pytest.raises(ConfigError, match=r"needs onnx, onnxruntime, onnxscript.*pip install -e '\.\[onnx\]'"):
        check_onnx_installed()
