"""Every loss against a slow formula in plain Python, and against sentence-transformers where it is installed."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from framework.batch import PackedBatch
from framework.data.planning.plan import StepSequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.tasks.reranking.candidates import CandidateList
from framework.tasks.reranking.features import by_list, candidate_source
from framework.tasks.reranking.losses import ScoredLists
from framework.tasks.reranking.objectives import build_objectives
from framework.tasks.reranking.task import RerankingTask

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
# Scores, relevance and teacher scores of two lists of different length.
SCORES = [[0.3, -1.2, 2.0, 0.1], [1.5, -0.5]]
GRADED = [[0.0, 2.0, 1.0, 0.0], [0.0, 1.0]]
SHARES = [[0.0, 1.0, 0.5, 0.0], [0.0, 1.0]]
TEACHER = [[0.2, 3.0, 1.0, 1.0], [-1.0, 0.5]]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def pointwise(scores, relevance, teacher, weight=1.0):
    return -sum(
        weight * y * math.log(sigmoid(s)) + (1 - y) * math.log(1 - sigmoid(s))
        for s, y in zip(scores, relevance, strict=True)
    )


def pairs(relevance):
    size = range(len(relevance))
    return [(i, j) for i in size for j in size if relevance[i] > relevance[j]]


def pairwise(scores, relevance, teacher):
    return sum(math.log(1 + math.exp(scores[j] - scores[i])) for i, j in pairs(relevance))


def listwise(scores, relevance, teacher):
    total = sum(math.exp(s) for s in scores)
    return -sum(y / sum(relevance) * math.log(math.exp(s) / total) for s, y in zip(scores, relevance, strict=True))


def lambda_loss(scores, relevance, teacher):
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    rank = {index: place for place, index in enumerate(order, start=1)}
    best = sum((2**y - 1) / math.log2(1 + r) for r, y in enumerate(sorted(relevance, reverse=True), start=1))
    loss = 0.0
    for i, j in pairs(relevance):
        gain = abs(2 ** relevance[i] - 2 ** relevance[j]) / best
        distance = abs(rank[i] - rank[j])
        delta = abs(1 / math.log2(1 + distance) - 1 / math.log2(2 + distance))
        discount = abs(1 / math.log2(1 + rank[i]) - 1 / math.log2(1 + rank[j]))
        loss -= (10 * delta + discount) * gain * math.log2(sigmoid(scores[i] - scores[j]))
    return loss


def adr_mse(scores, relevance, teacher):
    loss = 0.0
    for i, s in enumerate(scores):
        approximate = 1 + sum(sigmoid(other - s) for j, other in enumerate(scores) if j != i)
        above = sum(other > teacher[i] for other in teacher)
        rank = above + (1 + teacher.count(teacher[i])) / 2
        loss += (rank - approximate) ** 2 / math.log2(1 + rank)
    return loss


def margin_mse(scores, relevance, teacher):
    best = relevance.index(max(relevance))
    others = [index for index in range(len(scores)) if index != best]
    errors = [(scores[best] - scores[i] - (teacher[best] - teacher[i])) ** 2 for i in others]
    return sum(errors) / len(errors)


def kl(scores, relevance, teacher, temperature=1.0):
    model, target = ([math.exp(x / temperature) for x in values] for values in (scores, teacher))
    model, target = ([x / sum(values) for x in values] for values in (model, target))
    return temperature**2 * sum(p * math.log(p / q) for p, q in zip(target, model, strict=True))


# Formula, relevance, arguments of the loss, and the counts of both lists.
CASES = {
    "pointwise": (pointwise, SHARES, {}, [4, 2]),
    "pointwise weighted": (partial(pointwise, weight=3.0), SHARES, {"positive_weight": 3.0}, [4, 2]),
    "pairwise": (pairwise, GRADED, {}, [5, 1]),
    "listwise": (listwise, GRADED, {}, [1, 1]),
    "lambda": (lambda_loss, GRADED, {}, [5, 1]),
    "adr_mse": (adr_mse, GRADED, {}, [4, 2]),
    "margin_mse": (margin_mse, GRADED, {}, [1, 1]),
    "kl": (kl, GRADED, {}, [1, 1]),
    "kl warm": (partial(kl, temperature=2.0), GRADED, {"temperature": 2.0}, [1, 1]),
}


def padded(lists: list[list[float]], filler: float = 0.0) -> torch.Tensor:
    """Returns (3, 5): two lists and one without candidates."""
    rows = [[*own, *[filler] * (5 - len(own))] for own in [*lists, []]]
    return torch.tensor(rows, dtype=torch.float64)


def scored(relevance: list[list[float]], scores: torch.Tensor) -> ScoredLists:
    is_real = padded([[1.0] * len(own) for own in SCORES]).bool()
    return ScoredLists(scores, padded(relevance), padded(TEACHER), is_real)


@pytest.mark.parametrize("name", CASES)
def test_losses_by_hand(name):
    formula, relevance, arguments, counts = CASES[name]
    objective = build_objectives(**arguments)[name.split()[0]]
    expected = [formula(*own) for own in zip(SCORES, relevance, TEACHER, strict=True)]
    scores = padded(SCORES, filler=7.0).requires_grad_()
    losses = objective.losses(scored(relevance, scores))
    assert losses.tolist() == pytest.approx([*expected, 0.0], rel=1e-6, abs=1e-12)
    losses.sum().backward()
    # Finite differences of the formula; padding has no gradient.
    step = 1e-5
    for row, own in enumerate(SCORES):
        for column in range(len(own)):
            moved = [
                formula([x + sign * step * (i == column) for i, x in enumerate(own)], relevance[row], TEACHER[row])
                for sign in (1, -1)
            ]
            assert scores.grad[row, column].item() == pytest.approx((moved[0] - moved[1]) / (2 * step), abs=1e-5)
    assert scores.grad[padded([[1.0] * len(own) for own in SCORES]) == 0].abs().max() == 0
    lists = [CandidateList("", "", tuple("abcdefgh"[: len(own)]), tuple(own)) for own in relevance]
    assert [objective.count(each) for each in lists] == counts


def test_extreme_scores_have_finite_losses_and_gradients():
    for name, objective in build_objectives().items():
        scores = torch.tensor([[200.0, -200.0, 0.0, 0.0, 0.0]] * 3).requires_grad_()
        relevance = torch.tensor([[0.0, 1.0, 0.0, 0.0, 0.0], [0.0] * 5, [0.0] * 5])
        is_real = torch.tensor([[True, True, True, False, False], [True] + [False] * 4, [False] * 5])
        losses = objective.losses(ScoredLists(scores, relevance, relevance, is_real))
        losses.sum().backward()
        assert losses.isfinite().all() and scores.grad.isfinite().all(), name
        if name != "pointwise":  # a single candidate has no order
            assert losses[1:].tolist() == [0.0, 0.0], name


@pytest.mark.parametrize(
    ("name", "theirs"), [("pairwise", "RankNetLoss"), ("lambda", "LambdaLoss"), ("adr_mse", "ADRMSELoss")]
)
def test_losses_equal_those_of_sentence_transformers(name, theirs):
    """Its RankNet takes logarithms to base 2."""
    losses = pytest.importorskip("sentence_transformers.cross_encoder.losses")

    class Scorer(torch.nn.Module):
        """Model whose documents are their scores."""

        num_labels = 1
        device = torch.device("cpu")

        def preprocess(self, texts, **_):
            return {"numbers": torch.tensor([float(text) for _, text in texts])}

        def forward(self, inputs):
            return {"scores": inputs["numbers"][:, None]}

    labels = TEACHER if name == "adr_mse" else GRADED
    documents = [[str(score) for score in own] for own in SCORES]
    expected = getattr(losses, theirs)(Scorer())([["q", "q"], documents], [torch.tensor(own) for own in labels])
    ours = build_objectives()[name].losses(scored(GRADED, padded(SCORES))).sum().item() / sum(CASES[name][3])
    assert ours / (math.log(2) if name == "pairwise" else 1) == pytest.approx(expected.item(), rel=1e-5)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return Tokenizer.from_folder(folder)


def batch_of(tokenizer: Tokenizer, task: RerankingTask, items: list[int]) -> PackedBatch:
    lists = [
        CandidateList("1", "a b", ("c", "d e", "f", "g"), tuple(SHARES[0]), tuple(TEACHER[0])),
        CandidateList("2", "a", ("h", "b c d e f g h"), tuple(SHARES[1]), tuple(TEACHER[1])),
    ]
    source = candidate_source(lists, tokenizer, 9, task.loss, task.objective.count)
    indices = np.array(items, dtype=np.int64)
    return source.build(StepSequences(indices * 0, indices, indices), 0)


def test_items_by_hand(tokenizer):
    batch = batch_of(tokenizer, RerankingTask(max_length=9, loss="pairwise"), [1, 0])
    assert [" ".join(WORDS[each] for each in ids) for ids in batch.input_ids.split(batch.lengths)] == [
        "[CLS] a [SEP] h [SEP]",
        "[CLS] a [SEP] b c d e f [SEP]",
        *(f"[CLS] a b [SEP] {document} [SEP]" for document in ("c", "d e", "f", "g")),
    ]
    assert batch.targets["places"].tolist() == [0, 1, 0, 1, 2, 3]
    assert batch.targets["relevance"].tolist() == [0, 1, 0, 1, 0.5, 0]
    assert batch.targets["teacher_scores"].tolist() == pytest.approx([-1, 0.5, 0.2, 3, 1, 1])
    assert batch.counts == {"pairwise": 6.0, "lists": 2.0}
    assert batch.item_indices() == [1, 0]


@pytest.mark.parametrize("loss", build_objectives())
def test_a_micro_batch_sums_its_lists(tokenizer, loss):
    task = RerankingTask(max_length=9, loss=loss)
    both, none = batch_of(tokenizer, task, [1, 0]), batch_of(tokenizer, task, [])
    logits = torch.tensor([*SCORES[1], *SCORES[0]])[:, None]
    formula = {**CASES, "pointwise": CASES["pointwise"]}[loss][0]
    first, second = (formula(*own) for own in zip(SCORES, SHARES, TEACHER, strict=True))
    losses = task.sequence_losses({"logits": logits}, both)
    assert losses.tolist() == pytest.approx([second, 0, first, 0, 0, 0], rel=1e-5)
    assert task.loss_sums({"logits": logits}, both)[loss].item() == pytest.approx(first + second, rel=1e-5)
    assert task.loss_sums({"logits": torch.ones(1, 1)}, none)[loss].item() == 0.0
    assert none.counts == {loss: 0.0, "lists": 0.0} and by_list(torch.ones(1, 1), none).is_real.sum() == 0
    decoded = task.decode({"logits": logits}, both)
    assert [pytest.approx(own) for own in decoded] == [SCORES[1], SCORES[0]]
    assert task.decode({"logits": torch.ones(1, 1)}, none) == []
