"""Tests that explained scores are those of the definitions, and that words have their characters, for every task."""

from typing import Any

import numpy as np
import pytest
import torch

from framework.data.planning.plan import StepSequences
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.parallel.precision import resolve_precision
from framework.inference.explained_rows import scored_words
from framework.models.encoder import TransformerEncoder
from framework.modules.explanations.attribution import Attribution, attribute
from framework.modules.inference import Inference
from framework.tasks.embedding.task import EmbeddingTask
from framework.tasks.explanation import Explained
from framework.tasks.multiple_choice.task import MultipleChoiceTask
from framework.tasks.question_answering.task import QuestionAnsweringTask
from framework.tasks.relation_extraction.task import RelationExtractionTask
from framework.tasks.reranking.task import RerankingTask
from framework.tasks.task import Task, TaskModel
from framework.tasks.token_classification.decode import bio_tag_set
from framework.tasks.token_classification.task import TokenClassificationTask
from tests.support.commands.in_process import TEXTS, train_vocabulary
from tests.support.models.tiny import tiny_config

LONG = " ".join(TEXTS[:8])
QUESTIONS = [
    {"question": "A  fine film?", "context": LONG},
    {"question": "a good fine film of 1990 or bad poor film", "context": "a Poor film, of  1990"},
]
CHOICES = [
    {"question": "good film", "choices": '["bad", "a fine film of 1990", "poor"]'},
    {"question": "bad", "choices": '["of 1991", "film"]'},
]
CANDIDATES = [
    {"query": "good film", "documents": '["bad", "a fine film of 1990", "poor"]'},
    {"query": "bad", "documents": "of 1991"},
]
PAIRS = [{"text": "a GOOD film", "pair": "a fine  film of 1990"}, {"text": "bad", "pair": "a poor film, of 1993"}]
SENTENCES = [{"text": "a good-fine  film"}, {"tokens": '["a", "bad-good", "film"]'}, {"text": LONG}]
MARKED = [
    {"text": "a <e1>good</e1> film of <e2>1990</e2>"},
    {"text": "a fine a fine <e2>bad film</e2> or a <e1>poor film</e1> of 1990 of 1990"},
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_vocabulary([*TEXTS, "or which year - , ? @ #"], 95, folder)
    return Tokenizer.from_folder(folder)


def tagger() -> TokenClassificationTask:
    task = TokenClassificationTask(max_length=16, stride=4, units="white_space")
    task.tags = bio_tag_set(("x", "y"))
    return task


def relations() -> RelationExtractionTask:
    task = RelationExtractionTask(max_length=16)
    task.labels = ("no", "yes", "maybe")
    return task


def chooser(has_context: bool = False) -> MultipleChoiceTask:
    task = MultipleChoiceTask(max_length=24, pooling="mean")
    task.has_context = has_context
    return task


def answerer(threshold: float | None = None) -> QuestionAnsweringTask:
    return QuestionAnsweringTask(24, 4, max_question_length=8, no_answer_threshold=threshold)


CASES = {
    "answers": (answerer, QUESTIONS),
    "no_answers": (lambda: answerer(-1000.0), QUESTIONS),
    "choices": (chooser, CHOICES),
    "contexts": (lambda: chooser(True), [{**row, "context": "a year? of 1990"} for row in CHOICES]),
    "candidates": (lambda: RerankingTask(max_length=24, pooling="mean"), CANDIDATES),
    "pairs": (lambda: EmbeddingTask(max_length=12), PAIRS),
    "prompted": (lambda: EmbeddingTask(max_length=16, prompts={"query": "a year: ", "document": "film "}), PAIRS),
    "entities": (tagger, SENTENCES),
    "relations": (relations, MARKED),
}


class Explanations:
    """Explanations of all rows of a case by a tiny model with large random weights."""

    def __init__(self, name: str, tokenizer: Tokenizer, budget: int = 4096) -> None:
        build, values = CASES[name]
        config = tiny_config(True)
        self.task: Task = build()
        encoder = TransformerEncoder(config)
        model = TaskModel(encoder, self.task.build_head(encoder, config))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name_, parameter in model.named_parameters():
                parameter.normal_(float(name_.endswith("norm.weight")), 0.3, generator=generator)
        self.inference = Inference(model, self.task, budget, resolve_precision("fp32", "cpu"), torch.device("cpu"))
        self.values: list[dict[str, str]] = values
        self.rows = [Row(number, None, row) for number, row in enumerate(values, start=1)]
        self.source: Any = self.task.build_source(self.rows, tokenizer)
        self.tokenizer = tokenizer
        decoded = self.inference.decode(self.source)
        self.predictions = self.task.assemble(self.source, decoded)
        self.by_row = self.task.explained(self.source, decoded, None)

    @property
    def scores(self) -> list[Explained]:
        return [each for row in self.by_row for each in row]

    def attributed(self, method: str = "integrated_gradients") -> list[Attribution]:
        return attribute(self.inference, self.tokenizer, self.source, self.scores, method)  # type: ignore[arg-type]

    def outputs(self, item: int) -> tuple[list[int], dict[str, np.ndarray]]:
        """Returns the ids and the outputs of an item that is run alone."""
        batch = self.source.build(StepSequences(np.array([0]), np.array([item]), np.array([0])), 0)
        with torch.no_grad():
            outputs = self.inference.model(batch)
        return batch.input_ids.tolist(), {name: value.numpy() for name, value in outputs.items()}

    def words(self, row: int) -> list[list[dict[str, Any]]]:
        """Returns the words of each explanation of a row, where the score of a token is its index."""
        found = []
        for each in self.by_row[row]:
            ids, _ = self.outputs(each.item)
            attribution = Attribution(np.array(ids), np.arange(len(ids), dtype=float), 0.0, 0.0, None)
            spans = self.task.explained_spans(self.source, each, self.values[row], self.tokenizer)
            found.append(scored_words(attribution, spans, self.tokenizer))
        return found


def expected(case: Explanations, row: int) -> list[float]:
    """Returns the scores of a row, by their definitions, from single items and the texts of the prediction."""
    prediction, ids_of = case.predictions[row], case.tokenizer.encode_batch
    if "n_best" in prediction:
        items = [item for item, window in enumerate(case.source.records) if window.row == row]
        outputs = [case.outputs(item) for item in items]
        if prediction["start"] is None:
            return [float(min(each["start_logits"][0] + each["end_logits"][0] for _, each in outputs))]
        (answer,) = ids_of([prediction["answer"]])
        best = -np.inf
        for ids, each in outputs:
            for first in range(6 if row == 0 else 10, len(ids) - len(answer)):
                if ids[first : first + len(answer)] == answer.tolist():
                    best = max(best, each["start_logits"][first] + each["end_logits"][first + len(answer) - 1])
        return [float(best)]
    if "choices" in prediction:
        return [float(case.outputs(row)[1]["logits"][prediction["index"], 0])]
    if "ranks" in prediction:
        items = [item for item, each in enumerate(case.source.records) if each.row == row]
        return [max(float(case.outputs(item)[1]["logits"][0, 0]) for item in items)]
    if "cosine" in prediction:
        first, second = case.outputs(row)[1]["embeddings"].astype(float)
        return [first @ second / np.linalg.norm(first) / np.linalg.norm(second)]
    if "label" in prediction:
        return [float(case.outputs(row)[1]["logits"][0].max())]
    raise AssertionError(prediction)


@pytest.mark.parametrize("name", [name for name in CASES if name != "entities"])
def test_scores_follow_their_definitions(name, tokenizer):
    case = Explanations(name, tokenizer)
    results = iter(case.attributed("gradient"))
    for row, scores in enumerate(case.by_row):
        for each, value in zip(scores, expected(case, row), strict=True):
            assert next(results).score == pytest.approx(value, abs=1e-5)
            names = [case.predictions[row].get(key) for key in ("answer", "label")]
            names += ["cosine", *case.predictions[row].get("documents", [])]
            assert each.name in names


def window_of(word: int, num_words: int) -> tuple[int, int]:
    """Returns the start of the window of 14 one-token words that predicts a word, and its token there."""
    starts = [start for start in range(0, num_words, 4) if start == 0 or start + 10 < num_words]
    inside = [(start, min(start + 14, num_words)) for start in starts if start <= word < start + 14]
    start = max(inside, key=lambda each: (min(word - each[0], each[1] - 1 - word), -each[0]))[0]
    return start, 1 + word - start


def test_scores_of_entities_are_means_of_their_tags(tokenizer):
    case = Explanations("entities", tokenizer)
    results = iter(case.attributed("gradient"))
    num_split = 0
    for row, (prediction, scores) in enumerate(zip(case.predictions, case.by_row, strict=True)):
        assert [each.details["entity"] for each in scores] == list(range(len(prediction["entities"])))
        columns = [case.task.tags.index(tag) for tag in prediction["tags"]]  # type: ignore[attr-defined]
        for each, entity in zip(scores, prediction["entities"], strict=True):
            assert each.name == entity["label"]
            start, end = entity["start"], entity["end"]
            if "text" in case.values[row]:
                start, end = (len(case.values[row]["text"][:offset].split()) for offset in (start, end))
            places = {word: ((0, (1, 2, 5)[word]) if row < 2 else window_of(word, 40)) for word in range(start, end)}
            windows = [window for window, _ in places.values()]
            num_split += len(set(windows)) > 1
            chosen = max(sorted(set(windows)), key=windows.count)
            item = row if row < 2 else 2 + chosen // 4
            _, outputs = case.outputs(item)
            values = [
                outputs["logits"][token, columns[word]] for word, (window, token) in places.items() if window == chosen
            ]
            assert next(results).score == pytest.approx(float(np.mean(values)), abs=1e-5)
    assert num_split, "an entity must cross the edge of two windows"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", ["integrated_gradients", "leave_one_out", "attention_rollout"])
def test_packing_changes_nothing(name, method, tokenizer):
    one, other = (Explanations(name, tokenizer, budget).attributed(method) for budget in (4096, 1))
    for packed, single in zip(one, other, strict=True):
        scale = max(1.0, abs(single.score), np.abs(single.token_scores).max())
        assert packed.score == pytest.approx(single.score, abs=1e-6 * scale)
        assert np.allclose(packed.token_scores, single.token_scores, rtol=0, atol=1e-6 * scale)
        if method == "integrated_gradients":
            assert packed.error < 1e-3  # type: ignore[operator]


def texts_of(words: list[dict[str, Any]], field: str) -> list[str]:
    return [each["text"] for each in words if each["field"] == field]


@pytest.mark.parametrize("name", CASES)
def test_words_have_the_characters_of_the_texts_as_given(name, tokenizer):
    case = Explanations(name, tokenizer)
    for row, values in enumerate(case.values):
        for words, each in zip(case.words(row), case.by_row[row], strict=True):
            assert words
            for word in words:
                if word["start"] is None:
                    assert word["text"] in {"relations": "@#", "prompted": "a year: film"}[name]
                    continue
                field = word.get("field", "text" if "text" in values else "tokens")
                text: Any = values[field]
                if field == "tokens":
                    assert word["text"] == ["a", "bad-good", "film"][word["start"]] and word["end"] == word["start"] + 1
                    continue
                if field in ("choices", "documents"):
                    text = each.name
                if name == "relations":
                    text = text.replace("<e1>", "").replace("</e1>", "").replace("<e2>", "").replace("</e2>", "")
                assert text[word["start"] : word["end"]] == word["text"] == word["text"].strip() != ""


def test_each_field_has_its_words_in_their_order(tokenizer):
    answers = Explanations("answers", tokenizer)
    (words,) = answers.words(0)
    assert texts_of(words, "question") == ["A", "fine", "film", "?"]
    window = answers.source.records[answers.by_row[0][0].item]
    assert texts_of(words, "context") == LONG.split()[window.first : window.first + 24 - 7]
    assert LONG[: words[4]["start"]].split() == LONG.split()[: window.first]
    contexts = Explanations("contexts", tokenizer)
    (words,) = contexts.words(0)
    assert texts_of(words, "context") == ["a", "year", "?", "of", "1990"]
    assert texts_of(words, "question") == ["good", "film"]
    assert " ".join(texts_of(words, "choices")) == contexts.by_row[0][0].name
    (words,) = Explanations("pairs", tokenizer).words(1)
    assert texts_of(words, "pair") == ["a", "poor", "film", ",", "of", "1993"]
    entities = Explanations("entities", tokenizer)
    for words in entities.words(0):
        assert [(each["text"], each["start"], each["score"]) for each in words] == [
            *[("a", 0, 1.0), ("good-fine", 2, 2.0 + 3.0 + 4.0), ("film", 13, 5.0)]
        ]


def test_parts_that_are_cut_are_stated(tokenizer):
    def cut_of(name: str, row: int) -> list[tuple[str, str]]:
        case = Explanations(name, tokenizer)
        spans = case.task.explained_spans(case.source, case.by_row[row][0], case.values[row], tokenizer)
        return [(each.field, str(spans.texts[each.field])[each.start : each.end]) for each in spans.cut]

    assert cut_of("answers", 0) == []
    assert cut_of("answers", 1) == [("question", "poor film")]
    assert cut_of("relations", 0) == []
    # Ten words fit beside the marks: six from the first entity to the second, two before and two after them.
    assert cut_of("relations", 1) == [("text", "a fine "), ("text", "of 1990")]
    assert cut_of("pairs", 1) == []
