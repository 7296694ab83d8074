"""Published folders and hub names in all their forms, and the errors for those that cannot be loaded."""

import json
import os
import pickle

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from framework.errors import CheckpointError
from framework.published.families import FAMILIES
from framework.published.pretrained import load_pretrained
from framework.tasks.pretraining.head import build_pretraining_head
from framework.tasks.task import TaskModel
from tests.support.models import peers
from tests.support.models.loading import load_into


def test_prefixes_old_norm_names_and_buffers(folder, weights):
    def as_first_checkpoints(tensors):
        renamed = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in tensors.items()
        }
        return renamed | {"bert.embeddings.position_ids": torch.arange(64)[None]}

    peers.edit_tensors(folder, as_first_checkpoints)
    again = load_pretrained(str(folder))
    assert again.unused == ()
    assert peers.same(again, weights)
    peers.edit_tensors(folder, lambda tensors: {name.removeprefix("bert."): tensor for name, tensor in tensors.items()})
    assert peers.same(load_pretrained(str(folder)), weights)


def test_half_precision_becomes_fp32(folder, weights):
    peers.edit_tensors(folder, lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})
    again = load_pretrained(str(folder))
    name = "layers.0.feed_forward.up.weight"
    assert again.encoder[name].dtype == torch.float32
    assert torch.equal(again.encoder[name], weights.encoder[name].bfloat16().float())


def shard(folder, file_name, save):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem, suffix = file_name.split(".")
    names, weight_map = sorted(tensors), {}
    for index, part in enumerate((names[::2], names[1::2])):
        shard_name = f"{stem}-0000{index + 1}-of-00002.{suffix}"
        save({name: tensors[name] for name in part}, folder / shard_name)
        weight_map |= dict.fromkeys(part, shard_name)
    (folder / f"{file_name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize(("file_name", "save"), [("model.safetensors", save_file), ("pytorch_model.bin", torch.save)])
def test_shards(file_name, save, folder, weights):
    shard(folder, file_name, save)
    assert peers.same(load_pretrained(str(folder)), weights)
    next(folder.glob("*-00002-of-00002*")).unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00002.*not a file of its folder"):
        load_pretrained(str(folder))


def test_an_index_that_points_outside_its_folder(folder):
    (folder / "model.safetensors").rename(folder.parent / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"'\.\./other.safetensors', which is not a file of its folder"):
        load_pretrained(str(folder))


def test_a_plain_pickle_is_read_and_another_is_not_executed(folder, weights):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert peers.same(load_pretrained(str(folder)), weights)

    witness = folder / "witness"

    class Command:
        def __reduce__(self):
            return os.mkdir, (str(witness),)

    torch.save({"a": Command()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="damaged or holds more than tensors, so it is not loaded"):
        load_pretrained(str(folder))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Command(), protocol=2))
    with pytest.raises(CheckpointError, match="damaged or holds more than tensors, so it is not loaded"):
        load_pretrained(str(folder))
    assert not witness.exists()


def test_an_untied_decoder_is_named_and_omitted(folder):
    def untie(tensors):
        return tensors | {"cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"] + 1}

    peers.edit_tensors(folder, untie)
    again = load_pretrained(str(folder))
    assert again.unused == ("cls.predictions.decoder.weight",)
    assert not any(name.startswith("mlm.") for name in again.heads)


def change(**changes):
    return lambda folder: peers.edit_config(folder, **changes)


def drop_tensor(folder):
    peers.edit_tensors(
        folder, lambda tensors: {n: t for n, t in tensors.items() if "layer.2.output.dense.weight" not in n}
    )


