"""Vision towers of ViT, CLIP and SigLIP: hidden states, gradients and exports equal those of transformers."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers
from torch.testing import assert_close

from framework.batch import PackedBatch
from framework.data.planning.collate import Patches, pack_sequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.exports.huggingface import export_huggingface
from framework.exports.onnx import export_onnx
from framework.models.accounting import count_parameters
from framework.models.encoder import TransformerEncoder
from framework.published.pretrained import PretrainedWeights, load_pretrained
from framework.published.vision import PICTURE_TOKENIZER
from tests.support.models import peers

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 12,
    "patch_size": 3,
}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 30}
TEXT |= {"bos_token_id": 0, "eos_token_id": 1}
TOWERS = ("vit", "clip", "siglip", "whole clip", "whole siglip")
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
GRIDS = [(4, 4), (2, 5), (1, 1)]
"""Rows and columns of patches; the first is the grid of the position table."""


def build_peer(name: str, seed: int = 0) -> transformers.PreTrainedModel:
    """Builds a model of random weights, without values that hide mistakes."""
    if name == "vit":
        model = transformers.ViTModel(transformers.ViTConfig(**SIZES), add_pooling_layer=False)
    elif name == "clip":
        model = transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**SIZES))
    elif name == "siglip":
        model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SIZES))
    elif name == "whole clip":
        model = transformers.CLIPModel(transformers.CLIPConfig(text_config=TEXT, vision_config=SIZES))
    else:
        model = transformers.SiglipModel(transformers.SiglipConfig(text_config=TEXT, vision_config=SIZES))
    peers.randomize(model, seed)
    return model.eval()


def pictures(grids: list[tuple[int, int]], seed: int = 3) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (rows * 3, columns * 3, 3), dtype=np.uint8) for rows, columns in grids]


def pack_pictures(images: list[np.ndarray], class_id: int | None) -> PackedBatch:
    """Packs pictures, each a sequence of an optional class token and its patches row by row."""
    first = 0 if class_id is None else 1
    grids = [(image.shape[0] // 3, image.shape[1] // 3) for image in images]
    lengths = np.array([first + rows * columns for rows, columns in grids])
    ids = np.zeros(lengths.sum(), dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    if class_id is not None:
        ids[starts] = class_id
    cut = [
        image.reshape(rows, 3, columns, 3, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 27)
        for image, (rows, columns) in zip(images, grids, strict=True)
    ]
    places = [(row, column) for rows, columns in grids for row in range(rows) for column in range(columns)]
    tokens = np.concatenate(
        [np.arange(start + first, start + length) for start, length in zip(starts, lengths, strict=True)]
    )
    patches = Patches(np.concatenate(cut), tokens, np.array(places))
    return pack_sequences(ids, lengths, np.arange(len(images)), patches=patches)


def normalized(image: np.ndarray, name: str) -> torch.Tensor:
    """Returns (1, 3, height, width) as the image processor of the family does."""
    mean, std = (CLIP_MEAN, CLIP_STD) if "clip" in name and "siglip" not in name else ((0.5,) * 3, (0.5,) * 3)
    values = (torch.from_numpy(image).double() / 255 - torch.tensor(mean).double()) / torch.tensor(std).double()
    return values.permute(2, 0, 1)[None].float()


def read(peer: transformers.PreTrainedModel, folder) -> PretrainedWeights:
    peer.save_pretrained(folder)
    return load_pretrained(str(folder))


def class_id(name: str) -> int | None:
    return None if "siglip" in name else Tokenizer.from_folder(PICTURE_TOKENIZER).cls_id


def expected_states(peer, name: str, image: np.ndarray) -> torch.Tensor:
    """Returns (tokens, hidden), the last hidden states after the final norm, which CLIP applies when it pools."""
    tower = peer.vision_model if name.startswith("whole") else peer
    states = tower(normalized(image, name), interpolate_pos_encoding=True).last_hidden_state[0]
    return tower.post_layernorm(states) if "clip" in name and "siglip" not in name else states


@pytest.mark.parametrize("name", TOWERS)
def test_hidden_states_and_gradients_equal_those_of_transformers(name: str, tmp_path) -> None:
    peer = build_peer(name)
    weights = read(peer, tmp_path)
    assert weights.config.family == name.removeprefix("whole ")
    encoder = TransformerEncoder(weights.config)
    encoder.load_state_dict(dict(weights.encoder), strict=True)
    images = pictures(GRIDS)
    ours = encoder(pack_pictures(images, class_id(name)))
    expected = torch.cat([expected_states(peer, name, image) for image in images])
    assert_close(ours, expected, atol=2e-5, rtol=2e-5)
    factors = torch.randn(ours.shape, generator=torch.Generator().manual_seed(5))
    (ours * factors).sum().backward()
    (expected * factors).sum().backward()
    # The gradient of a published layer, under our names.
    for parameter in peer.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    theirs = read(peer, tmp_path / "gradients").encoder
    for ours_name, parameter in encoder.named_parameters():
        if "patch_embeddings.projection" in ours_name:
            continue  # the normalisation is part of these weights
        assert_close(parameter.grad, theirs[ours_name], atol=5e-4, rtol=5e-4, msg=ours_name)
    assert sum(p.numel() for p in encoder.parameters()) == count_parameters(weights.config).total


def test_patches_equal_the_strided_convolution_of_transformers(tmp_path) -> None:
    peer = build_peer("clip")
    weights = read(peer, tmp_path)
    encoder = TransformerEncoder(weights.config)
    encoder.load_state_dict(dict(weights.encoder), strict=True)
    (image,) = pictures([(4, 4)])
    batch = pack_pictures([image], 2)
    ours = encoder.embeddings.patch_embeddings.embed(batch.patches, batch.patch_places)
    expected = peer.embeddings.patch_embedding(normalized(image, "clip")).flatten(2)[0].T
    assert_close(ours, expected, atol=2e-6, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", TOWERS)
def test_a_picture_alone_equals_the_picture_in_a_pack(name: str, tmp_path) -> None:
    encoder = peers.encoder_of(read(build_peer(name), tmp_path))
    images = pictures(GRIDS)
    together = encoder(pack_pictures(images, class_id(name)))
    alone = torch.cat([encoder(pack_pictures([image], class_id(name))) for image in images])
    assert_close(together, alone, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_the_normalization_of_the_folder_is_used(tmp_path) -> None:
    peer = build_peer("vit")
    peer.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD)})
    )
    encoder = peers.encoder_of(load_pretrained(str(tmp_path)))
    (image,) = pictures([(4, 4)])
    expected = peer(normalized(image, "clip")).last_hidden_state[0]
    assert_close(encoder(pack_pictures([image], class_id("vit"))), expected, atol=2e-5, rtol=2e-5)


CLASSES = {"vit": "ViTForImageClassification", "clip": "CLIPVisionModel", "siglip": "SiglipForImageClassification"}


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSES)
def test_an_export_is_read_by_transformers_and_again_by_us(name: str, tmp_path) -> None:
    weights = read(build_peer(name), tmp_path / "published")
    generator = torch.Generator().manual_seed(1)
    heads = {
        "classifier.weight": torch.randn(2, 32, generator=generator),
        "classifier.bias": torch.randn(2, generator=generator),
    }
    state = {f"encoder.{key}": value for key, value in weights.encoder.items()}
    state |= {f"head.{key}": value for key, value in heads.items()}
    pooling = "mean" if name == "siglip" else "cls"
    record = {"labels": ["cat", "dog"], "problem": "single_label", "pooling": pooling}
    folder = tmp_path / "export"
    export_huggingface(folder, weights.config, state, "image_classification", weights.tokenizer_dir, record)
    image_processor = transformers.AutoImageProcessor.from_pretrained(folder)
    assert [*image_processor.image_mean, *image_processor.image_std] == [0.5] * 6
    again = load_pretrained(str(folder))
    assert again.config == weights.config and again.head_kind == "image_classification"
    assert {key: torch.equal(again.heads[key], value) for key, value in heads.items()} == dict.fromkeys(heads, True)
    peer, report = getattr(transformers, CLASSES[name]).from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    if name == "vit":
        assert export_onnx(folder).is_file()  # compares its outputs
    encoder = peers.encoder_of(again)
    for image in pictures(GRIDS):
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        outputs = peer.eval()(pixels, interpolate_pos_encoding=True)
        ours = encoder(pack_pictures([image], class_id(name)))
        assert_close(ours, peers.encoder_of(weights)(pack_pictures([image], class_id(name))), atol=2e-5, rtol=2e-5)
        if name == "clip":
            assert_close(ours, peer.post_layernorm(outputs.last_hidden_state[0]), atol=2e-5, rtol=2e-5)
        else:
            pooled = ours.mean(0) if pooling == "mean" else ours[0]
            logits = pooled @ heads["classifier.weight"].T + heads["classifier.bias"]
            assert_close(logits, outputs.logits[0], atol=5e-5, rtol=2e-5)


def test_records_omit_the_fields_of_pictures_for_text_encoders(tmp_path) -> None:
    weights = read(peers.peer("BertModel", "bert"), tmp_path)
    assert not {"input_norm", "patch_positions", "patch_size"} & weights.config.record().keys()
    tower = read(build_peer("clip"), tmp_path / "clip").config
    assert dataclasses.replace(tower, **tower.record()) == tower == type(tower)(**tower.record())
