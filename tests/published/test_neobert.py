"""NeoBERT, which has no class in transformers: weights in its layout give the outputs of its formulas."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from framework.errors import CheckpointError
from framework.exports.huggingface import export_huggingface
from framework.published.pretrained import load_pretrained
from framework.tasks.pretraining.head import build_pretraining_head
from framework.tasks.sequence_classification.head import build_sequence_classification_head
from framework.tasks.task import TaskModel
from tests.support.exports.small_exports import make_tokenizer
from tests.support.models import peers
from tests.support.models.loading import load_into

HEADS, HIDDEN, LAYERS, INNER = 4, 32, 2, 48
CONFIG = {
    "model_type": "neobert",
    "architectures": ["NeoBERTForSequenceClassification"],
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 66,
    "norm_eps": 1e-6,
    "vocab_size": 99,
    "max_length": 64,
    "id2label": {"0": "bad", "1": "good"},
}


def make_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"encoder.weight": (99, HIDDEN), "layer_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        name = f"transformer_encoder.{layer}"
        shapes |= {
            f"{name}.qkv.weight": (3 * HIDDEN, HIDDEN),
            f"{name}.wo.weight": (HIDDEN, HIDDEN),
            f"{name}.ffn.w12.weight": (2 * INNER, HIDDEN),
            f"{name}.ffn.w3.weight": (HIDDEN, INNER),
            f"{name}.attention_norm.weight": (HIDDEN,),
            f"{name}.ffn_norm.weight": (HIDDEN,),
        }
    tensors = {f"model.{name}": 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    heads = {"dense": (HIDDEN, HIDDEN), "classifier": (2, HIDDEN)}
    for name, shape in heads.items():
        tensors[f"{name}.weight"] = torch.randn(shape, generator=generator)
        tensors[f"{name}.bias"] = torch.randn(shape[0], generator=generator)
    return tensors


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * weight


def rotated(x: Tensor) -> Tensor:
    """Rotates neighbouring channels as complex numbers: (length, heads, head_dim)."""
    length, _, size = x.shape
    angles = torch.outer(torch.arange(length), 1 / 10000 ** (torch.arange(0, size, 2) / size))
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(torch.ones(1), angles)[:, None]
    return torch.view_as_real(turned).flatten(-2)


def neobert(tensors: dict[str, Tensor], ids: Tensor) -> Tensor:
    """Computes the hidden states (length, hidden) of one sequence."""
    x = tensors["model.encoder.weight"][ids]
    for layer in range(LAYERS):
        own = {name.split(f"transformer_encoder.{layer}.")[-1]: tensor for name, tensor in tensors.items()}
        qkv = rms(x, own["attention_norm.weight"]) @ own["qkv.weight"].T
        query, key, value = qkv.unflatten(-1, (HEADS, -1)).chunk(3, dim=-1)
        query, key = rotated(query), rotated(key)
        weights = (torch.einsum("ihd,jhd->hij", query, key) / (HIDDEN // HEADS) ** 0.5).softmax(-1)
        x = x + torch.einsum("hij,jhd->ihd", weights, value).flatten(1) @ own["wo.weight"].T
        gate, up = (rms(x, own["ffn_norm.weight"]) @ own["ffn.w12.weight"].T).chunk(2, dim=-1)
        x = x + (functional.silu(gate) * up) @ own["ffn.w3.weight"].T
    return rms(x, tensors["model.layer_norm.weight"])


@pytest.fixture
def folder(tmp_path):
    save_file(make_tensors(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


@torch.no_grad()
def test_scores_and_hidden_states_and_the_way_back(folder):
    tensors = make_tensors()
    weights = load_pretrained(str(folder))
    assert (weights.head_kind, weights.unused) == ("sequence_classification", ())
    assert weights.config.intermediate_size == 48  # two thirds of 66 are 44, and 48 is the next multiple of 8
    model = TaskModel(peers.encoder_of(weights), build_sequence_classification_head(weights.config, 2))
    assert load_into(model, weights) == []
    ids = peers.sequences()
    batch = peers.pack(ids)
    states = [neobert(tensors, each) for each in ids]
    assert_close(model.encoder(batch), torch.cat(states), rtol=1e-4, atol=1e-4)
    pooled = torch.stack([each[0] for each in states])
    scores = torch.tanh(functional.linear(pooled, tensors["dense.weight"], tensors["dense.bias"]))
    scores = functional.linear(scores, tensors["classifier.weight"], tensors["classifier.bias"])
    assert_close(model(batch)["logits"], scores, rtol=1e-4, atol=1e-4)

    (folder / "tokenizer").mkdir()
    tokenizer = make_tokenizer(folder / "tokenizer", 0)
    export = folder / "export"
    kind, record = "sequence_classification", dict(weights.task_record)
    export_huggingface(export, weights.config, model.state_dict(), kind, tokenizer, record)
    written = json.loads((export / "config.json").read_text())
    assert written["auto_map"]["AutoModelForSequenceClassification"].startswith("chandar-lab/NeoBERT--model.")
    again = load_pretrained(str(export))
    assert peers.same(again, weights)
    (export / "cloze.json").unlink()
    assert peers.same(load_pretrained(str(export)), weights)


@torch.no_grad()
def test_scores_of_words_have_a_decoder_of_their_own(folder):
    tensors = {name: tensor for name, tensor in make_tensors().items() if name.startswith("model.")}
    generator = torch.Generator().manual_seed(1)
    decoder = torch.randn(99, HIDDEN, generator=generator), torch.randn(99, generator=generator)
    tensors |= {"decoder.weight": decoder[0], "decoder.bias": decoder[1]}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**CONFIG, "architectures": ["NeoBERTLMHead"]}))
    weights = load_pretrained(str(folder))
    assert (weights.head_kind, weights.unused) == ("pretraining", ())
    encoder = peers.encoder_of(weights)
    model = TaskModel(encoder, build_pretraining_head(encoder, weights.config, nsp=False))
    assert load_into(model, weights) == []
    ids = peers.sequences()
    expected = torch.cat([functional.linear(neobert(tensors, each), *decoder) for each in ids])
    assert_close(model.head.mlm(model.encoder(peers.pack(ids))), expected, rtol=1e-4, atol=1e-3)
    (folder / "tokenizer").mkdir()
    export, tokenizer = folder / "export", make_tokenizer(folder / "tokenizer", 0)
    export_huggingface(export, weights.config, model.state_dict(), "pretraining", tokenizer, {})
    written = json.loads((export / "config.json").read_text())
    assert (written["architectures"], written["tie_word_embeddings"]) == (["NeoBERTLMHead"], False)
    (export / "cloze.json").unlink()
    assert peers.same(load_pretrained(str(export)), weights)


def test_another_pooling_is_exported_beside_the_encoder(folder):
    weights = load_pretrained(str(folder))
    model = TaskModel(peers.encoder_of(weights), build_sequence_classification_head(weights.config, 2, "mean"))
    (folder / "tokenizer").mkdir()
    tokenizer = make_tokenizer(folder / "tokenizer", 0)
    record = {"pooling": "mean", "labels": ["bad", "good"]}
    export = folder / "export"
    export_huggingface(export, weights.config, model.state_dict(), "sequence_classification", tokenizer, record)
    assert not (export / "modeling_cloze.py").exists()
    again = load_pretrained(str(export))
    assert again.head_kind == "sequence_classification"
    assert torch.equal(again.heads["classifier.weight"], model.head.classifier.weight)


def test_a_width_that_the_class_lacks(folder):
    weights = load_pretrained(str(folder))
    state = {f"encoder.{name}": tensor for name, tensor in weights.encoder.items()}
    config = dataclasses.replace(weights.config, intermediate_size=44)
    (folder / "tokenizer").mkdir()
    with pytest.raises(CheckpointError, match="intermediate_size is 44"):
        export_huggingface(folder / "export", config, state, "embedding", make_tokenizer(folder / "tokenizer", 0), {})
