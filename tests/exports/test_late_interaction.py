"""An exported late-interaction model: the contents of its files, and its vectors and scores in other libraries."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from framework.batch import PackedBatch
from framework.data.planning.plan import StepSequences
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import CheckpointError
from framework.exports.huggingface import export_huggingface
from framework.exports.onnx import OnnxModel, export_onnx
from framework.published.pretrained import load_pretrained
from framework.tasks.late_interaction.head import LateInteractionHead
from framework.tasks.late_interaction.task import LateInteractionTask
from tests.support.commands.in_process import TEXTS, train_vocabulary
from tests.support.exports.onnx_files import padded, scores
from tests.support.exports.random_models import random_model
from tests.support.exports.small_exports import CONFIGS

QUERIES = ["a good film", "Bad, bad film", "a fine film of 1990 or bad poor film a good film"]
DOCUMENTS = ["a fine film, of 1990.", "poor [bad] film", "a good film " * 6, "1990"]
# The query marker is a token of the vocabulary, the document marker is not.
SETTINGS = {
    "width": 6,
    "query_length": 9,
    "document_length": 16,
    "query_marker": "[unused0] ",
    "document_marker": "[d] ",
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_vocabulary([*TEXTS, "d . , [ ]"], 95, folder)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["vocab"]["[unused0]"] = len(content["model"]["vocab"])
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return Tokenizer.from_folder(folder)


def batch_of(task: LateInteractionTask, texts: list[str], tokenizer: Tokenizer) -> PackedBatch:
    rows, indices = [Row(0, None, {"text": text}) for text in texts], np.arange(len(texts))
    return task.build_source(rows, tokenizer).build(StepSequences(np.zeros(len(rows)), indices, indices), 0)


def vectors(task: LateInteractionTask, model, texts: list[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Returns the vectors of texts that the task computes."""
    batch = batch_of(task, texts, tokenizer)
    with torch.no_grad():
        return [each[0] for each in task.decode(model(batch), batch)]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "expanded"])
def exported(request, tmp_path_factory, tokenizer) -> SimpleNamespace:
    """An export, and the vectors of queries and documents that the task computes."""
    task = LateInteractionTask(**SETTINGS, expand_queries=request.param)
    config = CONFIGS["bert"]
    model = random_model(config, LateInteractionHead(config.hidden_size, 6))
    folder = tmp_path_factory.mktemp("late") / "export"
    export_huggingface(folder, config, model.state_dict(), task.head_kind, tokenizer.folder, task.to_record())
    queries, documents = (
        vectors(LateInteractionTask(**SETTINGS, expand_queries=request.param, side=side), model, texts, tokenizer)
        for side, texts in (("query", QUERIES), ("document", DOCUMENTS))
    )
    return SimpleNamespace(
        folder=folder, model=model, task=task, queries=queries, documents=documents, expands=request.param
    )


def test_contents_of_the_files(exported, tokenizer):
    modules = json.loads((exported.folder / "modules.json").read_text())
    assert [(module["path"], module["type"]) for module in modules] == [
        ("", "sentence_transformers.models.Transformer"),
        ("1_Dense", "pylate.models.Dense.Dense"),
    ]
    dense = json.loads((exported.folder / "1_Dense" / "config.json").read_text())
    assert (dense["in_features"], dense["out_features"], dense["bias"]) == (32, 6, False)
    weights = load_file(exported.folder / "1_Dense" / "model.safetensors")
    assert torch.equal(weights["linear.weight"], exported.model.head.projection.weight)
    settings = json.loads((exported.folder / "config_sentence_transformers.json").read_text())
    assert (settings["query_prefix"], settings["document_prefix"]) == ("[unused0]", "")
    assert settings["prompts"] == {"query": "", "document": "[d] "}
    assert (settings["query_length"], settings["document_length"], settings["model_type"]) == (9, 16, "ColBERT")
    assert settings["do_query_expansion"] is settings["attend_to_expansion_tokens"] is exported.expands
    assert set(settings["skiplist_words"]) == {*"[].,"} & set(tokenizer.backend.get_vocab())
    assert not (exported.folder / "cloze_heads.safetensors").exists()


def test_the_export_starts_a_run(exported):
    again = load_pretrained(str(exported.folder))
    assert again.head_kind == "late_interaction" and not again.unused
    assert torch.equal(again.heads["projection.weight"], exported.model.head.projection.weight)


def test_published_folders_start_a_run_too(exported, tmp_path):
    """PyLate's folder is an export without our record; the first ColBERT keeps the projection beside the encoder."""
    found = [file for file in exported.folder.rglob("*") if file.is_file()]
    files = {file.relative_to(exported.folder): file.read_bytes() for file in found}
    for name, content in files.items():
        if name.name != "cloze.json":
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(content)
    assert load_pretrained(str(tmp_path)).head_kind == "late_interaction"
    for changed in ({"activation_function": "torch.nn.modules.activation.Tanh"}, {"use_residual": True}):
        settings = json.loads(files[next(name for name in files if str(name) == "1_Dense/config.json")])
        (tmp_path / "1_Dense" / "config.json").write_text(json.dumps({**settings, **changed}))
        assert load_pretrained(str(tmp_path)).head_kind is None
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["HF_ColBERT"]}))
    tensors = {f"bert.{name}": tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    weight = exported.model.head.projection.weight.detach()
    save_file({**tensors, "linear.weight": weight}, tmp_path / "model.safetensors")
    first = load_pretrained(str(tmp_path))
    assert first.head_kind == "late_interaction" and "linear.weight" not in first.unused
    assert torch.equal(first.heads["projection.weight"], weight)


def test_a_changed_projection_is_refused(exported):
    file = exported.folder / "1_Dense" / "model.safetensors"
    kept = file.read_bytes()
    file.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"1_Dense.*has changed since its export"):
        load_pretrained(str(exported.folder))
    file.write_bytes(kept)


def assert_same(exported, queries, documents, scores):
    for ours, theirs in zip([*exported.queries, *exported.documents], [*queries, *documents], strict=True):
        torch.testing.assert_close(torch.as_tensor(theirs).cpu(), torch.from_numpy(ours), atol=1e-5, rtol=1e-5)
    expected = exported.task.index(exported.documents)(exported.queries)
    np.testing.assert_allclose(np.asarray(scores), expected, rtol=1e-5, atol=1e-5)


def test_multi_vector_encoder_gives_equal_vectors_and_scores(exported):
    library = pytest.importorskip("sentence_transformers", minversion="6.0")
    model = library.MultiVectorEncoder(str(exported.folder), device="cpu")
    queries, documents = model.encode_query(QUERIES), model.encode_document(DOCUMENTS)
    assert_same(exported, queries, documents, model.similarity(queries, documents))


def test_onnx_file_gives_equal_vectors(exported, tokenizer):
    export_onnx(exported.folder)
    task = LateInteractionTask(**SETTINGS, expand_queries=exported.expands, side="document")
    batch = batch_of(task, DOCUMENTS, tokenizer)
    with torch.no_grad():
        expected = exported.model(batch)["vectors"].split(batch.lengths)
    outputs = scores(exported.folder, padded(batch, OnnxModel(exported.folder).input_names))
    assert outputs.keys() == {"last_hidden_state", "token_vectors"}
    for found, own in zip(outputs["token_vectors"], expected, strict=True):
        np.testing.assert_allclose(found[: len(own)], own, atol=1e-4)
        assert not found[len(own) :].any()
