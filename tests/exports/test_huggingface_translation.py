"""A translation model as EncoderDecoderModel of transformers, in both directions, and from other encoders."""

import json

import pytest
import torch
import transformers
from torch.testing import assert_close

from framework.data.tokenization.tokenizer import TOKENIZER_KEY
from framework.errors import CheckpointError
from framework.exports.huggingface import export_huggingface
from framework.exports.onnx import export_onnx
from framework.models.decoder import DecoderConfig
from framework.models.encoder import TransformerEncoder
from framework.published.pretrained import load_pretrained
from framework.tasks.task import TaskModel
from framework.tasks.translation.head import build_translation_head
from framework.tasks.translation.search import SearchSettings
from tests.support.exports.small_exports import CONFIGS, load_peer
from tests.support.models.loading import load_into
from tests.support.models.translation_peer import END, LAYERS, START, both_inputs, both_models, unpadded

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
SIDE = {"start_id": START, "end_id": END}
# Their encoder has one, which nothing reads.
POOLER_IS_RANDOM = {"missing_keys": {"encoder.pooler.dense.bias", "encoder.pooler.dense.weight"}}
BOTH = pytest.mark.parametrize(
    ("share_words", "tie_output"), [(False, True), (False, False), (True, True), (True, False)]
)


def export(model, folder, tokenizer_dir):
    config = model.encoder.config
    export_huggingface(folder, config, model.state_dict(), "translation", tokenizer_dir, SIDE)
    return folder


def fresh(model, seed=5):
    """Builds the same model with other random weights."""
    encoder = TransformerEncoder(model.encoder.config)
    decoder = model.head.decoder.config
    head = build_translation_head(encoder, model.encoder.config, decoder, START, END, SearchSettings(max_length=16))
    made = TaskModel(encoder, head).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return made


@BOTH
@torch.no_grad()
def test_an_export_is_an_encoder_decoder_model(share_words, tie_output, tmp_path, tokenizer_dirs):
    model, theirs = both_models(share_words, tie_output, SearchSettings(max_length=16))
    folder = export(model, tmp_path / "export", tokenizer_dirs["bert"])
    peer, report = load_peer(transformers.AutoModelForSeq2SeqLM, folder)
    assert type(peer) is transformers.EncoderDecoderModel
    assert report == POOLER_IS_RANDOM
    batch, inputs = both_inputs()
    logits = unpadded(peer(**inputs).logits, inputs)
    assert_close(logits, model(batch)["logits"], **TOLERANCE)
    # With or without an export, transformers computes the same.
    assert_close(logits, unpadded(theirs(**inputs).logits, inputs), **TOLERANCE)
    weights = load_pretrained(str(folder))
    kept = {key: value for key, value in weights.task_record.items() if key != TOKENIZER_KEY}
    assert (weights.head_kind, kept, weights.unused) == ("translation", SIDE, ())
    again = fresh(model)
    assert load_into(again, weights) == []
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


@torch.no_grad()
def test_an_export_generates_without_extra_special_tokens(tmp_path, tokenizer_dirs):
    model, _ = both_models(share_words=True, search=SearchSettings(num_beams=3, max_length=12))
    model.head.mlm.decoder.bias[END] += 4.5
    folder = export(model, tmp_path / "export", tokenizer_dirs["bert"])
    peer, _ = load_peer(transformers.AutoModelForSeq2SeqLM, folder)
    batch, inputs = both_inputs()
    actual = model.head.find_targets(model.encoder(batch), batch)
    sources = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    rows = peer.generate(**sources, num_beams=3, max_new_tokens=12, early_stopping=False, do_sample=False).tolist()
    for hypotheses, row in zip(actual, rows, strict=True):
        end = row.index(END) + 1 if END in row else len(row)
        assert list(hypotheses[0].tokens) == row[1:end]


@torch.no_grad()
def test_a_published_model_is_read(tmp_path):
    model, theirs = both_models(search=SearchSettings(max_length=16))
    theirs.save_pretrained(tmp_path / "published")
    weights = load_pretrained(str(tmp_path / "published"))
    assert weights.head_kind == "translation"
    # The pooler of their encoder is not used in translation, but it is known.
    assert weights.unused == ()
    again = fresh(model)
    assert load_into(again, weights) == []
    batch, inputs = both_inputs()
    assert_close(again(batch)["logits"], unpadded(theirs(**inputs).logits, inputs), **TOLERANCE)


@torch.no_grad()
def test_an_encoder_of_another_family(tmp_path, tokenizer_dirs):
    config = CONFIGS["roberta"]
    encoder = TransformerEncoder(config)
    head = build_translation_head(encoder, config, DecoderConfig(LAYERS, 64), START, END, SearchSettings(max_length=16))
    model = fresh(TaskModel(encoder, head))
    for parameter in model.parameters():
        parameter.mul_(0.2)
    folder = export(model, tmp_path / "export", tokenizer_dirs["roberta"])
    peer, report = load_peer(transformers.AutoModelForSeq2SeqLM, folder)
    assert report == POOLER_IS_RANDOM
    assert type(peer.encoder) is transformers.RobertaModel
    batch, inputs = both_inputs()
    inputs["input_ids"][inputs["attention_mask"] == 0] = config.pad_token_id
    assert_close(unpadded(peer(**inputs).logits, inputs), model(batch)["logits"], atol=1e-4, rtol=1e-4)


def test_a_decoder_without_biases_has_no_class(tmp_path, tokenizer_dirs):
    config = CONFIGS["modernbert"]
    encoder = TransformerEncoder(config)
    head = build_translation_head(encoder, config, DecoderConfig(LAYERS, 64), START, END, SearchSettings(max_length=16))
    model = fresh(TaskModel(encoder, head))
    folder = export(model, tmp_path / "export", tokenizer_dirs["modernbert"])
    peer, report = load_peer(transformers.AutoModel, folder)
    assert type(peer) is transformers.ModernBertModel
    assert report == {"unexpected_keys": {"classifier.weight"}}
    again = fresh(model, seed=6)
    assert load_into(again, load_pretrained(str(folder))) == []
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_published_decoder_of_another_kind_is_rejected(tmp_path):
    _, theirs = both_models()
    theirs.save_pretrained(tmp_path / "published")
    path = tmp_path / "published" / "config.json"
    config = json.loads(path.read_text())
    config["decoder"]["model_type"] = "gpt2"
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"decoder has model_type='gpt2'.*Only a BERT"):
        load_pretrained(str(tmp_path / "published"))


def test_onnx_of_a_translation_is_rejected(tmp_path, tokenizer_dirs):
    model, _ = both_models()
    folder = export(model, tmp_path / "export", tokenizer_dirs["bert"])
    with pytest.raises(CheckpointError, match=r"EncoderDecoderModel.*complete without it"):
        export_onnx(folder)
    assert not (folder / "onnx").exists()
