"""Losses against loops over all pairs, retrieval by hand, and the learned scale and bias."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, logsigmoid

from framework.data.planning.collate import pack_sequences
from framework.data.reading.images import PictureFile
from framework.tasks.examination import ItemResults
from framework.tasks.image_text.data import CaptionedPicture
from framework.tasks.image_text.examine import examine_retrieval
from framework.tasks.image_text.features import PairIds
from framework.tasks.image_text.head import ImageTextHead
from framework.tasks.image_text.losses import contrast, sigmoid_pairs
from framework.tasks.image_text.scores import Retrieval, retrieval_scores
from framework.tasks.image_text.task import ImageTextTask
from framework.tasks.pooling import pool_mean

# (picture, caption) of each pair: picture 0 has two captions, and caption 1 two pictures.
PAIRS = [(0, 0), (0, 1), (1, 1), (2, 2)]
# Pairs (i, j) whose picture i and caption j match although they are of different rows.
KNOWN = {(0, 1), (0, 2), (1, 0), (1, 2), (2, 1)}
SCALE, BIAS = 5.0, -2.0


@pytest.fixture
def rows() -> dict[str, torch.Tensor]:
    size = 2 * len(PAIRS)
    generator = torch.Generator().manual_seed(0)
    return {
        "embeddings": torch.randn(size, 6, generator=generator).requires_grad_(),
        "members": torch.arange(size) % 2,
        "queries": torch.tensor([picture for picture, _ in PAIRS]).repeat_interleave(2),
        "texts": torch.tensor([(picture, 3 + caption) for picture, caption in PAIRS]).flatten(),
        "scales": torch.full((size,), SCALE).requires_grad_(),
        "biases": torch.full((size,), BIAS).requires_grad_(),
    }


def cosines(rows: dict[str, torch.Tensor]) -> torch.Tensor:
    pictures, captions = rows["embeddings"][0::2], rows["embeddings"][1::2]
    return cosine_similarity(pictures[:, None], captions[None], dim=2)


def test_contrast_equals_a_loop_over_pairs(rows):
    scores = SCALE * cosines(rows)
    expected = torch.zeros(2)
    for own in range(len(PAIRS)):
        others = [each for each in range(len(PAIRS)) if each != own]
        captions = [own, *(each for each in others if (own, each) not in KNOWN)]
        pictures = [own, *(each for each in others if (each, own) not in KNOWN)]
        expected[0] += torch.logsumexp(scores[own, captions], 0) - scores[own, own]
        expected[1] += torch.logsumexp(scores[pictures, own], 0) - scores[own, own]
    actual = contrast(rows)
    torch.testing.assert_close(actual, expected)
    gradients = [
        torch.autograd.grad(value.sum(), [rows["embeddings"]], retain_graph=True) for value in (actual, expected)
    ]
    torch.testing.assert_close(*gradients)


def test_sigmoid_equals_a_loop_over_pairs(rows):
    scores = SCALE * cosines(rows) + BIAS
    expected = torch.zeros(())
    for picture in range(len(PAIRS)):
        for caption in range(len(PAIRS)):
            if (picture, caption) not in KNOWN:
                sign = 1.0 if picture == caption else -1.0
                expected = expected - logsigmoid(sign * scores[picture, caption])
    torch.testing.assert_close(sigmoid_pairs(rows), expected)


@pytest.mark.parametrize("objective", ["contrastive", "sigmoid"])
def test_gradients_of_scale_and_bias_are_exact(rows, objective):
    """The sum over all rows of the gradient must be the derivative with respect to the one parameter."""
    task = ImageTextTask(objective)

    def loss(shift: float, name: str) -> torch.Tensor:
        return sum(task.step_loss_sums({**rows, name: rows[name] + shift}).values())

    for name in ("scales", "biases") if objective == "sigmoid" else ("scales",):
        (gradient,) = torch.autograd.grad(loss(0.0, name), rows[name])
        difference = (loss(1e-2, name) - loss(-1e-2, name)) / 2e-2
        torch.testing.assert_close(gradient.sum(), difference.detach(), rtol=1e-3, atol=1e-4)


def test_a_step_without_rows_has_no_loss(rows):
    none = {name: value[:0] for name, value in rows.items()}
    assert {name: float(value.detach()) for name, value in ImageTextTask().step_loss_sums(none).items()} == {
        "caption_contrast": 0.0,
        "picture_contrast": 0.0,
    }


def test_the_head_starts_with_the_published_scale_and_bias():
    batch = pack_sequences(np.zeros(4), np.array([1, 3]), np.arange(2))
    hidden = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    head = ImageTextHead(pool_mean, True, 1 / 0.07, -10.0)
    outputs = head(hidden, batch)
    assert outputs["scales"].tolist() == pytest.approx([1 / 0.07] * 2) and outputs["biases"].tolist() == [-10.0] * 2
    torch.testing.assert_close(outputs["embeddings"].norm(dim=1), torch.ones(2))
    head.scale_bias.data.fill_(50.0)
    assert head(hidden, batch)["scales"].tolist() == pytest.approx([100.0] * 2)  # CLIP's limit
    assert "biases" not in ImageTextHead(pool_mean, True, math.e, None)(hidden, batch)


def test_retrieval_by_hand():
    """Picture 0 (captions 0, 1) and pictures 1, 2; caption 1 belongs to pictures 0 and 1."""
    angles = {"picture": [0.0, 1.0, 2.0], "caption": [1.4, 0.9, 0.1]}
    unit = {name: [np.array([math.cos(a), math.sin(a)]) for a in values] for name, values in angles.items()}
    vectors = [np.stack([3 * unit["picture"][picture], unit["caption"][caption]]) for picture, caption in PAIRS]
    retrieval = Retrieval(vectors, [PairIds(picture, caption, None) for picture, caption in PAIRS])
    # From picture 0 (0.0): captions 2 (0.1), 1 (0.9, right). Picture 1 (1.0): caption 1. Picture 2 (2.0): 0, 1, 2.
    assert retrieval.ranks["caption"].tolist() == [2, 1, 3] and retrieval.top["caption"].tolist() == [
        [2, 1, 0],
        [1, 0, 2],
        [0, 1, 2],
    ]
    # From caption 0 (1.4): pictures 1, 2, 0 (right). Caption 1 (0.9): picture 1. Caption 2 (0.1): 0, 1, 2.
    assert retrieval.ranks["picture"].tolist() == [3, 1, 3] and retrieval.top["picture"][:, 0].tolist() == [1, 1, 0]
    scores = retrieval_scores(retrieval)
    assert scores["caption_recall_at_1"] == pytest.approx(1 / 3) and scores["caption_median_rank"] == 2.0
    assert scores["picture_recall_at_1"] == pytest.approx(1 / 3) and scores["picture_median_rank"] == 3.0
    assert scores["caption_recall_at_5"] == 1.0 and scores["mean_recall"] == pytest.approx((1 / 3 + 1 / 3 + 4) / 6)


def test_the_report_shows_the_worst_and_best_searches_both_ways():
    """Picture i is at angle i, its caption beside it; the captions of pictures 0 and 1 are exchanged."""
    angles = [(0.0, 0.9), (1.0, 0.1), (2.0, 2.1), (3.0, 3.1)]
    vectors = [np.array([[math.cos(angle), math.sin(angle)] for angle in pair]) for pair in angles]
    rows = [
        CaptionedPicture(f"row {index}", PictureFile("", f"{index}.png", "", 1, 1, 1, False), f"caption {index}")
        for index in range(4)
    ]
    records = [PairIds(index, index, row) for index, row in enumerate(rows)]
    found = examine_retrieval(records, ItemResults(vectors, None, np.full(4, 9)))
    assert [row.score for row in found.rows] == pytest.approx([0.5, 0.5, 1.0, 1.0])
    assert found.rows[0].predicted == "caption 1 (right caption at rank 2, right picture at rank 2)"
    titles = {gallery.title: gallery for gallery in found.galleries}
    worst = titles["The worst searches for a caption"].rows
    assert {row[0].name for row in worst} == {"0.png", "1.png"} and {row[2] for row in worst} == {"2"}
    assert next(row for row in worst if row[0].name == "0.png")[1:] == [
        *("caption 0", "2", "caption 1", "caption 0", "caption 2"),
    ]
    best = titles["The best searches for a picture"].rows
    assert {row[0] for row in best[:2]} == {"caption 2", "caption 3"} and best[0][3] is best[0][1]
    assert titles["The best searches for a picture"].header[:3] == ["caption", "right picture", "rank"]


def test_a_collapsed_model_retrieves_nothing():
    """Equal similarities must not count as found."""
    retrieval = Retrieval([np.ones((2, 3))] * 4, [PairIds(index, index, None) for index in range(4)])
    assert retrieval.ranks["caption"].tolist() == [4] * 4 and retrieval.ranks["picture"].tolist() == [4] * 4
