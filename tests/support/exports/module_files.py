"""Follows the modules.json of an export with transformers alone, as sentence-transformers does."""

import json

import torch
import transformers

from tests.support.exports.small_exports import load_peer


def embed_by_the_files(folder, inputs):
    """Applies the modules of modules.json in order, each on the previous output, as sentence-transformers does."""
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
