"""The examination of each task on tensors written by hand: confusions of entities, scores of rows, expected answers."""

from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from framework.data.examples.table import LabelledText
from framework.data.flat_source import FlatSource
from framework.data.planning.plan import StepSequences
from framework.modules.evaluation import SplitEvaluation
from framework.tasks.embedding.examine import examine_pairs, examine_search
from framework.tasks.embedding.features import SearchRole
from framework.tasks.embedding.scores import cosine_scorer
from framework.tasks.examination import ItemResults
from framework.tasks.question_answering.data import Answer, Question
from framework.tasks.question_answering.examine import NO_ANSWER, examine_answers
from framework.tasks.question_answering.features import Passage, Window
from framework.tasks.recommendation.catalogue import Catalogue
from framework.tasks.recommendation.examine import examine_trial
from framework.tasks.recommendation.trial import Question as Moment
from framework.tasks.recommendation.trial import Trial
from framework.tasks.sequence_classification.multi_label import MultiLabel
from framework.tasks.sequence_classification.regression import Regression
from framework.tasks.sequence_classification.single_label import SingleLabel
from framework.tasks.token_classification.decode import bio_tag_set
from framework.tasks.token_classification.examine import NO_ENTITY, examine_entities
from framework.tasks.token_classification.features import Example, Part


def results_of(decoded: list[Any], losses: list[float] | None = None) -> ItemResults:
    lengths = np.arange(3, 3 + len(decoded))
    return ItemResults(decoded, None if losses is None else np.array(losses), lengths)


def prediction(label: str, probability: float) -> dict[str, Any]:
    return {"label": label, "probability": probability}


def test_single_labels_ignore_out_of_scope_rows():
    problem = SingleLabel(out_of_scope_label="other")
    problem.labels = ("a", "b")
    records = [LabelledText(f"row {n}", f"text {n}", None, label) for n, label in enumerate(["a", "b", "other", "b"])]
    examination = problem.examine(
        records,
        results_of(
            [prediction("a", 0.9), prediction("a", 0.8), prediction("b", 0.7), prediction("b", 0.6)], [1, 2, 0, 4]
        ),
    )
    assert [row.score for row in examination.rows] == [1.0, 0.0, None, 1.0]
    assert [row.loss for row in examination.rows] == [1.0, 2.0, None, 4.0]
    assert examination.confusion is not None
    assert examination.confusion.counts.tolist() == [[1, 0], [1, 1]]
    assert examination.rows[1].expected == "b" and examination.rows[1].location == "row 1"


def test_several_labels_per_row():
    problem = MultiLabel()
    problem.labels = ("a", "b", "c", "d")
    records = [LabelledText("row 1", "one", "two", ("b", "a")), LabelledText("row 2", "three", None, ())]
    decoded = [
        {"labels": ["a", "c"], "probabilities": {"a": 0.9, "b": 0.4, "c": 0.6, "d": 0.1}},
        {"labels": [], "probabilities": {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}},
    ]
    examination = problem.examine(records, results_of(decoded))
    assert [row.score for row in examination.rows] == [0.5, 1.0]
    assert (examination.rows[0].expected, examination.rows[0].predicted) == ("a, b", "a, c")
    assert examination.rows[0].text == "one\ntwo"
    assert examination.outcomes is not None
    assert examination.outcomes.probabilities.tolist() == [0.9, 0.4, 0.6, 0.1, 0.1, 0.2, 0.3, 0.4]
    assert examination.outcomes.is_correct.tolist() == [True, True, False, False, *[False] * 4]


def test_expected_and_predicted_numbers():
    records = [LabelledText("", "x", None, 2.5), LabelledText("", "y", None, 0.0)]
    examination = Regression().examine(records, results_of([{"score": 2.0}, {"score": 1.0}], [0.25, 1.0]))
    assert examination.numbers is not None and examination.numbers.tolist() == [[2.5, 2.0], [0.0, 1.0]]
    assert [(row.expected, row.predicted, row.loss) for row in examination.rows] == [
        ("2.5", "2", 0.25),
        ("0", "1", 1.0),
    ]


def test_entities_are_missed_spurious_or_of_another_type():
    types = ("LOC", "PER")
    tags = bio_tag_set(types)
    first = Example(["Li", "Lei", "sees", "Paris"], ["B-PER", "I-PER", "O", "B-LOC"], location="sentence 1")
    second = Example(["no", "name"], ["O", "O"])
    predicted = [["B-LOC", "I-LOC", "O", "O"], ["O", "B-PER"]]
    scores = [np.full((len(each), len(tags)), np.log(0.05)) for each in predicted]
    for matrix, row in zip(scores, predicted, strict=True):
        matrix[np.arange(len(row)), [tags.index(tag) for tag in row]] = np.log(0.8)
    # The first sentence was two sequences, of three words and of one.
    parts = [Part(0, first), Part(0, first), Part(1, second)]
    examination = examine_entities(
        parts, results_of([scores[0][:3], scores[0][3:], scores[1]], [2.0, 6.0, 1.0]), tags, types, " ".join
    )
    assert examination.confusion is not None
    assert list(examination.confusion.labels) == ["LOC", "PER", NO_ENTITY]
    assert examination.confusion.counts.tolist() == [[0, 0, 1], [1, 0, 0], [0, 1, 0]]
    one, two = examination.rows
    assert (one.expected, one.predicted, one.text) == ("PER: Li Lei\nLOC: Paris", "LOC: Li Lei", "Li Lei sees Paris")
    assert (one.loss, one.length, one.score, one.location) == ((3 * 2.0 + 6.0) / 4, 3 + 4, 0.0, "sentence 1")
    assert (two.loss, two.length, two.score) == (1.0, 5, 0.0)
    assert examination.outcomes is not None
    assert examination.outcomes.probabilities == pytest.approx([0.8, 0.8])
    assert examination.outcomes.is_correct.tolist() == [False, False]


