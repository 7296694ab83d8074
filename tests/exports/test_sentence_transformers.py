"""An exported embedding model gives its vectors if modules.json is followed with transformers alone."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import framework.predict
from framework.data.tokenization.tokenizer import TOKENIZER_KEY
from framework.errors import CheckpointError, ConfigError
from framework.exports.huggingface import export_huggingface
from framework.models.encoder import TransformerEncoder
from framework.published.pretrained import load_pretrained
from framework.tasks.pooling import POOLINGS
from tests.support.exports.module_files import embed_by_the_files
from tests.support.exports.random_models import both_forms, random_model
from tests.support.exports.small_exports import CONFIGS

FAMILIES = list(CONFIGS)


def export(tmp_path, model, tokenizer_dirs, **record):
    config = model.encoder.config
    folder = tmp_path / "export"
    export_huggingface(folder, config, model.state_dict(), "embedding", tokenizer_dirs[config.family], record)
    return folder


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("is_normalized", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_embeddings_computed_from_the_files(family, is_normalized, pooling, tmp_path, tokenizer_dirs):
    model = random_model(CONFIGS[family], nn.Identity())
    record = {"pooling": pooling, "normalize": is_normalized, "max_length": 48}
    folder = export(tmp_path, model, tokenizer_dirs, **record)
    batch, inputs = both_forms(family)
    expected = POOLINGS[pooling](model.encoder(batch), batch)
    if is_normalized:
        expected = nn.functional.normalize(expected, dim=-1)
    assert_close(embed_by_the_files(folder, inputs), expected, atol=1e-5, rtol=1e-5)
    assert json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"] == 48
    assert json.loads((folder / "config_sentence_transformers.json").read_text())["default_prompt_name"] is None
    again = load_pretrained(str(folder))
    kept = {key: value for key, value in again.task_record.items() if key != TOKENIZER_KEY}
    assert (again.head_kind, kept) == ("embedding", record)
    encoder = TransformerEncoder(again.config)
    encoder.load_state_dict(dict(again.encoder))
    assert torch.equal(encoder(batch), model.encoder(batch))


def test_longest_text_without_a_limit_of_the_task(tmp_path, tokenizer_dirs):
    """RoBERTa has 66 rows of positions and uses those from the third on."""
    folder = export(tmp_path, random_model(CONFIGS["roberta"], nn.Identity()), tokenizer_dirs, pooling="mean")
    assert json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"] == 64


@pytest.mark.parametrize(
    ("head", "record"), [(nn.Linear(32, 8), {"pooling": "mean"}), (nn.Identity(), {"pooling": "max"})]
)
def test_vectors_that_the_library_cannot_compute_are_not_promised(head, record, tmp_path, tokenizer_dirs):
    folder = export(tmp_path, random_model(CONFIGS["bert"], head), tokenizer_dirs, **record)
    assert not (folder / "modules.json").exists()
    assert set(load_pretrained(str(folder)).heads) == {name for name, _ in head.named_parameters()}


TEXTS = ["a b c", "d", "a b c d e f g h a b c d e f g h", "zzz"]


def published(tmp_path, tokenizer_dirs, **record):
    """Returns a folder as others publish it: without the record of Cloze."""
    folder = export(tmp_path, random_model(CONFIGS["bert"], nn.Identity()), tokenizer_dirs, **record)
    (folder / "cloze.json").unlink()
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return folder


def predicted(folder, *overrides):
    """Returns the vectors that `framework.predict` writes for the texts."""
    output = folder.parent / "vectors.npy"
    given = [f"run={folder}", f"input={folder.parent / 'texts.jsonl'}", f"output={output}", "precision=fp32"]
    framework.predict.run([*given, *overrides])
    return np.load(output)


@pytest.mark.parametrize(("pooling", "normalize"), [("cls", True), ("mean", False)])
def test_vectors_of_a_published_model_equal_those_of_the_library(pooling, normalize, tmp_path, tokenizer_dirs):
    library = pytest.importorskip("sentence_transformers")
    prompts = {"query": "a c ", "document": "d "}
    record = {"pooling": pooling, "normalize": normalize, "max_length": 9, "prompts": prompts}
    folder = published(tmp_path, tokenizer_dirs, **record)
    peer = library.SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(predicted(folder), peer.encode_query(TEXTS), rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(
        predicted(folder, "task={side: document}"), peer.encode_document(TEXTS), rtol=1e-5, atol=2e-6
    )
    # As version 6 of the library writes it.
    peer.save(str(tmp_path / "saved"))
    np.testing.assert_allclose(predicted(tmp_path / "saved"), peer.encode_query(TEXTS), rtol=1e-5, atol=2e-6)
    with pytest.raises(ConfigError, match=r"`task\.pooling` is fixed by the training"):
        predicted(folder, "task={pooling: mean}")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "1_Pooling/config.json",
            {"pooling_mode_max_tokens": True},
            "1_Pooling/config.json pools by max_tokens. Cloze",
        ),
        ("1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}, "pools by cls and mean. Cloze"),
        ("modules.json", [{"type": "a.Transformer"}, {"type": "a.Pooling"}, {"type": "a.Dense"}], "Pooling, Dense. "),
        ("modules.json", {"a": 1}, "modules.json is damaged"),
    ],
)
def test_published_vectors_that_cloze_lacks_are_refused(name, content, message, tmp_path, tokenizer_dirs):
    folder = published(tmp_path, tokenizer_dirs, pooling="mean")
    (folder / name).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        predicted(folder)
