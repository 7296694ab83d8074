"""peft loads a LoRA run and computes the same; so does the merged export; the base alone does not."""

import json
from fnmatch import fnmatchcase

import pytest
import torch
import transformers
from torch.testing import assert_close

from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import CheckpointError
from framework.exports.adapters import TrainedAdapter, export_adapter
from framework.exports.huggingface import export_huggingface
from framework.nn.lora import LoraSettings, apply_lora, is_update, merge_lora
from tests.support.exports.random_models import TOLERANCE, random_model_of_kind
from tests.support.exports.small_exports import CONFIGS, make_tokenizer
from tests.support.models import peers

peft = pytest.importorskip("peft")

RECORD = {"labels": list(peers.LABELS), "pooling": "cls"}
ATTENTION = ("query", "key", "value", "output")
CASES = [
    ("bert", ("query", "value"), ("head.*",)),
    ("bert", (*ATTENTION, "up", "down"), ("head.*", "encoder.layers.1.attention_norm.weight")),
    ("roberta", ATTENTION, ("head.*",)),
    ("modernbert", ("query", "value"), ("head.*",)),
    ("modernbert", (*ATTENTION, "gate", "up", "down"), ("head.*", "encoder.final_norm.*")),
    ("modernbert", ("up",), ("head.*",)),
]


def adapted(family: str, settings: LoraSettings, kind: str = "cls"):
    """Builds a trained model with updates (random values everywhere), and the base from which it might have started."""
    model = random_model_of_kind(CONFIGS[family], kind)
    apply_lora(model.encoder.layers, CONFIGS[family].num_heads, settings)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_update(name):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    base = random_model_of_kind(CONFIGS[family], kind, seed=9)
    frozen = {
        name: value
        for name, value in model.state_dict().items()
        if not is_update(name) and not any(fnmatchcase(name, pattern) for pattern in settings.train_also)
    }
    base.load_state_dict(frozen, strict=False)
    return model, base


def write(folder, family, model, settings, tokenizer_dir, base=None, record=RECORD):
    adapter = TrainedAdapter(settings, model.state_dict(), base)
    tokenizer = Tokenizer.from_folder(tokenizer_dir)
    export_adapter(folder, CONFIGS[family], adapter, "sequence_classification", tokenizer, record)


@pytest.mark.parametrize(("family", "targets", "train_also"), CASES)
@torch.no_grad()
def test_peft_computes_the_outputs_of_the_adapted_model(family, targets, train_also, tmp_path):
    config = CONFIGS[family]
    settings = LoraSettings(rank=3, alpha=4.5, targets=targets, train_also=train_also)
    model, base = adapted(family, settings)
    tokenizer_dir = tmp_path / "tokenizer"
    tokenizer_dir.mkdir()
    make_tokenizer(tokenizer_dir, config.pad_token_id)
    export_huggingface(tmp_path / "base", config, base.state_dict(), "sequence_classification", tokenizer_dir, RECORD)
    write(tmp_path / "adapter", family, model, settings, tokenizer_dir, base=str(tmp_path / "base"))

    ids = peers.sequences()
    token_types = peers.segments(ids) if family == "bert" else None
    batch, inputs = peers.pack(ids, token_types), peers.pad(ids, config.pad_token_id, token_types)
    expected = model(batch)["logits"]
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    plain = load(tmp_path / "base").eval()
    assert not torch.allclose(plain(**inputs).logits, expected, atol=1e-2)
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    assert_close(loaded(**inputs).logits, expected, **TOLERANCE)
    by_name = peft.AutoPeftModelForSequenceClassification.from_pretrained(
        tmp_path / "adapter", num_labels=len(peers.LABELS)
    )
    assert_close(by_name.eval()(**inputs).logits, expected, **TOLERANCE)

    merged = merge_lora(model.state_dict(), config.num_heads, settings)
    export_huggingface(tmp_path / "merged", config, merged, "sequence_classification", tokenizer_dir, RECORD)
    assert_close(load(tmp_path / "merged").eval()(**inputs).logits, expected, **TOLERANCE)


def test_bert_has_the_targets_and_the_rank_of_the_config(tmp_path):
    settings = LoraSettings(rank=3, alpha=4.5, targets=("query", "value"))
    model, _ = adapted("bert", settings)
    write(tmp_path / "adapter", "bert", model, settings, make_tokenizer(tmp_path, 0), base="some/bert")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert {name.rpartition(".")[2] for name in config["target_modules"]} == {"query", "value"}
    assert len(config["target_modules"]) == 2 * CONFIGS["bert"].num_layers
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (3, 4.5, {})
    assert config["modules_to_save"] == ["bert.pooler", "classifier"]
    assert config["base_model_name_or_path"] == "some/bert"
    assert (tmp_path / "adapter" / "tokenizer.json").is_file()


def test_models_that_peft_cannot_represent_are_rejected(tmp_path):
    tokenizer_dir = make_tokenizer(tmp_path, 0)
    settings = LoraSettings(rank=3, alpha=4.5, targets=("query",))
    for kind, record, words in (
        (
            "mean",
            {**RECORD, "pooling": "mean"},
            r"task\.pooling is mean, .* with task\.pooling=cls, or use lora=merge",
        ),
        ("mlm", RECORD, "The head's decoder shares the word embeddings"),
    ):
        model, _ = adapted("bert", settings, kind)
        with pytest.raises(CheckpointError, match=words):
            write(tmp_path / "adapter", "bert", model, settings, tokenizer_dir, record=record)
    beside = LoraSettings(rank=3, alpha=4.5, targets=("output",), train_also=("*.attention.output.bias",))
    model, _ = adapted("bert", beside)
    with pytest.raises(CheckpointError, match=r"layer\.0\.attention\.output\.dense was trained in addition to"):
        write(tmp_path / "adapter", "bert", model, beside, tokenizer_dir)
    assert not (tmp_path / "adapter").exists()


def test_a_folder_with_other_content_is_not_changed(tmp_path):
    settings = LoraSettings(rank=3, alpha=4.5, targets=("query",))
    model, _ = adapted("bert", settings)
    tokenizer_dir = make_tokenizer(tmp_path, 0)
    with pytest.raises(CheckpointError, match="exists and is not an adapter"):
        write(tmp_path, "bert", model, settings, tokenizer_dir)
    for _ in range(2):  # an earlier adapter is replaced
        write(tmp_path / "adapter", "bert", model, settings, tokenizer_dir)
