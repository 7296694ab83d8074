"""Sparse weights against a plain formula, the loss against loops, the schedule, and refused starts."""

import numpy as np
import pytest
import torch

from framework.data.planning.plan import StepSequences
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError
from framework.models.encoder import TransformerEncoder
from framework.modules.passes.contributions import rows_of_step
from framework.published.pretrained import weights_from_state
from framework.runs.build import _check_new_weights
from framework.tasks.embedding.data import TextGroup
from framework.tasks.embedding.features import match_source
from framework.tasks.sparse_embedding import head as head_module
from framework.tasks.sparse_embedding.head import SparseHead
from framework.tasks.sparse_embedding.task import SparseEmbeddingTask, SparseVector, num_words
from framework.tasks.task import TaskModel
from tests.support.exports.small_exports import CONFIGS, make_tokenizer

GROUPS = [("a", "b c", "d"), ("e f g", "h a"), ("b", "c c")]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return Tokenizer.from_folder(make_tokenizer(tmp_path_factory.mktemp("tokenizer"), 0))


def batch_of(tokenizer, task):
    groups = [TextGroup("", texts) for texts in GROUPS]
    source = match_source(groups, [], list(task.loss_weights), tokenizer, task.max_length)
    return source.build(StepSequences(np.zeros(3), np.arange(3), np.arange(3)), 0)


@pytest.mark.parametrize("block", [1, 512], ids=["each_text", "one_block"])
def test_weights_and_gradients_equal_the_formula(block, tokenizer, monkeypatch):
    monkeypatch.setattr(head_module, "_TOKENS", block)
    torch.manual_seed(0)
    encoder = TransformerEncoder(CONFIGS["bert"])
    head = SparseHead(encoder, CONFIGS["bert"])
    batch = batch_of(tokenizer, SparseEmbeddingTask(max_length=8))
    states = torch.randn(len(batch.input_ids), 32, requires_grad=True)
    ours = head(states, batch)["weights"]
    theirs = torch.stack(
        [torch.log(1 + head.mlm(text).clamp(min=0)).max(dim=0).values for text in states.split(list(batch.lengths))]
    )
    torch.testing.assert_close(ours, theirs)
    chosen = torch.randn(ours.shape)
    parameters = [states, *head.parameters()]
    for one, other in zip(*(torch.autograd.grad((w * chosen).sum(), parameters) for w in (ours, theirs)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_the_terms_of_a_step(tokenizer):
    task = SparseEmbeddingTask(max_length=8, temperature=2.0, query_flops=0.5, document_flops=0.25)
    batch = batch_of(tokenizer, task)
    weights = torch.rand(7, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sums = task.step_loss_sums(rows_of_step([task.representations({"weights": weights}, batch)], None))
    queries, positives, documents = weights[[0, 3, 5]], weights[[1, 4, 6]], weights[[1, 2, 4, 6]]
    # No text of the step equals a query or another answer, so all other documents are negatives.
    scores = queries @ torch.cat([positives, weights[[2]]]).T / 2.0
    expected = sum(-scores[index].log_softmax(0)[index] for index in range(3))
    torch.testing.assert_close(sums["contrast"], expected)
    for name, texts in (("query_flops", queries), ("document_flops", documents)):
        torch.testing.assert_close(sums[name], 3 * sum(texts[:, word].mean() ** 2 for word in range(9)))
    assert set(task.validation_weights) == {"contrast"}
    assert batch.counts == {"contrast": 3.0, "query_flops": 3.0, "document_flops": 3.0}


def test_the_regularization_grows_with_the_square_of_the_step():
    task = SparseEmbeddingTask(flops_warmup_steps=4)
    factors = [task.weight_factors(step).get("query_flops", 1.0) for step in range(6)]
    assert factors == [1 / 16, 4 / 16, 9 / 16, 1, 1, 1]
    assert SparseEmbeddingTask().weight_factors(0) == {}


def test_words_are_named_and_scored(tokenizer):
    task = SparseEmbeddingTask(max_length=8)
    source = task.build_source([Row(1, None, {"text": "a"}), Row(2, None, {"text": "b", "pair": "c"})], tokenizer)
    vocabulary = tokenizer.backend.get_vocab()
    weights = torch.zeros(3, 13)
    weights[0, vocabulary["a"]], weights[0, vocabulary["h"]] = 0.5, 2.0
    weights[1:, vocabulary["b"]] = torch.tensor([3.0, 0.5])
    batch = source.build(StepSequences(np.zeros(2), np.arange(2), np.arange(2)), 0)
    decoded = task.decode({"weights": weights}, batch)
    assert task.assemble(source, decoded) == [{"words": {"h": 2.0, "a": 0.5}}, {"score": 1.5}]
    assert num_words(SparseVector(np.arange(3), np.array([1.0, 0.005, 0.01]), 9)) == pytest.approx(2.5)


def test_a_start_without_scores_of_masked_words_is_refused():
    config, task = CONFIGS["bert"], SparseEmbeddingTask()
    encoder = TransformerEncoder(config)
    model = TaskModel(encoder, task.build_head(encoder, config))
    weights = weights_from_state(
        "FOLDER", config, {f"encoder.{name}": each for name, each in encoder.state_dict().items()}
    )
    with pytest.raises(ConfigError, match=r"FOLDER has no head\.mlm\.dense.*ForMaskedLM"):
        _check_new_weights(task, model, weights)
