"""transformers loads an export completely and computes the same, and Cloze reads it back bit for bit."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from torch.testing import assert_close

from framework.errors import CheckpointError
from framework.exports.huggingface import export_huggingface
from framework.models.config import EncoderConfig
from framework.published.pretrained import load_pretrained
from tests.support.exports.random_models import TOLERANCE, random_model_of_kind
from tests.support.exports.small_exports import CONFIGS, load_peer
from tests.support.models import peers
from tests.support.models.loading import load_into

AUTO = {
    "ForPreTraining": transformers.AutoModelForPreTraining,
    "ForMaskedLM": transformers.AutoModelForMaskedLM,
    "ForSequenceClassification": transformers.AutoModelForSequenceClassification,
    "Model": transformers.AutoModel,
}
# family, kind of head, class, tensors without a class
EXPORTS = [
    ("bert", "mlm", "BertForMaskedLM", []),
    ("bert", "mlm+nsp", "BertForPreTraining", []),
    ("bert", "cls", "BertForSequenceClassification", []),
    ("bert", "mean", "ClozeForSequenceClassification", []),
    ("roberta", "mlm", "RobertaForMaskedLM", []),
    (
        "roberta",
        "mlm+nsp",
        "RobertaForMaskedLM",
        ["nsp.bias", "nsp.weight", "pooler.dense.bias", "pooler.dense.weight"],
    ),
    ("roberta", "cls", "RobertaForSequenceClassification", []),
    ("roberta", "mean", "ClozeForSequenceClassification", []),
    ("modernbert", "mlm", "ModernBertForMaskedLM", []),
    (
        "modernbert",
        "mlm+nsp",
        "ModernBertForMaskedLM",
        ["nsp.bias", "nsp.weight", "pooler.dense.bias", "pooler.dense.weight"],
    ),
    ("modernbert", "cls", "ModernBertForSequenceClassification", []),
    ("modernbert", "mean", "ModernBertForSequenceClassification", []),
    ("bert", "cls+none", "ClozeForSequenceClassification", []),
    ("roberta", "mean+none", "ClozeForSequenceClassification", []),
    ("modernbert", "mean+none", "ClozeForSequenceClassification", []),
]


def export(model, config, kind, folder, tokenizer_dirs, **record):
    is_pretraining = kind.startswith("mlm")
    head_kind = "pretraining" if is_pretraining else "sequence_classification"
    if not is_pretraining:
        record = {"labels": list(peers.LABELS), "pooling": kind.partition("+")[0], **record}
    export_huggingface(folder, config, model.state_dict(), head_kind, tokenizer_dirs[config.family], record)


@pytest.mark.parametrize(("family", "kind", "class_name", "without_class"), EXPORTS)
@torch.no_grad()
def test_export_loads_in_transformers_and_can_be_read_back(
    family, kind, class_name, without_class, tmp_path, tokenizer_dirs
):
    config = CONFIGS[family]
    model = random_model_of_kind(config, kind)
    folder = tmp_path / "export"
    export(model, config, kind, folder, tokenizer_dirs)
    (auto,) = (auto for suffix, auto in AUTO.items() if class_name.endswith(suffix))
    peer, report = load_peer(auto, folder)
    assert type(peer).__name__ == class_name
    assert report == {}

    ids = peers.sequences()
    token_types = peers.segments(ids) if family == "bert" else None
    batch, inputs = peers.pack(ids, token_types), peers.pad(ids, config.pad_token_id, token_types)
    expected = peer(**inputs, output_hidden_states=True)
    for mine, theirs in zip(model.encoder.hidden_states(batch), expected.hidden_states, strict=True):
        assert_close(mine, peers.unpadded(theirs, inputs), **TOLERANCE)
    outputs = model(batch)
    if class_name == "BertForPreTraining":
        assert_close(outputs["mlm"], peers.unpadded(expected.prediction_logits, inputs), **TOLERANCE)
        assert_close(outputs["nsp"], expected.seq_relationship_logits, **TOLERANCE)
    elif class_name.endswith("ForMaskedLM"):
        assert_close(outputs["mlm"], peers.unpadded(expected.logits, inputs), **TOLERANCE)
    elif class_name.endswith("ForSequenceClassification"):
        assert_close(outputs["logits"], expected.logits, **TOLERANCE)
        assert peer.config.id2label == dict(enumerate(peers.LABELS))

    record = json.loads((folder / "cloze.json").read_text())
    assert (record["tensors_without_class"] or {"names": []})["names"] == without_class
    assert (folder / "cloze_heads.safetensors").exists() == bool(without_class)
    weights = load_pretrained(str(folder))
    assert weights.config == config
    assert weights.unused == ()
    assert weights.head_kind == record["head"]
    again = random_model_of_kind(config, kind, seed=5)
    assert load_into(again, weights) == []
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@pytest.mark.parametrize("family", CONFIGS)
@torch.no_grad()
def test_base_model_of_a_pretraining_export(family, tmp_path, tokenizer_dirs):
    """AutoModel loads the complete encoder; it omits only heads, and lacks at most a pooler that was never trained."""
    model = random_model_of_kind(CONFIGS[family], "mlm")
    export(model, CONFIGS[family], "mlm", tmp_path / "export", tokenizer_dirs)
    peer, report = load_peer(transformers.AutoModel, tmp_path / "export")
    pooler = set() if family == "modernbert" else {"pooler.dense.weight", "pooler.dense.bias"}
    assert report.pop("missing_keys", set()) == pooler
    assert all(
        name.startswith(("cls.", "lm_head.", "head.", "decoder.")) for name in report.pop("unexpected_keys", set())
    )
    assert report == {}
    ids = peers.sequences()
    inputs = peers.pad(ids, CONFIGS[family].pad_token_id)
    assert_close(model.encoder(peers.pack(ids)), peers.unpadded(peer(**inputs).last_hidden_state, inputs), **TOLERANCE)


@pytest.mark.parametrize("family", CONFIGS)
def test_tokenizer_of_an_export(family, tmp_path, tokenizer_dirs):
    config = CONFIGS[family]
    export(random_model_of_kind(config, "cls"), config, "cls", tmp_path / "export", tokenizer_dirs)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    assert tokenizer("a b", "c")["input_ids"] == [2, 5, 6, 3, 7, 3]
    assert tokenizer.mask_token_id == 4
    assert not (tmp_path / "export" / "notes.txt").exists()
    assert load_pretrained(str(tmp_path / "export")).tokenizer_dir == tmp_path / "export"


@pytest.mark.parametrize("family", ["bert", "roberta"])
@torch.no_grad()
def test_encoder_without_segments_gets_a_table_of_zeros(family, tmp_path, tokenizer_dirs):
    settings = {name: getattr(CONFIGS[family], name) for name in CONFIGS[family].__dataclass_fields__}
    config = EncoderConfig(**(settings | {"type_vocab_size": 0}))
    model = random_model_of_kind(config, "mlm")
    export(model, config, "mlm", tmp_path / "export", tokenizer_dirs)
    peer, report = load_peer(transformers.AutoModelForMaskedLM, tmp_path / "export")
    assert report == {}
    ids = peers.sequences()
    inputs = peers.pad(ids, config.pad_token_id)
    assert_close(model(peers.pack(ids))["mlm"], peers.unpadded(peer(**inputs).logits, inputs), **TOLERANCE)
    weights = load_pretrained(str(tmp_path / "export"))
    assert weights.config == config
    again = random_model_of_kind(config, "mlm", seed=5)
    assert load_into(again, weights) == []
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("family", "change", "named"),
    [
        ("bert", {"norm_placement": "pre"}, "norm_placement"),
        ("bert", {"gated": True}, "gated"),
        ("bert", {"bias": False}, "bias"),
        ("bert", {"local_attention_window": 16, "global_attention_every": 2}, "local_attention_window"),
        ("bert", {"position_encoding": "rotary"}, "position_encoding"),
        ("roberta", {"position_offset": 0}, "position_offset"),
        ("modernbert", {"type_vocab_size": 2}, "type_vocab_size"),
        ("modernbert", {"norm_placement": "post"}, "norm_placement"),
    ],
)
def test_encoder_without_a_class_is_rejected(family, change, named, tmp_path, tokenizer_dirs):
    settings = {name: getattr(CONFIGS[family], name) for name in CONFIGS[family].__dataclass_fields__}
    config = EncoderConfig(**(settings | change))
    with pytest.raises(CheckpointError, match=f"model.{named}=.*no class in Hugging Face"):
        export(random_model_of_kind(config, "mlm"), config, "mlm", tmp_path / "export", tokenizer_dirs)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_others_is_not_changed(tmp_path, tokenizer_dirs):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="is not an export of Cloze"):
        export(random_model_of_kind(CONFIGS["bert"], "mlm"), CONFIGS["bert"], "mlm", folder, tokenizer_dirs)
    assert [path.name for path in tmp_path.rglob("*")] == ["thesis", "chapter.txt"]


def test_earlier_export_is_replaced(tmp_path, tokenizer_dirs):
    folder = tmp_path / "export"
    export(random_model_of_kind(CONFIGS["roberta"], "mlm+nsp"), CONFIGS["roberta"], "mlm+nsp", folder, tokenizer_dirs)
    model = random_model_of_kind(CONFIGS["bert"], "cls", seed=2)
    export(model, CONFIGS["bert"], "cls", folder, tokenizer_dirs)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    assert not (folder / "cloze_heads.safetensors").exists()
    assert torch.equal(load_pretrained(str(folder)).heads["classifier.weight"], model.head.classifier.weight)


def test_failed_export_keeps_the_earlier_one(tmp_path, tokenizer_dirs):
    folder = tmp_path / "export"
    export(random_model_of_kind(CONFIGS["bert"], "mlm"), CONFIGS["bert"], "mlm", folder, tokenizer_dirs)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        export(random_model_of_kind(CONFIGS["bert"], "cls"), CONFIGS["bert"], "cls", folder, {"bert": tmp_path})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_the_number_of_labels_must_equal_that_of_scores(tmp_path, tokenizer_dirs):
    with pytest.raises(CheckpointError, match=r"There are 2 labels .* but 3 scores"):
        export(
            random_model_of_kind(CONFIGS["bert"], "cls"),
            CONFIGS["bert"],
            "cls",
            tmp_path / "e",
            tokenizer_dirs,
            labels=["a", "b"],
        )


def test_tokenizer_of_another_model(tmp_path, tokenizer_dirs):
    config = replace(CONFIGS["bert"], vocab_size=12)
    with pytest.raises(CheckpointError, match="has 13 tokens, but the model's vocab_size is 12"):
        export(random_model_of_kind(config, "mlm"), config, "mlm", tmp_path / "export", tokenizer_dirs)
    assert list(tmp_path.iterdir()) == []


def test_special_tokens_in_the_config(tmp_path, tokenizer_dirs):
    """ModernBERT's own defaults exceed a small vocabulary."""
    config = CONFIGS["modernbert"]
    export(random_model_of_kind(config, "mlm"), config, "mlm", tmp_path / "export", tokenizer_dirs)
    published = transformers.AutoConfig.from_pretrained(tmp_path / "export")
    ids = [published.pad_token_id, published.cls_token_id, published.sep_token_id, published.bos_token_id]
    assert [*ids, published.eos_token_id] == [0, 2, 3, 2, 3]