def test_questions_show_their_true_answers_and_locations():
    context = "word " * 60 + "the red house stands here. " + "word " * 80
    passage = Passage(np.zeros(0), np.zeros(0), np.zeros(0))
    questions = [
        Question("q1", "What stands?", context, (Answer("red house", 304), Answer("house", 308))),
        Question("q2", "Why?", "short", ()),
    ]
    windows = [
        Window(0, questions[0], passage, 0),
        Window(0, questions[0], passage, 5),
        Window(1, questions[1], passage, 0),
    ]
    predictions = [
        {"answer": "the red house", "probability": 0.7, "start": 300},
        {"answer": "short", "probability": 0.4, "start": 0},
    ]
    examination = examine_answers(windows, results_of([0, 0, 0]), predictions, "words")
    one, two = examination.rows
    assert (one.expected, one.predicted, one.score, one.length) == ("red house / house", "the red house", 1.0, 3 + 4)
    assert one.text is not None and one.text.startswith("What stands?\n… ") and "red house stands" in one.text
    assert one.text.endswith(" …") and len(one.text) < 400
    assert (two.expected, two.score, two.text) == (NO_ANSWER, 0.0, "Why?\nshort")
    assert examination.outcomes is not None and examination.outcomes.is_correct.tolist() == [True, False]


def test_pairs_out_of_order_and_queries_whose_answer_is_not_first():
    east, north, between = np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([0.8, 0.6])
    pairs = [np.stack([east, east]), np.stack([east, between]), np.stack([east, north])]
    examination = examine_pairs([5.0, 0.0, 1.0], results_of(pairs))
    assert [row.score for row in examination.rows] == pytest.approx([1.0, 0.5, 0.5])  # ranks 3 1 2 and 3 2 1
    assert examination.numbers == pytest.approx(np.array([[5.0, 1.0], [0.0, 0.8], [1.0, 0.0]]))

    records = [SearchRole(0, 10, 1), SearchRole(1, 11, 1), SearchRole(None, 12, 0)]
    vectors = [np.stack([east, north]), np.stack([north, north]), between[None]]
    scores = [row.score for row in examine_search(records, results_of(vectors), partial(cosine_scorer, size=2)).rows]
    # The first query ranks `between` before its answer, which then shares its rank with a later text.
    assert scores == [0.5, 0.5, None]


class SummedLosses:
    """The methods of a task that an evaluation with examination uses."""

    scores_predictions = False
    best_metric = "loss"
    validation_weights = MappingProxyType({"a": 1.0})

    def build_metrics(self):
        return {}

    def update_metrics(self, metrics, outputs, batch):
        pass

    def sequence_losses(self, outputs, batch):
        return outputs["losses"]

    def decode(self, outputs, batch):
        return ["first", "second"]

    def class_table(self, metrics, source, decoded):
        return []

    def examine(self, source, results):
        return results


def test_losses_of_the_sequences_of_an_item_are_summed():
    counts = {"a": np.ones(3)}
    source = FlatSource(np.zeros(8), np.array([2, 3, 3]), {}, counts, max_length=9, item_sizes=np.array([2, 1]))
    indices = np.arange(2)
    batch = source.build(StepSequences(np.zeros(2, dtype=np.int64), indices, indices), step=0)
    evaluation = SplitEvaluation(SummedLosses(), source, torch.device("cpu"), examines=True)
    evaluation.update({"losses": torch.tensor([1.0, 2.0, 4.0])}, {"a": torch.tensor(7.0)}, batch)
    assert evaluation.compute()["loss"] == pytest.approx(7 / 3)
    results = evaluation.examine().examination
    assert results.losses.tolist() == [3.0, 4.0]
    assert results.lengths.tolist() == [5, 3]
    assert results.decoded == ["first", "second"]


def test_an_examined_trial_shows_history_and_recommendations():
    catalogue = Catalogue(tuple("abcd"), ("Alpha", "Beta", "Gamma", "Delta"), np.ones(4))
    first = Moment(user=0, history=np.array([0]), seen=np.array([0]), relevant=np.array([2]))
    second = Moment(user=1, history=np.array([3, 1]), seen=np.array([1, 3]), relevant=np.array([0, 2]))
    trial = Trial([first, second], num_cold=0, num_likes=3, baselines={})
    scores = {0: [9.0, 3.0, 2.0, 1.0], 1: [4.0, 9.0, 3.0, 9.0]}
    # Two segments precede the catalogue, whose texts have 5 to 8 tokens.
    examination = examine_trial(
        trial,
        lambda chunk: np.array([scores[each.user] for each in chunk]),
        catalogue,
        results_of([None] * 6),
        max_history=1,
    )
    one, other = examination.rows
    assert (one.text, one.expected, one.predicted) == ("liked before: Alpha", "Gamma", "Beta; Gamma; Delta")
    # The second of the list: 1 / log2(3) beside an ideal of 1.
    assert one.score == pytest.approx(0.6309298, abs=1e-6)
    assert (other.text, other.predicted, other.score) == ("liked before: Delta; Beta", "Alpha; Gamma", 1.0)
    assert (one.length, other.length) == (5, 6)
