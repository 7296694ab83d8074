"""What published folders can look like, and the errors for those that cannot be loaded."""

import json
import os
import pickle

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from framework.errors import CheckpointError
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.models.pretrained import PretrainedWeights, load_into, load_pretrained, weights_from_state
from framework.models.published.modernbert import MODERNBERT
from framework.models.published.rules import join_qkv, split_qkv
from framework.tasks.pretraining.head import build_pretraining_head
from framework.tasks.sequence_classification.head import build_sequence_classification_head
from framework.tasks.task import TaskModel
from tests.models import peers


@pytest.fixture
def folder(tmp_path):
    """A whole BertForPreTraining folder."""
    peers.peer("BertForPreTraining", "bert").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def weights(folder):
    return load_pretrained(str(folder))


def same(left: PretrainedWeights, right: PretrainedWeights) -> bool:
    pairs = ((left.encoder, right.encoder), (left.heads, right.heads))
    return left.config == right.config and all(
        one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one) for one, other in pairs
    )


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def edit_tensors(folder, edit):
    path = folder / "model.safetensors"
    tensors = edit(load_file(path))
    path.unlink()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def test_rows_of_qkv_hold_whole_heads():
    query, key, value = (torch.arange(4)[:, None] + start for start in (0, 10, 20))
    (joined,) = join_qkv([query, key, value], num_heads=2)
    assert joined.flatten().tolist() == [0, 1, 10, 11, 20, 21, 2, 3, 12, 13, 22, 23]
    assert all(
        torch.equal(part, whole) for part, whole in zip(split_qkv([joined], 2), (query, key, value), strict=True)
    )


def test_rows_of_wqkv_and_wi_of_modernbert():
    config = EncoderConfig(
        family="modernbert", vocab_size=9, hidden_size=4, num_layers=1, num_heads=2, intermediate_size=2,
        max_position_embeddings=8, type_vocab_size=0, position_encoding="rotary", norm_placement="pre", gated=True,
        bias=False, norm_bias=False,
    )  # fmt: skip
    rules = {rule.theirs[0]: rule for rule in MODERNBERT.encoder_rules(config)}
    rows = torch.tensor([0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23])[:, None]
    rule = rules["layers.0.attn.Wqkv.weight"]
    (ours,) = rule.to_ours([rows], 2)
    assert ours.flatten().tolist() == [0, 1, 10, 11, 20, 21, 2, 3, 12, 13, 22, 23]
    assert torch.equal(rule.to_theirs([ours], 2)[0], rows)
    rule = rules["layers.0.mlp.Wi.weight"]
    assert rule.ours == ("layers.0.feed_forward.gate.weight", "layers.0.feed_forward.up.weight")
    assert [half.flatten().tolist() for half in rule.to_ours([torch.arange(4)[:, None]], 2)] == [[0, 1], [2, 3]]


def test_prefixes_old_norm_names_and_buffers(folder, weights):
    def as_first_checkpoints(tensors):
        renamed = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in tensors.items()
        }
        return renamed | {"bert.embeddings.position_ids": torch.arange(64)[None]}

    edit_tensors(folder, as_first_checkpoints)
    again = load_pretrained(str(folder))
    assert again.unused == ()
    assert same(again, weights)
    edit_tensors(folder, lambda tensors: {name.removeprefix("bert."): tensor for name, tensor in tensors.items()})
    assert same(load_pretrained(str(folder)), weights)


def test_missing_pooler_and_heads(folder, weights):
    edit_tensors(folder, lambda tensors: {n: t for n, t in tensors.items() if "pooler" not in n and "cls." not in n})
    again = load_pretrained(str(folder))
    assert again.heads == {}
    encoder = TransformerEncoder(again.config)
    model = TaskModel(encoder, build_pretraining_head(encoder, again.config, nsp=True))
    head_names = ["mlm.dense.weight", "mlm.dense.bias", "mlm.norm.weight", "mlm.norm.bias", "mlm.decoder.bias"]
    head_names += ["pooler.dense.weight", "pooler.dense.bias", "nsp.weight", "nsp.bias"]
    assert load_into(model, again) == [f"head.{name}" for name in head_names]
    assert torch.equal(model.encoder.layers[3].attention.qkv.weight, weights.encoder["layers.3.attention.qkv.weight"])


