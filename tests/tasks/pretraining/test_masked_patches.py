"""Masked patches: exact numbers, independent of batches; hidden pixels; targets and loss by their formulas."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from framework.data.examples.pictures import PictureFiles
from framework.data.planning.collate import RoundedShape
from framework.data.planning.plan import StepSequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, DataError
from framework.models.config import EncoderConfig
from framework.nn.initialization import initial_values
from framework.published.vision import PICTURE_TOKENIZER
from framework.runs.task_parts import build_model
from framework.tasks.pretraining.masked_patches import MaskedPatchTask

SIZES = [(16, 16), (20, 8), (12, 24), (4, 4)]
"""Widths and heights in pixels; with patches of 4 pixels 16, 10, 18 and 1 patches."""
MASKED = [10, 6, 11, 1]
"""60 % of these numbers, rounded, and at least 1."""
CONFIG = EncoderConfig(
    family="vit",
    vocab_size=5,
    hidden_size=32,
    num_layers=1,
    num_heads=2,
    intermediate_size=32,
    max_position_embeddings=512,
    type_vocab_size=0,
    norm_placement="pre",
    input_norm="first_layer",
    hidden_dropout=0.0,
    embedding_dropout=0.0,
    initializer_range=0.1,
    patch_size=4,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    draw = np.random.default_rng(0)
    for number, (width, height) in enumerate(SIZES):
        pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / ("more" if number > 1 else ".") / f"{number}.png")
    (folder / ".hidden.txt").write_text("no picture")
    return folder


def build_sources(folder, seed: int = 1, **settings):
    task = MaskedPatchTask(patch_size=4, **settings)
    data = PictureFiles(train=str(folder), validation=str(folder))
    return task, task.build_sources(data, Tokenizer.from_folder(PICTURE_TOKENIZER), seed)


def batch_of(source, indices: list[int], epoch: int = 0, shape=None):
    chosen = np.array(indices)
    return source.build(StepSequences(np.full_like(chosen, epoch), chosen, chosen + 50), step=0, shape=shape)


def test_an_exact_number_is_masked_in_each_picture_whatever_the_batch(folder):
    _, sources = build_sources(folder)
    together = batch_of(sources["train"], [0, 1, 2, 3])
    alone = [batch_of(sources["train"], [index], shape=RoundedShape()) for index in range(4)]
    counts = [16, 10, 18, 1]
    for masks, other, count, masked in zip(together.patch_is_masked.split(counts), alone, counts, MASKED, strict=True):
        assert int(masks.sum()) == masked == other.counts["pixels"]
        assert torch.equal(masks, other.patch_is_masked[:count]) and not other.patch_is_masked[count:].any()
    assert together.counts == {"pixels": sum(MASKED)}


def test_masks_differ_by_epoch_and_seed_but_not_in_evaluation(folder):
    _, sources = build_sources(folder)
    _, others = build_sources(folder, seed=2)
    masks = [
        batch_of(each["train"], [0], epoch).patch_is_masked.tolist() for each in (sources, others) for epoch in (0, 1)
    ]
    assert len({tuple(each) for each in masks}) == 4
    fixed = [batch_of(each["validation"], [0], epoch).patch_is_masked for each in (sources, others) for epoch in (0, 1)]
    assert all(torch.equal(each, fixed[0]) for each in fixed)


def test_a_masked_patch_shows_no_pixels_and_has_the_word_mask(folder):
    _, sources = build_sources(folder)
    batch, plain = batch_of(sources["train"], [0, 1]), sources["train"].source
    shown = batch_of(plain, [0, 1])
    masked = batch.patch_is_masked
    assert not batch.patches[masked].any() and torch.equal(batch.patches[~masked], shown.patches[~masked])
    assert torch.equal(batch.targets["pixels"], shown.patches)
    tokenizer = Tokenizer.from_folder(PICTURE_TOKENIZER)
    assert (batch.input_ids[batch.patch_tokens[masked]] == tokenizer.mask_id).all()
    assert (batch.input_ids == tokenizer.mask_id).sum() == masked.sum()
    embeddings = build_encoder_model(MaskedPatchTask(patch_size=4)).encoder.embeddings
    token, (row, column) = batch.patch_tokens[masked][3], batch.patch_places[masked][3]
    expected = embeddings.word_embeddings.weight[tokenizer.mask_id] + embeddings.position_embeddings.weight[token]
    patches = embeddings.patch_embeddings
    expected = expected + patches.row_embeddings.weight[row] + patches.column_embeddings.weight[column]
    assert_close(embeddings(batch)[token], expected)


def build_encoder_model(task):
    model = build_model(task, CONFIG).to_empty(device="cpu")
    with torch.no_grad():
        for name, make in initial_values(model, CONFIG, seed=1):
            model.get_parameter(name).copy_(make())
    return model


@pytest.mark.parametrize("normalize", [False, True])
@torch.no_grad()
def test_the_loss_is_the_squared_error_of_masked_patches(folder, normalize):
    task, sources = build_sources(folder, normalize_pixels=normalize)
    batch = batch_of(sources["train"], [0, 1, 3], shape=RoundedShape())
    outputs = build_encoder_model(task)(batch)
    expected = 0.0
    for index in torch.nonzero(batch.patch_is_masked)[:, 0].tolist():
        pixels = batch.targets["pixels"][index].double().numpy() / 127.5 - 1
        if normalize:
            pixels = (pixels - pixels.mean()) / np.sqrt(pixels.var(ddof=1) + 1e-6)
        expected += ((outputs["pixels"][index].double().numpy() - pixels) ** 2).mean()
    assert task.loss_sums(outputs, batch)["pixels"].item() == pytest.approx(expected, rel=1e-5)


def test_training_lowers_the_loss(folder):
    task, sources = build_sources(folder, normalize_pixels=False)
    model = build_encoder_model(task)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for epoch in range(40):
        batch = batch_of(sources["train"], [0, 1], epoch)
        loss = task.loss_sums(model(batch), batch)["pixels"] / batch.counts["pixels"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_bad_settings_and_files_are_named(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"task.masked_patches is 1.0. It must be a share between 0 and 1"):
        MaskedPatchTask(masked_patches=1.0)
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"file a.png: 'a.png' cannot be read as a picture"):
        PictureFiles(train=str(tmp_path)).load()
    (tmp_path / "rows.csv").write_text("file\n0.png\nmore/2.png\n")
    table = PictureFiles(train=str(tmp_path / "rows.csv"), image_column="file", images=str(folder))
    assert [row.picture.name for row in table.load().splits["train"]] == ["0.png", "more/2.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no pictures"):
        PictureFiles(train=str(tmp_path / "empty")).load()
