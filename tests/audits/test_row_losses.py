"""Tests of losses of chosen items against one item at a time, and of items that two splits share."""

import math

import numpy as np
import pytest
import torch

from framework.audits.row_losses import ChosenItems, has_item_losses, item_losses, items_of_both, masked_word_losses
from framework.data.planning.collate import Target, pack_sequences
from framework.data.planning.plan import StepSequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.parallel.precision import resolve_precision
from framework.models.encoder import TransformerEncoder
from framework.modules.inference import Inference
from framework.tasks.embedding.task import EmbeddingTask
from framework.tasks.multiple_choice.data import ChoiceExample
from framework.tasks.multiple_choice.features import choice_source
from framework.tasks.multiple_choice.task import MultipleChoiceTask
from framework.tasks.pretraining.task import PretrainingTask
from framework.tasks.sequence_classification.features import classification_source
from framework.tasks.sequence_classification.task import SequenceClassificationTask
from framework.tasks.task import Task, TaskModel
from tests.support.commands.in_process import TEXTS, tokenizer_folder
from tests.support.models.tiny import set_random_weights, tiny_config

__all__ = ["tokenizer_folder"]

ROWS = [*TEXTS[:9], "a", *(f"{text} of {text}" for text in TEXTS[9:15])]


@pytest.fixture(scope="module")
def task() -> SequenceClassificationTask:
    task = SequenceClassificationTask(max_length=24)
    task.problem.learn(("no", "yes", "maybe"), [])
    return task


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder) -> Tokenizer:
    return Tokenizer.from_folder(tokenizer_folder)


def source_of(task: SequenceClassificationTask, tokenizer: Tokenizer, texts: list[str]):
    answers = [("no", "yes", "maybe")[number % 3] for number in range(len(texts))]
    return classification_source(texts, None, answers, task.problem, tokenizer, 24)


def inference_of(task: Task, budget: int) -> Inference:
    config = tiny_config(False)
    encoder = TransformerEncoder(config)
    model = TaskModel(encoder, task.build_head(encoder, config))
    set_random_weights(model, 0)
    return Inference(model, task, budget, resolve_precision("fp32", "cpu"), torch.device("cpu"))


def test_losses_of_a_confident_model_are_not_rounded_to_zero(task, tokenizer):
    inference, source = inference_of(task, 4096), source_of(task, tokenizer, ROWS)
    (bias,) = [value for name, value in inference.model.named_parameters() if value.shape == (3,)]
    with torch.no_grad():
        bias += torch.tensor([25.0, 0.0, 0.0])
    losses = item_losses(inference, ChosenItems(source, np.array([0, 3, 6, 9]))).losses  # all have the first label
    assert losses.min() > 0 and losses.max() < 1e-6 and len(set(losses.tolist())) == 4


@pytest.mark.parametrize("budget", [24, 4096])
def test_losses_are_those_of_single_items_in_the_order_chosen(budget, task, tokenizer):
    inference = inference_of(task, budget)
    source, items = source_of(task, tokenizer, ROWS), np.array([12, 0, 9, 3, 15])
    found = item_losses(inference, ChosenItems(source, items))
    expected = []
    for item in items:
        own = np.array([item])
        with torch.no_grad():
            logits = inference.model(source.build(StepSequences(own * 0, own, own), 0))["logits"][0].double()
        expected.append(float(logits.logsumexp(0) - logits[item % 3]))
    assert found.losses.tolist() == pytest.approx(expected, rel=1e-4)
    assert [f"{loss:.4e}" for loss in found.losses] == [f"{loss:.4e}" for loss in expected]
    assert found.labels.tolist() == [0, 0, 0, 0, 0]
    assert found.lengths.tolist() == source.lengths(items * 0, items).tolist()
    others = item_losses(inference, ChosenItems(source, np.array([1, 5, 4])))
    assert others.labels.tolist() == [1, 2, 1]


@pytest.mark.parametrize("budget", [24, 4096])
def test_an_item_of_several_sequences_has_one_loss(budget, tokenizer):
    """The loss of a row is minus the log of the softmax over its choices, at the right one."""
    choices = [("a good film", "a bad film"), ("fine", "poor", "a film of 1991"), ("film", "good")]
    examples = [ChoiceExample(str(n), TEXTS[n], None, each, n % 2) for n, each in enumerate(choices)]
    task = MultipleChoiceTask(max_length=24)
    inference, source = inference_of(task, budget), choice_source(examples, tokenizer, 24)
    expected = []
    for item, example in enumerate(examples):
        own = np.array([item])
        with torch.no_grad():
            scores = inference.model(source.build(StepSequences(own * 0, own, own), 0))["logits"][:, 0].double()
        expected.append(float(scores.logsumexp(0) - scores[example.right]))
    found = item_losses(inference, ChosenItems(source, np.array([2, 1])))
    assert found.losses.tolist() == pytest.approx([expected[2], expected[1]], rel=2e-5)
    assert found.labels.tolist() == [-1, -1]


def test_masked_words_count_equally_within_their_sequence():
    """Sequences of 3, 2 and 4 tokens with 1, 0 and 2 masked words; each logit is that of one of two words."""
    positions, labels = np.array([2, 5, 8]), np.array([0, 1, 0])
    targets = {"mlm_positions": Target(positions, "targets", 0), "mlm_labels": Target(labels, "targets")}
    batch = pack_sequences(np.arange(9), np.array([3, 2, 4]), np.arange(3), None, targets, {}, None)
    logits = torch.log(torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]))
    first, second, third = masked_word_losses(logits, batch).tolist()
    assert first == pytest.approx(math.log(2), abs=1e-6)
    assert math.isnan(second)
    assert third == pytest.approx((-math.log(0.1) - math.log(0.2)) / 2, abs=1e-6)


def test_rows_that_training_contains_are_found_by_their_tokens(task, tokenizer):
    training = source_of(task, tokenizer, [TEXTS[4], TEXTS[0].upper(), TEXTS[2]])
    held_out = source_of(task, tokenizer, [TEXTS[1], TEXTS[2], TEXTS[3], TEXTS[0]])
    # The vocabulary is lower-cased, so that the second training row has the tokens of TEXTS[0]. Labels do not matter.
    assert items_of_both(training, held_out).tolist() == [False, True, False, True]


def test_tasks_without_losses_of_single_rows_are_known(task):
    assert has_item_losses(task)
    assert has_item_losses(PretrainingTask())
    assert not has_item_losses(EmbeddingTask())