def test_half_precision_becomes_fp32(folder, weights):
    edit_tensors(folder, lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})
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
    assert same(load_pretrained(str(folder)), weights)
    next(folder.glob("*-00002-of-00002*")).unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00002.*not a file of its folder"):
        load_pretrained(str(folder))


def test_index_that_leaves_its_folder(folder):
    (folder / "model.safetensors").rename(folder.parent / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"'\.\./other.safetensors', which is not a file of its folder"):
        load_pretrained(str(folder))


def test_plain_pickle_is_read_and_another_is_not_run(folder, weights):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert same(load_pretrained(str(folder)), weights)

    witness = folder / "witness"

    class Command:
        def __reduce__(self):
            return os.mkdir, (str(witness),)

    torch.save({"a": Command()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="broken or holds more than tensors and is not loaded"):
        load_pretrained(str(folder))
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Command()))
    with pytest.raises(CheckpointError, match="broken or holds more than tensors and is not loaded"):
        load_pretrained(str(folder))
    assert not witness.exists()


def test_untied_decoder_is_named_and_left_out(folder):
    def untie(tensors):
        return tensors | {"cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"] + 1}

    edit_tensors(folder, untie)
    again = load_pretrained(str(folder))
    assert again.unused == ("cls.predictions.decoder.weight",)
    assert not any(name.startswith("mlm.") for name in again.heads)


def test_classifier_of_tokens_is_not_taken_for_one_of_sequences(tmp_path):
    for class_name, family in (
        ("BertForTokenClassification", "bert"),
        ("ModernBertForTokenClassification", "modernbert"),
    ):
        peers.peer(class_name, family).save_pretrained(tmp_path / family)
        weights = load_pretrained(str(tmp_path / family))
        assert weights.heads == {}
        assert weights.head_kind is None
        assert {"classifier.weight", "classifier.bias"} <= set(weights.unused)


def test_modernbert_classifier_starts_from_the_transform_of_the_mlm_head(tmp_path):
    peer = peers.peer("ModernBertForMaskedLM", "modernbert")
    peer.save_pretrained(tmp_path)
    weights = load_pretrained(str(tmp_path))
    model = TaskModel(TransformerEncoder(weights.config), build_sequence_classification_head(weights.config, 2))
    assert load_into(model, weights) == ["head.classifier.weight", "head.classifier.bias"]
    assert torch.equal(model.head.transform.dense.weight, peer.head.dense.weight)


def change(**changes):
    return lambda folder: edit_config(folder, **changes)


def drop_tensor(folder):
    edit_tensors(folder, lambda tensors: {n: t for n, t in tensors.items() if "layer.2.output.dense.weight" not in n})


