"""Adapters that peft wrote compute the same in Cloze."""

import json

import pytest
import torch
import transformers
from torch.testing import assert_close

from framework.errors import CheckpointError
from framework.exports.huggingface import export_huggingface
from framework.exports.peft_folder import read_peft_folder
from framework.nn.lora import merge_lora
from framework.published.pretrained import load_pretrained
from tests.support.exports.random_models import random_model_of_kind
from tests.support.exports.small_exports import CONFIGS, make_tokenizer
from tests.support.models import peers

peft = pytest.importorskip("peft")

RECORD = {"labels": list(peers.LABELS), "pooling": "cls"}
CASES = [
    ("bert", {"target_modules": ["query", "value", "intermediate.dense"], "rank_pattern": {"layer.1.*query": 2}}),
    ("roberta", {"target_modules": ["key", "attention.output.dense"], "use_rslora": True}),
    ("modernbert", {"target_modules": ["Wqkv", "Wi", "Wo"], "alpha_pattern": {"layers.0.attn.Wqkv": 9}}),
]


def write_adapter(folder, family, **settings):
    """Writes a base and an adapter of peft; returns the model of peft."""
    config = CONFIGS[family]
    base = random_model_of_kind(config, "cls")
    tokenizer_dir = folder / "tokenizer"
    tokenizer_dir.mkdir()
    make_tokenizer(tokenizer_dir, config.pad_token_id)
    export_huggingface(folder / "base", config, base.state_dict(), "sequence_classification", tokenizer_dir, RECORD)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "base")
    given = peft.LoraConfig(task_type="SEQ_CLS", r=3, lora_alpha=5, init_lora_weights=False, **settings)
    torch.manual_seed(0)
    model = peft.get_peft_model(plain, given).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.normal_()
    model.save_pretrained(folder / "adapter")
    return model


@pytest.mark.parametrize(("family", "settings"), CASES)
@torch.no_grad()
def test_logits_equal_those_of_peft(family, settings, tmp_path):
    config = CONFIGS[family]
    model = write_adapter(tmp_path, family, **settings)
    adapter, weights = read_peft_folder(tmp_path / "adapter", load_pretrained(str(tmp_path / "base")))
    assert (weights.head_kind, weights.task_record["labels"][0]) == ("sequence_classification", "LABEL_0")
    own = random_model_of_kind(config, "cls", seed=9)
    state = {f"encoder.{name}": tensor for name, tensor in weights.encoder.items()} | dict(adapter.state)
    state |= {f"head.{name}": tensor for name, tensor in weights.heads.items()}
    own.load_state_dict(merge_lora(state, config.num_heads, adapter.settings))
    ids = peers.sequences()
    inputs = peers.pad(ids, config.pad_token_id, None)
    expected = model(**inputs).logits
    with model.disable_adapter():
        assert not torch.allclose(model(**inputs).logits, expected, atol=1e-2)
    # The random updates are large.
    assert_close(own(peers.pack(ids, None))["logits"], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        (
            {"target_modules": ["query"], "modules_to_save": ["word_embeddings"]},
            {},
            "adapter also trained .*word_embed",
        ),
        ({"target_modules": ["query", "pooler.dense"]}, {}, "adapter has an update of pooler.dense"),
        ({"target_modules": ["query"]}, {"peft_type": "IA3"}, "has peft_type='IA3'. Cloze reads plain LoRA"),
        ({"target_modules": ["query"]}, {"use_dora": True}, "has use_dora=True. Cloze reads plain LoRA"),
        ({"target_modules": ["query"]}, None, "adapter has no adapter_model.safetensors"),
    ],
)
def test_adapters_that_cannot_be_read(settings, changes, message, tmp_path):
    write_adapter(tmp_path, "bert", **settings)
    file = tmp_path / "adapter" / "adapter_config.json"
    if changes is None:
        (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    else:
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    with pytest.raises(CheckpointError, match=message):
        read_peft_folder(tmp_path / "adapter", load_pretrained(str(tmp_path / "base")))
