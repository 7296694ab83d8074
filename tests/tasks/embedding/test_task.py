"""Losses against one matrix of all texts of the step, row by row; items, draws and searches by hand."""

from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from torch.nn import functional

from framework.data.planning.collate import FixedShape
from framework.data.planning.plan import StepSequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError
from framework.nn.score_distillation import margin_losses, score_divergences
from framework.tasks.embedding.data import TextGroup
from framework.tasks.embedding.features import (
    SearchRole,
    labelled_source,
    match_source,
    scored_source,
    text_source,
)
from framework.tasks.embedding.head import EmbeddingHead
from framework.tasks.embedding.losses import NO_QUERY, cosent, info_nce, taught_scores
from framework.tasks.embedding.scores import cosine_scorer, pair_scores, search_scores
from framework.tasks.embedding.task import EmbeddingTask
from framework.tasks.pooling import POOLINGS
from tests.support.exports.small_exports import CONFIGS, make_tokenizer

TEMPERATURE = 0.3
TWO_CHANNELS = partial(cosine_scorer, size=2)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return Tokenizer.from_folder(make_tokenizer(tmp_path_factory.mktemp("tokenizer"), 0))


def rows_of(items: list[tuple[int, list[int]]], seed: int = 0) -> dict[str, torch.Tensor]:
    """Writes rows of items (query, texts)."""
    sizes = [len(texts) for _, texts in items]
    generator = torch.Generator().manual_seed(seed)
    return {
        "embeddings": torch.randn(sum(sizes), 6, generator=generator).requires_grad_(),
        "members": torch.tensor([member for size in sizes for member in range(size)]),
        "queries": torch.tensor([query for query, texts in items for _ in texts]),
        "texts": torch.tensor([text for _, texts in items for text in texts]),
    }


# Queries are ids of texts. 0 occurs twice; 11 answers two of them and is a hard negative of one; 5 is answer and query.
ITEMS = [
    (0, [0, 10, 20, 21]),
    (0, [0, 11]),
    (1, [1, 11, 22]),
    (2, [2, 5, 11]),
    (5, [5, 12]),
    (NO_QUERY, [13]),
]
# By item: its positive, and the texts excluded as negatives (positives as (item, 1), hard negatives as (item, n)).
ALLOWED = {
    0: [(0, 2), (0, 3), (2, 2), (3, 1), (4, 1)],
    1: [(0, 2), (0, 3), (2, 2), (3, 1), (4, 1)],
    2: [(0, 1), (0, 2), (0, 3), (2, 2), (3, 1), (4, 1)],
    3: [(0, 1), (1, 1), (2, 1), (4, 1), (0, 2), (0, 3), (2, 2), (3, 2)],
    4: [(0, 1), (1, 1), (2, 1), (0, 2), (0, 3), (2, 2), (3, 2)],
}
# The other anchors excluded for a positive.
ALLOWED_ANCHORS = {0: [2, 3, 4], 1: [3, 4], 2: [3, 4], 3: [0, 1, 2], 4: [0, 1, 2, 3]}