def cut_file(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


BAD_FOLDERS = [
    (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as JSON"),
    (lambda folder: (folder / "config.json").write_text("[]"), "must hold a JSON object"),
    (lambda folder: (folder / "model.safetensors").unlink(), "has neither model.safetensors nor"),
    (cut_file, "no whole safetensors file"),
    (drop_tensor, r"lacks 1 of \d+ weights of its encoder, for example layers.2.feed_forward.down.weight"),
    (change(model_type="gpt2"), "model_type='gpt2'; known families are bert, roberta, modernbert"),
    (change(model_type=None), "model_type=None"),
    (change(vocab_size=100), r"word_embeddings.weight with shape \(99, 32\), but its config says \(100, 32\)"),
    (change(num_attention_heads=5), "num_heads=5 does not divide"),
    (change(hidden_size="wide"), "describes no encoder"),
    (change(hidden_act="mish"), "activation 'mish' is not known"),
    (change(is_decoder=True), "no decoder can be read"),
    (change(position_embedding_type="relative_key"), "only 'absolute' positions"),
    (lambda folder: (folder / "cloze.json").write_text('{"format": 99}'), "format=99 is not known"),
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
    edit_config(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(str(tmp_path))


def test_source_that_is_no_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source, message in (
        (str(folder / "config.json"), "is a file"),
        (str(tmp_path / "nothing"), "is not there"),
        ("./nothing", "is not there"),
        ("a/b/c", "is not there"),
        ("../up", "is not there"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_pretrained(source)


def test_hub_name_without_network(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        CheckpointError, match="'some/model' is not a folder here and could not be had from the Hugging Face Hub"
    ):
        load_pretrained("some/model")
    with pytest.raises(CheckpointError, match="'some/mo--del' is not a folder here"):
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
    assert same(again, weights)


def model_like(config, **changes):
    settings = {name: getattr(config, name) for name in config.__dataclass_fields__}
    encoder = TransformerEncoder(EncoderConfig(**(settings | changes)))
    return TaskModel(encoder, build_pretraining_head(encoder, encoder.config, nsp=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 8}, r"num_heads=4, but this model has model.num_heads=8"),
        ({"norm_placement": "pre"}, "norm_placement='post', but this model has model.norm_placement='pre'"),
        ({"norm_eps": 1e-5}, "norm_eps=1e-12"),
        ({"num_layers": 3}, "has encoder.layers.3.*, which this model has not"),
        ({"num_layers": 5}, "has no encoder.layers.4.*which this model has"),
        ({"intermediate_size": 32}, r"shape \(64, 32\), but this model wants \(32, 32\)"),
        ({"vocab_size": 98}, r"shape \(99, 32\), but this model wants \(98, 32\)"),
        ({"vocab_size": 99 + 128}, r"shape \(99, 32\), but this model wants \(227, 32\)"),
        ({"max_position_embeddings": 65}, r"shape \(64, 32\), but this model wants \(65, 32\)"),
    ],
)
def test_model_that_weights_do_not_fit(changes, message, weights):
    model = model_like(weights.config, **changes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_into(model, weights)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_padded_vocabulary(weights):
    model = model_like(weights.config, vocab_size=128)
    assert load_into(model, weights) == []
    table = model.encoder.embeddings.word_embeddings.weight
    assert torch.equal(table[:99], weights.encoder["embeddings.word_embeddings.weight"])
    assert torch.equal(table[99:], torch.zeros(29, 32))
    assert torch.equal(model.head.mlm.decoder.bias[99:], torch.zeros(29))
    assert model.head.mlm.decoder.weight is table


def test_assign_is_given_full_values(weights):
    calls = {}
    with torch.device("meta"):
        model = model_like(weights.config)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    load_into(model, weights, assign=lambda parameter, value: calls.update({names[id(parameter)]: value}))
    assert torch.equal(calls["head.nsp.weight"], weights.heads["nsp.weight"])
    assert calls.keys() == dict(model.named_parameters()).keys()


def test_weights_of_a_run(weights):
    model = model_like(weights.config)
    load_into(model, weights)
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    again = weights_from_state("runs/a", weights.config, state, "pretraining", {"k": 1})
    assert again.side == {"k": 1}
    other = model_like(weights.config)
    assert load_into(other, again) == []
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(CheckpointError, match=r"runs/a lacks 1 of"):
        weights_from_state(
            "runs/a", weights.config, {n: t for n, t in state.items() if "layers.0.attention.output.bias" not in n}
        )


def test_classifier_with_other_labels(tmp_path):
    peers.peer("BertForSequenceClassification", "bert", num_labels=2).save_pretrained(tmp_path)
    weights = load_pretrained(str(tmp_path))
    assert weights.side["labels"] == ["LABEL_0", "LABEL_1"]
    model = TaskModel(TransformerEncoder(weights.config), build_sequence_classification_head(weights.config, 5))
    with pytest.raises(
        CheckpointError, match=r"head.classifier.weight of shape \(2, 32\), but this model wants \(5, 32\)"
    ):
        load_into(model, weights)


def test_peers_hide_nothing():
    """The parity tests mean little if a bias were zero or a norm one."""
    for family, class_name in (("bert", "BertForPreTraining"), ("modernbert", "ModernBertForMaskedLM")):
        for name, parameter in peers.peer(class_name, family).named_parameters():
            assert parameter.std() > 0.05, name
