"""Tests of the embeddings of picture patches against a strided convolution, and alone against packed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from framework.batch import PackedBatch
from framework.data.planning.collate import FixedShape, Patches, RoundedShape, pack_sequences
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.nn.patch_embeddings import PatchEmbeddings
from framework.tasks.pooling import pool_mean

PATCH, SIDE = 4, 3
CONFIG = EncoderConfig("bert", 50, 16, 2, 2, 32, 64, hidden_dropout=0.0, embedding_dropout=0.0)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """20 pictures: (20, 12, 12, 3) uint8."""
    return np.random.default_rng(0).integers(0, 256, (20, SIDE * PATCH, SIDE * PATCH, 3), dtype=np.uint8)


def cut(picture: np.ndarray) -> np.ndarray:
    rows = [picture[r : r + PATCH, c : c + PATCH].reshape(-1) for r in range(0, 12, PATCH) for c in range(0, 12, PATCH)]
    return np.stack(rows)


def packed(pictures: np.ndarray, shape=None) -> PackedBatch:
    """Packs one sequence a picture: a token, then its patches."""
    count, size = len(pictures), SIDE * SIDE
    tokens = np.concatenate([np.arange(size) + 1 + index * (size + 1) for index in range(count)])
    places = np.tile([(row, column) for row in range(SIDE) for column in range(SIDE)], (count, 1))
    patches = Patches(np.concatenate([cut(picture) for picture in pictures]), tokens, places)
    ids = np.tile([7] + [0] * size, count)
    return pack_sequences(ids, np.full(count, size + 1), np.arange(count), shape=shape, patches=patches)


def encoder() -> TransformerEncoder:
    torch.manual_seed(0)
    return TransformerEncoder(replace(CONFIG, patch_size=PATCH, patch_grid=SIDE))


def test_patches_equal_a_strided_convolution(pictures):
    torch.manual_seed(0)
    module = PatchEmbeddings(PATCH, 16, grid_size=0)
    batch = packed(pictures)
    kernel = module.projection.weight.view(16, PATCH, PATCH, 3).permute(0, 3, 1, 2)
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    expected = functional.conv2d(images, kernel, module.projection.bias, stride=PATCH).flatten(2).transpose(1, 2)
    actual = module.embed(batch.patches, batch.patch_places)
    torch.testing.assert_close(actual, expected.reshape(-1, 16), atol=1e-6, rtol=0)


def test_rows_and_columns_have_positions_of_their_own():
    module = PatchEmbeddings(PATCH, 16, grid_size=SIDE)
    patches, places = torch.zeros(2, PATCH * PATCH * 3, dtype=torch.uint8), torch.tensor([[1, 2], [2, 1]])
    first, second = module.embed(patches, places)
    rows, columns = module.row_embeddings.weight, module.column_embeddings.weight
    torch.testing.assert_close(first - second, rows[1] + columns[2] - rows[2] - columns[1])


@pytest.mark.parametrize("shape", [None, RoundedShape(), FixedShape.around(200, 20, None, 12)], ids=str)
def test_a_picture_is_the_same_alone_and_packed_with_others(pictures, shape):
    model = encoder()
    batch = packed(pictures, shape)
    together = pool_mean(model(batch), batch)[:20]
    for index, picture in enumerate(pictures):
        own = packed(picture[None])
        torch.testing.assert_close(together[index : index + 1], pool_mean(model(own), own), atol=1e-6, rtol=0)


def test_patches_replace_words_before_the_norm(pictures):
    model = encoder()
    batch = packed(pictures[:1])
    embeddings = model.embed(batch)
    patches = model.embeddings.patch_embeddings.embed(batch.patches, batch.patch_places)
    torch.testing.assert_close(embeddings[1:], model.embeddings.norm(patches))
    plain = replace(batch, patches=None, patch_tokens=None, patch_places=None)
    torch.testing.assert_close(embeddings[0], model.embed(plain)[0])
    assert not torch.allclose(embeddings[1:], model.embed(plain)[1:])


def test_a_batch_without_pictures_gives_zero_gradients(pictures):
    model = encoder()
    batch = packed(pictures[:1])
    model(replace(batch, patches=None, patch_tokens=None, patch_places=None)).sum().backward()
    gradients = [parameter.grad for parameter in model.embeddings.patch_embeddings.parameters()]
    assert len(gradients) == 4 and all(torch.equal(grad, torch.zeros_like(grad)) for grad in gradients)


def test_filler_patches_have_no_effect_on_gradients(pictures):
    gradients = []
    for shape in (None, FixedShape.around(200, 20, None, 12)):
        model = encoder()
        batch = packed(pictures, shape)
        assert len(batch.patches) == (180 if shape is None else shape.tokens)
        pool_mean(model(batch), batch)[:20].square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-5, rtol=1e-4)


def test_an_encoder_of_texts_has_and_records_nothing_new():
    assert not any("patch" in name for name, _ in TransformerEncoder(CONFIG).named_parameters())
    assert not any("patch" in name for name in CONFIG.record())
    config = replace(CONFIG, patch_size=8)
    assert EncoderConfig(**config.record()) == config
    assert EncoderConfig(**CONFIG.record()) == CONFIG


def test_a_copy_keeps_the_patches(pictures):
    copy = packed(pictures[:2]).to("cpu")
    assert torch.equal(copy.patches, packed(pictures[:2]).patches) and copy.patch_tokens.tolist()[:2] == [1, 2]