def cut_file(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


BAD_FOLDERS = [
    (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as JSON"),
    (lambda folder: (folder / "config.json").write_text("[]"), "cannot be read as JSON .list instead of an object"),
    (lambda folder: (folder / "model.safetensors").unlink(), "has neither model.safetensors nor"),
    (cut_file, "not a complete safetensors file"),
    (drop_tensor, r"lacks 1 of \d+ weights of its encoder, for example layers.2.feed_forward.down.weight"),
    (change(model_type="gpt2"), "model_type='gpt2'. Known families are bert, roberta"),
    (change(vocab_size=100), r"word_embeddings.weight with shape \(99, 32\), but its config requires \(100, 32\)"),
    (change(num_attention_heads=5), "num_heads is 5, which does not divide"),
    (change(hidden_size="wide"), "describes no encoder"),
    (change(hidden_act="mish"), "activation 'mish' is not known"),
    (change(is_decoder=True), "no decoder can be read"),
    (change(alibi_starting_size=512), "alibi_starting_size is set, as in MosaicBERT"),
    (change(position_embedding_type="relative_key"), "Only 'absolute' positions"),
    (lambda folder: (folder / "cloze.json").write_text('{"format": 99}'), "format=99 is unknown"),
    (lambda folder: (folder / "cloze.json").write_text('{"format": 1, "encoder": {"x": 1}}'), "describes no encoder"),
]


@pytest.mark.parametrize(("damage", "message"), BAD_FOLDERS)
def test_bad_folder(damage, message, folder):
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(str(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layer_types": ["full_attention", "full_attention", "sliding_attention", "full_attention"]},
            "first of every N",
        ),
        ({"layer_types": ["sliding_attention"] * 4}, "first of every N"),
        ({"mlp_bias": True}, "must have biases or none"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn", "rope_theta": 1.0}}}, "rope_type='yarn'"),
    ],
)
def test_bad_modernbert(changes, message, tmp_path):
    peers.peer("ModernBertModel", "modernbert").save_pretrained(tmp_path)
    peers.edit_config(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(str(tmp_path))


def test_a_source_that_is_no_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source, message in (
        (str(folder / "config.json"), "is a file"),
        (str(tmp_path / "nothing"), "does not exist"),
        ("./nothing", "does not exist"),
        ("a/b/c", "does not exist"),
        ("../up", "does not exist"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_pretrained(source)


def test_hub_name_without_network(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        CheckpointError,
        match="'some/model' is not a local folder and could not be downloaded from the Hugging Face Hub",
    ):
        load_pretrained("some/model")
    with pytest.raises(CheckpointError, match="'some/mo--del' is not a local folder"):
        load_pretrained("some/mo--del")


def test_hub_name_in_the_cache(monkeypatch, tmp_path, folder, weights):
    revision = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache" / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    (repository / "snapshots").mkdir()
    folder.rename(repository / "snapshots" / revision)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    again = load_pretrained("some/model")
    assert again.source == "some/model"
    assert peers.same(again, weights)


@pytest.mark.parametrize("family", ["xlm-roberta", "distilbert", "electra", "mpnet", "deberta-v2"])
def test_an_old_layout_of_every_part(family, tmp_path):
    """Old names of norms, no prefix, buffers, half precision, and pickles in shards."""
    name = FAMILIES[family].class_prefix + "ForMaskedLM"
    peers.peer(name, family).half().save_pretrained(tmp_path)
    expected = load_pretrained(str(tmp_path))

    def as_old(tensor_name: str) -> str:
        plain = tensor_name.removeprefix(FAMILIES[family].prefix)
        if "norm" not in plain.lower():
            return plain
        stem, _, kind = plain.rpartition(".")
        return f"{stem}.{'gamma' if kind == 'weight' else 'beta'}"

    tensors = {as_old(each): tensor for each, tensor in load_file(tmp_path / "model.safetensors").items()}
    tensors["embeddings.position_ids"] = torch.arange(64)[None]
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {f"pytorch_model-0000{part + 1}-of-00002.bin": names[part::2] for part in range(2)}
    for file, own in shards.items():
        torch.save({each: tensors[each] for each in own}, tmp_path / file)
    index = {"weight_map": {each: file for file, own in shards.items() for each in own}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    weights = load_pretrained(str(tmp_path))
    assert peers.same(weights, expected)
    assert (weights.head_kind, weights.unused) == ("pretraining", ())


@pytest.mark.parametrize(
    ("id2label", "labels"),
    [
        ({"0": "bad", "2": "good"}, ["bad", "LABEL_1", "good"]),
        ({"2": "good", "0": "bad", "1": "neutral"}, ["bad", "neutral", "good"]),
        ({"0": "bad", "1": "neutral", "3": "good"}, ["LABEL_0", "LABEL_1", "LABEL_2"]),
        (None, ["LABEL_0", "LABEL_1", "LABEL_2"]),
    ],
)
def test_gaps_in_the_names_of_labels(id2label, labels, tmp_path):
    peers.peer("BertForSequenceClassification", "bert", id2label=dict(enumerate("abc"))).save_pretrained(tmp_path)
    peers.edit_config(tmp_path, id2label=id2label)
    assert load_pretrained(str(tmp_path)).task_record["labels"] == labels


def test_a_vocabulary_padded_without_the_bias_of_its_decoder(tmp_path):
    peers.peer("BertForMaskedLM", "bert", vocab_size=104).save_pretrained(tmp_path)
    peers.edit_tensors(
        tmp_path,
        lambda tensors: {n: t[:99] if n == "cls.predictions.bias" else t for n, t in tensors.items()},
    )
    weights = load_pretrained(str(tmp_path))
    encoder = peers.encoder_of(weights)
    model = TaskModel(encoder, build_pretraining_head(encoder, weights.config, nsp=False))
    assert load_into(model, weights) == []
    assert model.head.mlm.decoder.bias[:99].abs().min() > 0 and not model.head.mlm.decoder.bias[99:].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "deberta"},
            "model_type='deberta'. Known families are bert, roberta.*nearest name is deberta-v2",
        ),
        ({"model_type": "xlm-robertta"}, "nearest name is xlm-roberta"),
        ({"model_type": None, "architectures": None}, "model_type=None. Known families are bert, .*neobert"),
    ],
)
def test_an_unknown_family(changes, message, folder):
    peers.edit_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(str(folder))


def test_a_folder_without_a_type_is_known_by_its_class(folder, weights):
    peers.edit_config(folder, model_type=None)
    assert peers.same(load_pretrained(str(folder)), weights)
