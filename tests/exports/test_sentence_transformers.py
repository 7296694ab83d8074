"""An exported embedding model gives its vectors if modules.json is followed with transformers alone."""

import json

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from framework.data.tokenization.tokenizer import TOKENIZER_KEY
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
