"""Tests that influences from packed passes equal inner products of explicit gradients, one item at a time."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from framework.data.planning.plan import StepSequences
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.parallel.precision import resolve_precision
from framework.errors import ConfigError
from framework.models.encoder import TransformerEncoder
from framework.modules.explanations.influence import influenced_modules, influences
from framework.modules.inference import Inference
from framework.tasks.explanation import Explained
from framework.tasks.multiple_choice.data import ChoiceExample
from framework.tasks.multiple_choice.features import choice_source
from framework.tasks.multiple_choice.task import MultipleChoiceTask
from framework.tasks.question_answering.data import Answer, Question
from framework.tasks.question_answering.features import window_source
from framework.tasks.question_answering.task import QuestionAnsweringTask
from framework.tasks.sequence_classification.features import classification_source
from framework.tasks.sequence_classification.task import SequenceClassificationTask
from framework.tasks.task import Task, TaskModel
from framework.tasks.token_classification.decode import bio_tag_set
from framework.tasks.token_classification.features import Example, tagging_source
from framework.tasks.token_classification.task import TokenClassificationTask
from tests.support.commands.in_process import TEXTS, tokenizer_folder
from tests.support.models.tiny import tiny_config

__all__ = ["tokenizer_folder"]


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder) -> Tokenizer:
    return Tokenizer.from_folder(tokenizer_folder)


def classification(tokenizer: Tokenizer) -> tuple[Task, Any, list[dict[str, str]]]:
    task = SequenceClassificationTask(max_length=12)
    task.problem.learn(("no", "yes"), ["no", "yes"])
    texts = [*TEXTS[:5], "a good good film of 1990 a bad film"]
    answers = ["yes", "no", "yes", "no", "no", "yes"]
    source = classification_source(texts, None, answers, task.problem, tokenizer, 12, ())
    return task, source, [{"text": "a fine film"}, {"text": "bad bad film of 1991"}]


def answers(tokenizer: Tokenizer) -> tuple[Task, Any, list[dict[str, str]]]:
    long = " ".join(TEXTS[:4])
    questions = [
        Question("p", "good film", long, (Answer("fine film", long.index("fine film")),)),
        Question("p", "bad", "a bad film of 1990", ()),
    ]
    task = QuestionAnsweringTask(16, 4, max_question_length=4)
    return task, window_source(questions, tokenizer, task.sizes), [{"question": "a film", "context": "a fine film"}]


def choices(tokenizer: Tokenizer) -> tuple[Task, Any, list[dict[str, str]]]:
    examples = [
        ChoiceExample("p", "good film", None, ("a", "of 1990", "bad"), 1),
        ChoiceExample("p", "bad", None, ("film of 1991", "fine"), 0),
    ]
    rows = [{"question": "film", "choices": '["bad", "a fine film", "of"]'}]
    return MultipleChoiceTask(max_length=16), choice_source(examples, tokenizer, 16), rows


def entities(tokenizer: Tokenizer) -> tuple[Task, Any, list[dict[str, str]]]:
    task = TokenClassificationTask(max_length=8, stride=2)
    task.tags = bio_tag_set(("x",))
    words = ["a", "good", "film", "of", "1990", "a", "bad", "film", "of", "1991"]
    examples = [Example(words, ["O", "B-x", "I-x", "O", "B-x"] * 2), Example(["bad", "film"], ["O", "B-x"])]
    return task, tagging_source(examples, task.tags, tokenizer, 8, 2), [{"text": "a good film of 1990 or a bad film"}]


CASES = {"classification": classification, "answers": answers, "choices": choices, "entities": entities}


def inference_of(task: Task, modern: bool, budget: int) -> Inference:
    config = tiny_config(modern)
    encoder = TransformerEncoder(config)
    model = TaskModel(encoder, task.build_head(encoder, config))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float(name.endswith("norm.weight")), 0.3, generator=generator)
    return Inference(model, task, budget, resolve_precision("fp32", "cpu"), torch.device("cpu"))


def explicit(inference: Inference, source: Any, explained: list[Explained], training: Any, layers: int) -> np.ndarray:
    """Returns the influences from a gradient of all parameters for each score and each item."""
    model, task = inference.model, inference.task
    parts = [*list(model.encoder.layers)[2 - layers :], model.encoder.final_norm, model.head]
    parameters = [parameter for part in parts for parameter in part.parameters()]

    def gradient(own: Any, item: int, value: Any) -> torch.Tensor:
        batch = own.build(StepSequences(np.zeros(1, np.int64), np.array([item]), np.zeros(1, np.int64)), 0)
        found = torch.autograd.grad(value(model(batch), batch), parameters, allow_unused=True)
        return torch.cat(
            [torch.zeros(p.numel()) if g is None else g.flatten() for p, g in zip(parameters, found, strict=True)]
        ).double()

    def loss(outputs: Any, batch: Any) -> torch.Tensor:
        return sum(task.loss_weights[term] * value for term, value in task.loss_sums(outputs, batch).items())  # type: ignore[return-value]

    scores = [
        gradient(
            source, each.item, lambda outputs, batch, each=each: task.explained_scores(outputs, batch, [each.target])[0]
        )
        for each in explained
    ]
    losses = [gradient(training, item, loss) for item in range(len(training))]
    return -np.array([[float(score @ other) for other in losses] for score in scores])


@pytest.mark.parametrize("budget", [24, 4096])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("modern", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_influences_equal_explicit_gradients(name, modern, layers, budget, tokenizer):
    task, training, rows = CASES[name](tokenizer)
    inference = inference_of(task, modern, budget)
    source = task.build_source([Row(number, None, row) for number, row in enumerate(rows, 1)], tokenizer)
    explained = [each for row in task.explained(source, inference.decode(source), None) for each in row]
    assert explained
    actual = influences(inference, tokenizer, source, explained, training, layers)
    expected = explicit(inference, source, explained, training, layers)
    assert actual.shape == expected.shape and np.abs(expected).max() > 0.01
    assert np.allclose(actual, expected, rtol=0, atol=1e-4 * max(1.0, np.abs(expected).max()))
    assert all(parameter.requires_grad and parameter.grad is None for parameter in inference.model.parameters())


class Scaled(nn.Module):
    """Head with a parameter outside of its linear layer."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.scale = nn.Parameter(torch.ones(()))


def test_other_parameters_are_rejected(tokenizer):
    task, _, _ = classification(tokenizer)
    model = inference_of(task, False, 64).model
    model.head = Scaled(model.head)
    with pytest.raises(ConfigError, match=r"head is a Scaled with parameters of its own\. Influence is computed for"):
        influenced_modules(model, 1)