def direct_info_nce(rows: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    offset, starts = 0, []
    for _, texts in ITEMS:
        starts.append(offset)
        offset += len(texts)
    cosine = functional.cosine_similarity(rows["embeddings"][:, None], rows["embeddings"][None], dim=2) / TEMPERATURE
    forward, backward = torch.zeros(()), torch.zeros(())
    for item, allowed in ALLOWED.items():
        anchor, positive = starts[item], starts[item] + 1
        negatives = [starts[other] + member for other, member in allowed]
        forward = forward - cosine[anchor, [positive, *negatives]].log_softmax(0)[0]
        anchors = [starts[other] for other in ALLOWED_ANCHORS[item]]
        backward = backward - cosine[positive, [anchor, *anchors]].log_softmax(0)[0]
    return forward, backward


def test_info_nce_equals_that_of_one_matrix():
    rows = rows_of(ITEMS)
    ours, theirs = info_nce(rows, TEMPERATURE), direct_info_nce(rows)
    for one, other in zip(ours, theirs, strict=True):
        assert one.item() == pytest.approx(other.item(), rel=1e-5)
        gradients = [torch.autograd.grad(loss, rows["embeddings"], retain_graph=True)[0] for loss in (one, other)]
        torch.testing.assert_close(*gradients)
    # The text that is only a search candidate is not used.
    assert gradients[0][-1].abs().sum() == 0
    nothing = info_nce(rows_of([(NO_QUERY, [3])]), TEMPERATURE)
    nothing.sum().backward()
    assert nothing.tolist() == [0, 0]


def test_texts_of_one_label_are_no_negatives():
    """With two labels, each seen twice, an anchor has the two positives of the other label."""
    rows = rows_of([(0, [0, 0]), (1, [1, 1]), (0, [0, 0]), (1, [1, 1])])
    anchors, positives = (functional.normalize(rows["embeddings"][member::2], dim=1) for member in (0, 1))
    cosine = anchors @ positives.T / TEMPERATURE
    expected = sum(-cosine[i, [i, (i + 1) % 4, (i + 3) % 4]].log_softmax(0)[0] for i in range(4))
    assert info_nce(rows, TEMPERATURE)[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_cosent_equals_a_double_loop():
    rows = rows_of([(index, [index, index]) for index in range(5)])
    scores = [1.0, 3.0, 3.0, 0.0, 2.0]
    rows["scores"] = torch.tensor(scores).repeat_interleave(2)
    cosines = [functional.cosine_similarity(*pair, dim=0) for pair in rows["embeddings"].split(2)]
    inside = 1 + sum(
        ((cosines[j] - cosines[i]) / TEMPERATURE).exp() for i in range(5) for j in range(5) if scores[i] > scores[j]
    )
    # One value per step: five pairs in the denominator restore it.
    assert cosent(rows, TEMPERATURE).item() / 5 == pytest.approx(inside.log().item(), rel=1e-5)


def test_matryoshka_is_the_mean_over_truncated_embeddings():
    rows = rows_of(ITEMS)
    task = EmbeddingTask(temperature=TEMPERATURE, symmetric=True, matryoshka_sizes=[2, 4])
    sums = task.step_loss_sums(rows)
    by_size = [direct_info_nce({**rows, "embeddings": rows["embeddings"][:, :size]}) for size in (2, 4, 6)]
    assert sums["contrast"].item() == pytest.approx(sum(forward.item() for forward, _ in by_size) / 3, rel=1e-5)
    reverse = sum(backward.item() for _, backward in by_size) / 3
    assert sums["reverse_contrast"].item() == pytest.approx(reverse, rel=1e-5)


def group(*texts: str, answer: str | float | None = None) -> TextGroup:
    return TextGroup("rows.csv, row 1", texts, answer)


def test_items_of_pairs_end_with_the_search_candidates(tokenizer):
    groups = [group("a", "b b", "c"), group("d", "b  b"), group("a", "e")]
    source = match_source(groups, ["e", "f", "f"], ["contrast"], tokenizer, 8)
    assert source.records == [SearchRole(0, 1, 1), SearchRole(3, 1, None), SearchRole(0, 4, 1), SearchRole(None, 5, 0)]
    indices = np.arange(4)
    batch = source.build(StepSequences(np.zeros(4), indices, indices), 0)
    assert batch.lengths == (3, 4, 3, 3, 4, 3, 3, 3)
    assert batch.targets["queries"].tolist() == [0, 0, 0, 3, 3, 0, 0, NO_QUERY]
    assert batch.targets["texts"].tolist() == [0, 1, 2, 3, 1, 0, 4, 5]
    assert batch.counts == {"contrast": 3.0}
    scored = scored_source([group("a", "b", answer=1.5), group("c", "d", answer=0.5)], ["cosent"], tokenizer, 8)
    batch = scored.build(StepSequences(np.zeros(2), indices[:2], indices[:2]), 0)
    assert (batch.targets["scores"].tolist(), batch.counts) == ([1.5, 1.5, 0.5, 0.5], {"cosent": 2.0})


def labelled(tokenizer, seed=0, candidates=()):
    words = {"x": ["a", "a b", "a b c"], "y": ["d", "d e", "d e f", "d e f g"], "z": ["h"]}
    groups = [group(text, answer=label) for label, texts in words.items() for text in texts]
    return labelled_source(groups, candidates, ["contrast"], tokenizer, 12, seed), groups


def test_second_texts_are_drawn_evenly_from_the_others_of_the_label(tokenizer):
    source, groups = labelled(tokenizer)
    epochs = np.arange(3000).repeat(8)
    indices = np.tile(np.arange(8), 3000)
    drawn = source.positives(epochs, indices).reshape(3000, 8)
    for index, one in enumerate(groups):
        others = [i for i, other in enumerate(groups) if other.answer == one.answer and i != index] or [index]
        actual, counts = np.unique(drawn[:, index], return_counts=True)
        assert actual.tolist() == others
        # Binomial bounds: 4 standard deviations.
        share = 1 / len(others)
        assert np.abs(counts - 3000 * share).max() <= 4 * np.sqrt(3000 * share * (1 - share))
    # A function of seed, epoch and index: neither of the other items nor of the order.
    assert (source.positives(epochs[::-1], indices[::-1])[::-1].reshape(3000, 8) == drawn).all()
    assert (labelled(tokenizer, seed=1)[0].positives(epochs, indices).reshape(3000, 8) != drawn).any()
    # Two texts of one label are drawn independently.
    assert 0.2 < ((drawn[:, 0] == 1) == (drawn[:, 1] == 2)).mean() < 0.8


def test_a_micro_batch_of_labelled_texts(tokenizer):
    source, _ = labelled(tokenizer, candidates=[group("a b", answer="x"), group("h", answer="w")])
    epochs, indices = np.full(3, 7), np.array([9, 0, 6])
    second = source.positives(epochs[1:], indices[1:])
    batch = source.build(StepSequences(epochs, indices, np.array([20, 21, 22])), 0, FixedShape(40, 9, None, 12))
    lengths = np.array([3, 4, 5, 3, 4, 5, 6, 3])
    assert batch.lengths[:5] == (3, 3, lengths[second[0]], 6, lengths[second[1]])
    assert source.lengths(epochs, indices).tolist() == [3, 3 + lengths[second[0]], 6 + lengths[second[1]]]
    assert batch.sequence_ids[:5].tolist() == [40, 42, 43, 44, 45]
    assert batch.item_indices() == [20, 21, 22]
    assert batch.targets["queries"][:5].tolist() == [NO_QUERY, 0, 0, 1, 1]
    assert batch.counts == {"contrast": 2.0}
    assert source.records[0] == SearchRole(0, 0, None)
    assert source.records[8:] == [SearchRole(None, 0, 0), SearchRole(None, 3, 0)]
    none = np.zeros(0, dtype=np.int64)
    assert source.build(StepSequences(none, none, none), 0).num_sequences == 0


def test_vectors_of_items_keep_their_order(tokenizer):
    source = match_source([group("a", "b", "c"), group("d", "e")], ["f"], ["contrast"], tokenizer, 8)
    batch = source.build(
        StepSequences(np.zeros(3), np.array([2, 0, 1]), np.array([2, 0, 1])), 0, FixedShape(40, 12, None, 8)
    )
    vectors = torch.arange(12.0)[:, None].expand(12, 2)
    kept = EmbeddingTask().decode({"embeddings": vectors}, batch)
    assert [part[:, 0].tolist() for part in kept] == [[0], [1, 2], [4, 5]]


def test_pair_scores_equal_those_of_scipy():
    random = np.random.default_rng(0)
    vectors, references = random.normal(size=(30, 2, 8)), random.integers(0, 6, size=30).astype(float)
    cosines = [np.dot(a[:5], b[:5]) / np.linalg.norm(a[:5]) / np.linalg.norm(b[:5]) for a, b in vectors]
    actual = pair_scores(list(vectors), references.tolist(), 5)
    assert actual["spearman"] == pytest.approx(spearmanr(cosines, references).statistic)
    assert actual["pearson"] == pytest.approx(pearsonr(cosines, references).statistic)


def angle(degrees: float) -> list[float]:
    return [np.cos(np.radians(degrees)), np.sin(np.radians(degrees))]


def test_a_search_among_the_answers_of_pairs():
    """Answers 1, 2 and 3 are at 10, 50 and 170 degrees; query 0 has two of them, query 9 has the third."""
    records = [SearchRole(0, 1, 1), SearchRole(0, 2, 1), SearchRole(9, 1, None), SearchRole(None, 3, 0)]
    vectors = [[angle(40), angle(10)], [angle(100), angle(50)], [angle(60), angle(10)], [angle(170)]]
    actual = search_scores([np.array(part, dtype=np.float32) for part in vectors], records, TWO_CHANNELS)
    # Nearest first: answers 2 1 3; 2 3 1; 2 1 3. Relevant: 1 and 2; 1 and 2; 1.
    assert actual["mrr"] == pytest.approx((1 + 1 + 1 / 2) / 3)
    assert actual["hit_rate_at_1"] == pytest.approx(2 / 3)
    assert actual["recall_at_1"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    second, third = 1 / np.log2(3), 1 / np.log2(4)
    assert actual["ndcg_at_10"] == pytest.approx((1 + (1 + third) / (1 + second) + second) / 3)


def test_a_labelled_text_does_not_retrieve_itself():
    records = [SearchRole(0, 0, 0), SearchRole(1, 1, 0), SearchRole(0, 0, 0), SearchRole(2, 2, 0)]
    vectors = [np.array([angle(index)]) for index in (0, 20, 50, 90)]
    actual = search_scores(vectors, records, TWO_CHANNELS)
    # 0 retrieves 20 before 50, and 50 retrieves 20 before 0; the two others are alone with their label.
    assert actual["mrr"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert actual["hit_rate_at_5"] == 1


def test_embeddings_are_pooled_in_fp32(tokenizer):
    source = text_source([("a",), ("b c",)], {}, ["contrast"], tokenizer, 8)
    batch = source.build(StepSequences(np.zeros(2), np.arange(2), np.arange(2)), 0)
    states = torch.randn(7, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    mean = torch.stack([states[:3].float().mean(0), states[3:].float().mean(0)])
    whole = EmbeddingHead(POOLINGS["mean"], normalizes=False)(states, batch)["embeddings"]
    torch.testing.assert_close(whole, mean)
    unit = EmbeddingHead(POOLINGS["mean"], normalizes=True)(states, batch)["embeddings"]
    torch.testing.assert_close(unit, mean / mean.norm(dim=1, keepdim=True))
    first = EmbeddingHead(POOLINGS["cls"], normalizes=False)(states, batch)["embeddings"]
    torch.testing.assert_close(first, states[[0, 3]].float())


def test_impossible_settings_are_rejected():
    for settings in ({"temperature": 0.0}, {"max_length": 2}, {"pooling": "max"}, {"matryoshka_sizes": [4, 4]}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            EmbeddingTask(**settings)
    with pytest.raises(ConfigError, match="matryoshka_sizes has 32, but embeddings have 32"):
        EmbeddingTask(matryoshka_sizes=[32]).build_head(None, CONFIGS["bert"])


@pytest.mark.parametrize("losses", [margin_losses, score_divergences])
def test_scores_follow_those_of_a_teacher_anchor_by_anchor(losses) -> None:
    rows = rows_of(ITEMS)
    rows["teacher_scores"] = torch.randn(len(rows["texts"]), generator=torch.Generator().manual_seed(1)) * 5
    expected, start = torch.zeros(()), 0
    for _, texts in ITEMS:
        own = slice(start, start + len(texts))
        start += len(texts)
        if len(texts) < 3:
            continue
        vectors, taught = rows["embeddings"][own], rows["teacher_scores"][own][1:]
        scores = functional.cosine_similarity(vectors[:1], vectors[1:]) / TEMPERATURE
        if losses is margin_losses:
            expected = expected + functional.mse_loss(scores[0] - scores[1:], taught[0] - taught[1:])
        else:
            expected = expected + functional.kl_div(
                scores.log_softmax(0), taught.log_softmax(0), reduction="sum", log_target=True
            )
    found = taught_scores(rows, TEMPERATURE, losses)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(each, rows["embeddings"], retain_graph=True)[0] for each in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)
    # An empty step, and one without scores of a teacher, such as a BEIR folder.
    assert taught_scores({name: value[:0] for name, value in rows.items()}, TEMPERATURE, losses) == 0
    assert taught_scores(rows_of(ITEMS), TEMPERATURE, losses) == 0


def test_only_queries_with_several_candidates_count_for_a_teacher(tokenizer) -> None:
    groups = [
        TextGroup("", ("a", "b", "c"), teacher_scores=(3.0, 1.0)),
        TextGroup("", ("d", "e"), teacher_scores=(2.0,)),
    ]
    source = match_source(groups, [], ["kl"], tokenizer, 8)
    batch = source.build(StepSequences(np.zeros(2), np.arange(2), np.arange(2)), 0)
    assert batch.counts == {"kl": 1}
    assert batch.targets["teacher_scores"].tolist() == [0.0, 3.0, 1.0, 0.0, 2.0]
