"""Tests that comprehensiveness and sufficiency of a model with known word weights are those computed by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from framework.batch import PackedBatch
from framework.data.flat_source import FlatSource
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.parallel.precision import resolve_precision
from framework.modules.explanations.faithfulness import measure_faithfulness
from framework.modules.inference import Inference
from framework.tasks.explained_split import RowExplanation
from tests.support.commands.in_process import tokenizer_folder

__all__ = ["tokenizer_folder"]

WEIGHTS = [0.5, 0.25, 0.125, 0.0625, 0.0, -0.25]
"""Weight of each of the six words; masked words have none."""


class WeightedWords(nn.Module):
    """Model whose score is the sum of the weights of the words of a sequence."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, batch: PackedBatch) -> dict[str, Tensor]:
        parts = self.weights[batch.input_ids.long()].split(list(batch.lengths))
        return {"scores": torch.stack([part.sum() for part in parts[: batch.num_sequences]])}


class WeightedTask:
    """Task whose predictions have the score as a probability, or none."""

    def __init__(self, has_probabilities: bool) -> None:
        self.has_probabilities = has_probabilities

    def decode(self, outputs: dict[str, Tensor], batch: PackedBatch) -> list[dict[str, Any]]:
        scores = outputs["scores"].tolist()
        return [{"probabilities": {"yes": score}} if self.has_probabilities else {"score": score} for score in scores]

    def explained_scores(self, outputs: dict[str, Tensor], batch: PackedBatch, targets: list[float]) -> Tensor:
        return outputs["scores"] * torch.tensor(targets)


@pytest.fixture
def tokenizer(tokenizer_folder) -> Tokenizer:
    return Tokenizer.from_folder(tokenizer_folder)


def measure(tokenizer: Tokenizer, has_probabilities: bool, target: float, budget: int = 64, rows: int = 1):
    words = tokenizer.ordinary_ids[: len(WEIGHTS)].astype(np.int32)
    weights = torch.zeros(tokenizer.vocab_size, dtype=torch.float64)
    weights[torch.from_numpy(words)] = torch.tensor(WEIGHTS, dtype=torch.float64)
    ids = np.array([tokenizer.cls_id, *words, tokenizer.sep_id], dtype=np.int32)
    source = FlatSource(np.tile(ids, rows), np.full(rows, len(ids)), {}, {}, max_length=8)
    task: Any = WeightedTask(has_probabilities)
    model: Any = WeightedWords(weights)
    inference = Inference(model, task, budget, resolve_precision("fp32", "cpu"), torch.device("cpu"))
    index = np.array([-1, *range(len(WEIGHTS)), -1])
    scores = np.array([0.0, *WEIGHTS, 0.0])
    explanations = [RowExplanation(row, "yes", 0.0, 0.0, ids, scores, index) for row in range(rows)]
    return measure_faithfulness(inference, tokenizer, source, explanations, list(range(rows)), [target] * rows)


def test_values_are_those_computed_by_hand(tokenizer):
    """All words give 0.6875. 10 and 20 % of six words are one word, 0.5; 50 % are three words, 0.875."""
    measured = measure(tokenizer, True, 1.0)
    assert (measured.value, list(measured.fractions)) == ("probability", [0.1, 0.2, 0.5])
    assert measured.comprehensiveness.tolist() == [[0.5, 0.5, 0.875]]
    assert measured.sufficiency.tolist() == [[0.1875, 0.1875, -0.1875]]


def test_without_probabilities_the_explained_score_is_measured(tokenizer):
    measured = measure(tokenizer, False, 2.0)
    assert measured.value == "score"
    assert measured.comprehensiveness.tolist() == [[1.0, 1.0, 1.75]]
    assert measured.sufficiency.tolist() == [[0.375, 0.375, -0.375]]


def test_random_words_are_as_many_and_drawn_by_row(tokenizer):
    measured = measure(tokenizer, True, 1.0, rows=400)
    mean = sum(WEIGHTS) / len(WEIGHTS)
    # A random word has the mean weight; the standard deviation of the weights is 0.23.
    assert measured.random_comprehensiveness[:, 0].mean() == pytest.approx(mean, abs=5 * 0.23 / 20)
    assert measured.random_comprehensiveness[:, 2].mean() == pytest.approx(3 * mean, abs=5 * 0.4 / 20)
    assert len(np.unique(measured.random_comprehensiveness[:, 0])) == len(WEIGHTS)
    # What is masked and what is kept complement each other.
    totals = measured.random_comprehensiveness + measured.random_sufficiency
    assert np.allclose(totals, sum(WEIGHTS))
    assert np.array_equal(measured.random_sufficiency[:9], measure(tokenizer, True, 1.0, 9, 9).random_sufficiency)


def test_special_tokens_are_never_masked(tokenizer):
    seen: list[np.ndarray] = []
    original = WeightedWords.forward

    def record(self: WeightedWords, batch: PackedBatch) -> dict[str, Tensor]:
        seen.extend(part.numpy() for part in batch.input_ids.split(list(batch.lengths))[: batch.num_sequences])
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WeightedWords, "forward", record)
        measure(tokenizer, True, 1.0)
    assert len(seen) == 13
    assert all(ids[0] == tokenizer.cls_id and ids[-1] == tokenizer.sep_id for ids in seen)
    num_masked = [int((ids == tokenizer.mask_id).sum()) for ids in seen]
    assert num_masked == [0, *[1, 1, 3, 5, 5, 3] * 2]
