"""An exported sparse embedding: the contents of its files, and its weights and scores in sentence-transformers."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from framework.data.planning.plan import StepSequences
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.exports.huggingface import export_huggingface
from framework.exports.onnx import OnnxModel, export_onnx
from framework.models.encoder import TransformerEncoder
from framework.published.pretrained import load_pretrained
from framework.tasks.sparse_embedding.head import SparseHead
from framework.tasks.sparse_embedding.task import SparseEmbeddingTask
from framework.tasks.task import TaskModel
from tests.support.commands.in_process import TEXTS, train_vocabulary
from tests.support.exports.onnx_files import padded, scores
from tests.support.exports.random_models import random_model_of_kind
from tests.support.exports.small_exports import CONFIGS

QUERIES = ["a good film", "Bad, bad film"]
DOCUMENTS = ["a fine film, of 1990.", "poor film", "a good film " * 6]


@pytest.fixture(scope="module", params=["bert", "modernbert"])
def exported(request, tmp_path_factory) -> SimpleNamespace:
    """An export, and the sparse vectors that the task computes."""
    folder = tmp_path_factory.mktemp("sparse")
    train_vocabulary([*TEXTS, ". ,"], 95, folder / "tokenizer")
    tokenizer = Tokenizer.from_folder(folder / "tokenizer")
    config, task = CONFIGS[request.param], SparseEmbeddingTask(max_length=12)
    encoder = TransformerEncoder(config)
    model = TaskModel(encoder, SparseHead(encoder, config))
    model.load_state_dict(random_model_of_kind(config, "mlm").state_dict())
    export_huggingface(
        folder / "export", config, model.state_dict(), task.head_kind, tokenizer.folder, task.to_record()
    )
    rows = [Row(0, None, {"text": text}) for text in [*QUERIES, *DOCUMENTS]]
    indices = np.arange(len(rows))
    source = task.build_source(rows, tokenizer)
    batch = source.build(StepSequences(np.zeros(len(rows)), indices, indices), 0)
    with torch.no_grad():
        decoded = task.decode(model(batch), batch)
    return SimpleNamespace(
        folder=folder / "export", model=model, task=task, source=source, batch=batch, decoded=decoded
    )


def test_contents_of_the_files(exported):
    modules = json.loads((exported.folder / "modules.json").read_text())
    assert [module["path"] for module in modules] == ["", "1_SpladePooling"]
    pooling = json.loads((exported.folder / "1_SpladePooling" / "config.json").read_text())
    assert pooling == {"pooling_strategy": "max", "activation_function": "relu", "word_embedding_dimension": 99}
    assert json.loads((exported.folder / "config.json").read_text())["architectures"][0].endswith("ForMaskedLM")
    assert json.loads((exported.folder / "sentence_bert_config.json").read_text())["max_seq_length"] == 12
    again = load_pretrained(str(exported.folder))
    assert again.head_kind == "sparse_embedding" and not again.unused
    assert torch.equal(again.heads["mlm.dense.weight"], exported.model.head.mlm.dense.weight)


def test_sparse_encoder_gives_equal_weights_and_scores(exported):
    library = pytest.importorskip("sentence_transformers", minversion="5.0")
    model = library.SparseEncoder(str(exported.folder), device="cpu")
    queries, documents = model.encode_query(QUERIES), model.encode_document(DOCUMENTS)
    theirs = torch.cat([queries.to_dense(), documents.to_dense()])
    ours = np.zeros(tuple(theirs.shape), dtype=np.float32)
    for row, texts in zip(ours, exported.decoded, strict=True):
        row[texts[0].words] = texts[0].weights
    torch.testing.assert_close(theirs, torch.from_numpy(ours), atol=1e-5, rtol=1e-5)
    vectors = [texts[0] for texts in exported.decoded]
    scores = exported.task.index(vectors[len(QUERIES) :])(vectors[: len(QUERIES)])
    np.testing.assert_allclose(model.similarity(queries, documents).numpy(), scores, rtol=1e-4, atol=1e-4)
    # The words of a prediction are those that the library shows.
    words = [
        word for word in exported.task.assemble(exported.source, exported.decoded)[0]["words"] if "id " not in word
    ]
    assert words == [word for word, _ in model.decode(queries[0]) if word is not None]


def test_onnx_file_gives_equal_weights(exported):
    export_onnx(exported.folder)
    outputs = scores(exported.folder, padded(exported.batch, OnnxModel(exported.folder).input_names))
    assert outputs.keys() == {"logits", "word_weights"}
    for row, texts in zip(outputs["word_weights"], exported.decoded, strict=True):
        expected = np.zeros_like(row)
        expected[texts[0].words] = texts[0].weights
        np.testing.assert_allclose(row, expected, atol=1e-4)
