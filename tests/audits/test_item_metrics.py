"""Tests of metrics of chosen items against the definitions of the metrics, computed from logits by hand."""

import numpy as np
import pytest
import torch

from framework.audits.item_metrics import MetricStates, measure_items
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.parallel.precision import resolve_precision
from framework.metrics.classification import Accuracy
from framework.models.encoder import TransformerEncoder
from framework.modules.inference import Inference
from framework.tasks.sequence_classification.features import classification_source
from framework.tasks.sequence_classification.task import SequenceClassificationTask
from framework.tasks.task import TaskModel
from tests.support.commands.in_process import TEXTS, tokenizer_folder
from tests.support.models.tiny import set_random_weights, tiny_config

__all__ = ["tokenizer_folder"]

ONCE = np.ones((1, 12))


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder) -> Tokenizer:
    return Tokenizer.from_folder(tokenizer_folder)


def measured(tokenizer: Tokenizer, problem: str, answers: list, budget: int):
    """Returns the results of a tiny random model on the first 12 texts, and its logits for one text at a time."""
    config = tiny_config(False)
    task = SequenceClassificationTask(max_length=24, problem=problem)
    names = () if problem == "regression" else ("no", "yes", "maybe")
    task.problem.learn(names, answers)
    encoder = TransformerEncoder(config)
    model = TaskModel(encoder, task.build_head(encoder, config))
    set_random_weights(model, 0)
    inference = Inference(model, task, budget, resolve_precision("fp32", "cpu"), torch.device("cpu"))

    def source(numbers: range):
        texts = [TEXTS[number] for number in numbers]
        return classification_source(
            texts, None, [answers[number] for number in numbers], task.problem, tokenizer, 24, texts
        )

    logits = []
    for number in range(12):
        (batch,) = inference.micro_batches(source(range(number, number + 1)))
        with torch.no_grad():
            logits.append(model(batch)["logits"][0].double().numpy())
    return measure_items(inference, source(range(12))), np.array(logits)


@pytest.mark.parametrize("budget", [24, 4096])
def test_accuracy_and_f1_of_chosen_items(budget, tokenizer):
    labels = ["no", "yes", "maybe"]
    answers = [labels[number % 3] for number in range(12)]
    results, logits = measured(tokenizer, "single_label", answers, budget)
    predicted = logits.argmax(axis=1)
    assert [each["label"] for each in results.predictions] == [labels[index] for index in predicted]
    right = predicted == np.arange(12) % 3
    assert 0 < right.sum() < 12
    items = np.array([1, 4, 5, 9, 11])
    weights = np.array([[1.0, 1, 1, 1, 1], [0, 3, 0, 0, 1], [2, 0, 0, 1, 0]])
    found = results.metrics["accuracy"].values(items, weights)
    assert found == pytest.approx(weights @ right[items] / weights.sum(axis=1), abs=1e-12)
    repeated = np.array([4, 4, 4, 11])
    truth = repeated % 3
    scores = [
        2 * ((predicted[repeated] == k) & (truth == k)).sum() / ((predicted[repeated] == k).sum() + (truth == k).sum())
        for k in range(3)
        if ((predicted[repeated] == k) | (truth == k)).any()
    ]
    assert results.metrics["macro_f1"].values(items, weights)[1] == pytest.approx(np.mean(scores), abs=1e-12)


def test_stored_targets_are_repeated(tokenizer):
    numbers = [float((7 * number) % 5) for number in range(12)]
    results, logits = measured(tokenizer, "regression", numbers, 48)
    items = np.arange(12)
    weights = np.array([[1.0] * 12, [2, 0, 1, 0, 3, 1, 1, 0, 0, 2, 1, 1]])
    found = results.metrics["pearson"].values(items, weights)
    for value, counts in zip(found, weights.astype(int), strict=True):
        chosen = np.repeat(items, counts)
        expected = np.corrcoef(logits[chosen, 0], np.array(numbers)[chosen])[0, 1]
        assert value == pytest.approx(expected, abs=1e-5)


def test_labels_above_the_threshold(tokenizer):
    answers = [("no", "yes") if number % 2 else ("maybe",) for number in range(12)]
    results, logits = measured(tokenizer, "multi_label", answers, 48)
    truth = np.array([[True, True, False] if number % 2 else [False, False, True] for number in range(12)])
    predicted = 1 / (1 + np.exp(-logits)) > 0.5
    chosen = np.array([0, 3, 7])
    expected = 2 * (truth & predicted)[chosen].sum() / (truth[chosen].sum() + predicted[chosen].sum())
    assert results.metrics["micro_f1"].values(chosen, np.ones((1, 3))) == pytest.approx(expected, abs=1e-12)


def test_a_metric_with_other_states_is_rejected():
    metric = Accuracy()
    metric.add_state("largest", torch.zeros(()), dist_reduce_fx="max")
    with pytest.raises(ValueError, match="Accuracy has states that are neither sums nor lists"):
        MetricStates(metric, [])
