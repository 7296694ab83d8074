"""The official score of SemEval-2010 task 8: by hand, and step by step like its scorer."""

from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score

from framework.batch import IGNORE_INDEX
from framework.metrics.relation_f1 import RelationF1

LABELS = ("A-B(e1,e2)", "A-B(e2,e1)", "C-D(e1,e2)", "Other", "E-F(e1,e2)", "E-F(e2,e1)")
A12, A21, C12, OTHER, E12, E21 = range(6)


def scored(pairs: list[tuple[int, int]], labels=LABELS, excluded_label: str | None = "Other") -> RelationF1:
    """Returns the metric after two micro-batches with fillers."""
    metric = RelationF1(labels, excluded_label)
    for some in (pairs[:2], pairs[2:]):
        truth = torch.tensor([true for true, _ in some] + [IGNORE_INDEX])
        predicted = torch.tensor([prediction for _, prediction in some] + [0])
        metric.update(torch.nn.functional.one_hot(predicted, len(labels)).float(), truth)
    return metric


def test_by_hand():
    metric = scored(
        [
            *((A12, A12), (A12, A21), (A21, A21), (A12, C12)),
            *((C12, C12), (C12, OTHER), (C12, E12)),
            *((OTHER, A12), (OTHER, OTHER)),
        ]
    )
    # A-B: 2 of 4 predictions (one has only the wrong direction), 2 of 4 in the data: F1 1/2. C-D: P 1/2, R 1/3: F1 2/5.
    # E-F is not in the data, and Other does not count.
    assert metric.compute().item() == pytest.approx((1 / 2 + 2 / 5) / 2)
    assert metric.rows() == [
        {"label": "A-B", "precision": 0.5, "recall": 0.5, "f1": 0.5, "wrong_direction": 1, "sequences": 4},
        {"label": "C-D", "precision": 0.5, "recall": 1 / 3, "f1": 0.4, "wrong_direction": 0, "sequences": 3},
        {"label": "Other", "precision": 0.5, "recall": 0.5, "f1": 0.5, "wrong_direction": 0, "sequences": 2},
        {"label": "E-F", "precision": 0.0, "recall": 0.0, "f1": 0.0, "wrong_direction": 0, "sequences": 0},
    ]
    assert scored([(OTHER, OTHER), (OTHER, A12)]).compute().item() == 0


def scorer(pairs: list[tuple[int, int]]) -> float:
    """Computes macro F1 like the scorer: wrong directions are counted separately and added to the predictions."""
    right: Counter[str] = Counter()
    predicted: Counter[str] = Counter()
    wrong_direction: Counter[str] = Counter()
    present: Counter[str] = Counter()
    for true, prediction in pairs:
        relation, proposed = LABELS[true].split("(")[0], LABELS[prediction].split("(")[0]
        present[relation] += 1
        if true == prediction:
            right[relation] += 1
            predicted[relation] += 1
        elif relation == proposed:
            wrong_direction[relation] += 1
        else:
            predicted[proposed] += 1
    scores = []
    for relation in present.keys() - {"Other"}:
        denominator = predicted[relation] + wrong_direction[relation]
        precision = right[relation] / denominator if predicted[relation] else 0.0
        recall = right[relation] / present[relation]
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    return sum(scores) / len(scores)


def test_the_value_equals_that_of_the_scorer():
    for seed in range(20):
        random = np.random.default_rng(seed)
        pairs = [
            (int(true), int(predicted)) for true, predicted in random.integers(0, 6 - seed % 2, size=(5 + 5 * seed, 2))
        ]
        pairs += [(A12, A12)]
        assert scored(pairs).compute().item() == pytest.approx(scorer(pairs), rel=1e-6)


@pytest.mark.parametrize("excluded", [None, "none"])
def test_labels_without_direction_are_macro_f1_without_the_excluded_one(excluded):
    pairs = [(int(true), int(predicted)) for true, predicted in np.random.default_rng(0).integers(0, 4, size=(60, 2))]
    truth, predicted = zip(*pairs, strict=True)
    labels = ("spouse", "born_in", "none", "made_of")
    counted = [index for index, label in enumerate(labels) if label != excluded]
    expected = f1_score(truth, predicted, labels=counted, average="macro")
    assert scored(pairs, labels, excluded).compute().item() == pytest.approx(expected, rel=1e-6)
