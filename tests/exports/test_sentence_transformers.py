"""An embedding model is exported so that following modules.json with transformers alone gives its vectors."""

import json

import pytest
import torch
import transformers
from torch import nn
from torch.testing import assert_close

from framework.data.tokenization.tokenizer import TOKENIZER_KEY
from framework.exports.huggingface import export_huggingface
from framework.models.encoder import TransformerEncoder
from framework.published.pretrained import load_pretrained
from framework.tasks.pooling import POOLINGS
from tests.checkpoint.small_exports import CONFIGS, load_peer
from tests.exports.test_huggingface_heads import both_forms, build

FAMILIES = list(CONFIGS)


def export(tmp_path, model, tokenizer_dirs, **side):
    config = model.encoder.config
    folder = tmp_path / "export"
    export_huggingface(folder, config, model.state_dict(), "embedding", tokenizer_dirs[config.family], side)
    return folder


def embed_by_the_files(folder, inputs):
    """What sentence-transformers does: each module of modules.json on what the one before gave."""
    kinds = {"Transformer": run_transformer, "Pooling": pool, "Normalize": normalize}
    x = inputs
    modules = json.loads((folder / "modules.json").read_text())
    assert [module["idx"] for module in modules] == list(range(len(modules)))
    for module in modules:
        package, _, name = module["type"].rpartition(".")
        assert package == "sentence_transformers.models"
        x = kinds[name](folder / module["path"], inputs, x)
    return x


def run_transformer(folder, inputs, x):
    del x
    peer, _ = load_peer(transformers.AutoModel, folder)
    return peer(**inputs).last_hidden_state


def pool(folder, inputs, x):
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("word_embedding_dimension") == x.shape[-1]
    (mode,) = [key for key, is_on in config.items() if is_on]
    if mode == "pooling_mode_cls_token":
        return x[:, 0]
    assert mode == "pooling_mode_mean_tokens"
    return torch.stack([row[mask.bool()].mean(0) for row, mask in zip(x, inputs["attention_mask"], strict=True)])


def normalize(folder, inputs, x):
    del folder, inputs
    return x / x.pow(2).sum(-1, keepdim=True).sqrt()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("is_normalized", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_embeddings_by_the_files(family, is_normalized, pooling, tmp_path, tokenizer_dirs):
    model = build(CONFIGS[family], nn.Identity())
    side = {"pooling": pooling, "normalize": is_normalized, "max_length": 48}
    folder = export(tmp_path, model, tokenizer_dirs, **side)
    batch, inputs = both_forms(family)
    expected = POOLINGS[pooling](model.encoder(batch), batch)
    if is_normalized:
        expected = nn.functional.normalize(expected, dim=-1)
    assert_close(embed_by_the_files(folder, inputs), expected, atol=1e-5, rtol=1e-5)
    assert json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"] == 48
    assert json.loads((folder / "config_sentence_transformers.json").read_text())["default_prompt_name"] is None
    again = load_pretrained(str(folder))
    kept = {key: value for key, value in again.side.items() if key != TOKENIZER_KEY}
    assert (again.head_kind, kept) == ("embedding", side)
    encoder = TransformerEncoder(again.config)
    encoder.load_state_dict(dict(again.encoder))
    assert torch.equal(encoder(batch), model.encoder(batch))


def test_longest_text_without_a_limit_of_the_task(tmp_path, tokenizer_dirs):
    """RoBERTa has 66 rows of positions and uses those from the third on."""
    folder = export(tmp_path, build(CONFIGS["roberta"], nn.Identity()), tokenizer_dirs, pooling="mean")
    assert json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"] == 64


@pytest.mark.parametrize(
    ("head", "side"), [(nn.Linear(32, 8), {"pooling": "mean"}), (nn.Identity(), {"pooling": "max"})]
)
def test_vectors_that_the_library_could_not_give_are_not_promised(head, side, tmp_path, tokenizer_dirs):
    folder = export(tmp_path, build(CONFIGS["bert"], head), tokenizer_dirs, **side)
    assert not (folder / "modules.json").exists()
    assert set(load_pretrained(str(folder)).heads) == {name for name, _ in head.named_parameters()}
