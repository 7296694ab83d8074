"""Smaller ONNX files of an export: their agreement with fp32 on rows, their card, and the refusal of a bad one."""

from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest

from framework.errors import CheckpointError, ConfigError
from framework.exports import onnx_small
from framework.exports.onnx import write_onnx
from framework.exports.onnx_small import TokenRow, export_small_onnx
from framework.runs.exporting import onnx_rows
from framework.tasks.sequence_classification.head import build_sequence_classification_head
from tests.support.exports.onnx_files import converted, exported
from tests.support.models.heads import SpanHead

LENGTHS = (3, 9, 9, 20, 31, 4)


def rows_of(vocab_size):
    generator = np.random.default_rng(0)
    ids = [generator.integers(5, vocab_size, size=length) for length in LENGTHS]
    return [TokenRow([each], [each * 0]) for each in ids]


def test_int8(tmp_path, tokenizer_dirs, monkeypatch):
    def make_head(config):
        return build_sequence_classification_head(config, 3, "mean")

    folder = exported(tmp_path, "bert", make_head, "sequence_classification", tokenizer_dirs, pooling="mean")
    rows = rows_of(40)
    write_onnx(folder)
    fp32 = (folder / "onnx" / "model.onnx").read_bytes()
    monkeypatch.setattr(onnx_small, "write_onnx", lambda folder: converted(folder, fp32))
    written = export_small_onnx(folder, "int8", rows, 0.0)
    file = folder / "onnx" / "model_int8.onnx"
    assert written.file == file
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    graph = onnx.load(file).graph
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= {node.op_type for node in graph.node}
    int8 = [each for each in graph.initializer if each.data_type == onnx.TensorProto.INT8 and len(each.dims) == 2]
    scales = {each.name: each.dims for each in graph.initializer if each.name.endswith("_scale")}
    # Per channel: a scale for each column of a weight.
    assert any(scales.get(each.name.removesuffix("_quantized") + "_scale") == each.dims[1:] for each in int8)

    sessions = [onnxruntime.InferenceSession(each) for each in (fp32, str(file))]
    # One row at a time needs no padding.
    feeds = [{"input_ids": row.input_ids[0][None], "attention_mask": row.input_ids[0][None] * 0 + 1} for row in rows]
    names = {each.name for each in sessions[0].get_inputs()}
    feeds = [each | ({"token_type_ids": each["input_ids"] * 0} if "token_type_ids" in names else {}) for each in feeds]
    large, small = ([session.run(["logits"], each)[0][0].argmax() for each in feeds] for session in sessions)
    assert written.agreement == pytest.approx(np.mean(np.array(large) == np.array(small)))
    card = (folder / "README.md").read_text()
    assert "`onnx/model_int8.onnx` maps" in card
    assert f"On 6 rows of the data, its agreement with fp32 is {written.agreement:.4f}" in card


def test_a_file_below_the_minimum_is_refused(tmp_path, tokenizer_dirs, monkeypatch):
    folder = exported(tmp_path, "bert", SpanHead, "question_answering", tokenizer_dirs)
    write_onnx(folder)
    fp32 = (folder / "onnx" / "model.onnx").read_bytes()
    monkeypatch.setattr(onnx_small, "write_onnx", lambda folder: converted(folder, fp32))
    written = export_small_onnx(folder, "fp16", rows_of(40), 1.0)
    assert written.agreement == 1.0
    assert 0 < written.largest_difference < 0.01
    card = (folder / "README.md").read_text()
    convert = onnx_small._convert

    def damage(original, file, kind):
        convert(original, file, kind)
        model = onnx.load(file)
        for each in model.graph.initializer:
            values = onnx.numpy_helper.to_array(each)
            if values.ndim == 2 and values.dtype == np.float16:
                each.CopyFrom(onnx.numpy_helper.from_array(values * np.float16(-1), each.name))
        onnx.save(model, file)

    monkeypatch.setattr(onnx_small, "_convert", damage)
    with pytest.raises(CheckpointError, match=r"agreement with fp32 0\.\d+ on 6 rows.*`onnx_min_agreement` is 0.97"):
        export_small_onnx(folder, "fp16", rows_of(40), 0.97)
    assert not (folder / "onnx" / "model.onnx").exists()
    assert (folder / "model.safetensors").is_file()
    assert (folder / "README.md").read_text() == card


def measured(monkeypatch, tmp_path, fp32, small, name, problem=None):
    """Returns the agreement of given outputs of one batch of three sequences with 2, 3 and 3 tokens."""
    outputs = {"fp32": np.array(fp32, dtype=np.float32), "small": np.array(small, dtype=np.float32)}
    for each in outputs:
        (tmp_path / each).write_text("")
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda path, **_: SimpleNamespace(run=lambda *_: [outputs[path.name]]),
    )
    model = SimpleNamespace(
        results=[name],
        input_names=["input_ids", "attention_mask"],
        has_choices=False,
        config=SimpleNamespace(pad_token_id=0),
    )
    rows = [TokenRow([np.arange(length)], [np.zeros(length)]) for length in (2, 3, 3)]
    written = onnx_small._measured(tmp_path / "fp32", tmp_path / "small", model, rows, {"problem_type": problem})
    return written.agreement


def test_agreement_by_hand(monkeypatch, tmp_path):
    def of(*given):
        return measured(monkeypatch, tmp_path, *given)

    labels = [[1, 0], [1, 0], [1, 0]]
    assert of(labels, [[3, 0], [0.1, 0], [0, 9]], "logits") == pytest.approx(2 / 3)
    several = "multi_label_classification"
    assert of([[1, 1], [-1, 1], [1, 1]], [[2, 1], [2, -1], [1, 1]], "logits", several) == pytest.approx(4 / 6)
    scores = of([[1], [2], [3]], [[1], [3], [2]], "logits")
    assert scores == pytest.approx(np.corrcoef([1, 2, 3], [1, 3, 2])[0, 1])
    # The last position of the first sequence is padding.
    tags = np.eye(2)[[[0, 0, 0], [0, 0, 0], [0, 0, 0]]]
    others = np.eye(2)[[[1, 0, 1], [0, 0, 0], [0, 0, 0]]]
    assert of(tags, others, "logits") == pytest.approx(7 / 8)
    states = np.array([[[1, 0], [1, 0], [0, 9]], [[1, 0]] * 3, [[1, 0]] * 3])
    turned = np.array([[[1, 0], [1, 0], [9, 9]], [[1, 0]] * 3, [[0, 1]] * 3])
    assert of(states, turned, "last_hidden_state") == pytest.approx(2 / 3)
    spans, shifted = [[0, 1, 9], [0, 1, 2], [0, 1, 2]], [[0, 1, -9], [0, 1, 2], [3, 1, 2]]
    assert of(spans, shifted, "start_logits") == pytest.approx(2 / 3)


def test_pictures_are_refused():
    trained = SimpleNamespace(
        weights=SimpleNamespace(config=SimpleNamespace(family="bert")), task=SimpleNamespace(patch_size=4)
    )
    settings = SimpleNamespace(onnx="int8", run="mine")
    with pytest.raises(ConfigError, match=r"onnx=int8 is given, but mine reads pictures.*Use onnx=true"):
        onnx_rows(trained, settings)
