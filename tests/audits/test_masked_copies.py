"""Tests that packed pseudo-log-likelihoods equal the loop of Nangia et al. 2020 over one masked sentence at a time."""

import difflib

import numpy as np
import pytest
import torch

from framework.audits.masked_copies import MaskedCopies, pseudo_log_likelihoods, shared_positions
from framework.data.planning.collate import Target, pack_sequences
from framework.distributed.parallel.precision import resolve_precision
from framework.models.encoder import TransformerEncoder
from framework.modules.inference import Inference
from framework.tasks.pretraining.task import PretrainingTask
from framework.tasks.task import TaskModel
from tests.support.models.tiny import VOCAB_SIZE, set_random_weights, tiny_config

CLS, SEP, MASK = 1, 2, 3


def build_inference(modern: bool, budget: int) -> Inference:
    """Returns a tiny masked-word model with large random weights."""
    config, task = tiny_config(modern), PretrainingTask(sequence_length=24, nsp=not modern)
    encoder = TransformerEncoder(config)
    model = TaskModel(encoder, task.build_head(encoder, config))
    set_random_weights(model, 0)
    return Inference(model, task, budget, resolve_precision("fp32", "cpu"), torch.device("cpu"))


def random_pairs(number: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns pairs of sentences, the second with one to three tokens replaced, dropped or inserted."""
    random = np.random.default_rng(5)
    pairs = []
    for _ in range(number):
        first = random.integers(5, 20, random.integers(3, 15)).tolist()
        second = list(first)
        for _ in range(random.integers(1, 4)):
            place, kind = int(random.integers(0, len(second))), random.integers(0, 3)
            new = [[int(random.integers(20, 30))], [], [int(random.integers(20, 30)), second[place]]][kind]
            if len(second) + len(new) > 1:
                second[place : place + 1] = new
        pairs.append(tuple(np.array([CLS, *ids, SEP], dtype=np.int64) for ids in (first, second)))
    return pairs


def slow_score(inference: Inference, ids: np.ndarray, masked: list[int]) -> float:
    """Sums log-probabilities with one sentence and one masked token at a time."""
    total = 0.0
    for position in masked:
        hidden = ids.copy()
        hidden[position] = MASK
        targets = {"mlm_positions": Target(np.array([position]), "targets", 0)}
        batch = pack_sequences(hidden, np.array([len(hidden)]), np.array([0]), None, targets, {}, None)
        with torch.no_grad():
            logits = inference.model(batch)["mlm"]
        total += float(torch.log_softmax(logits.double(), dim=1)[0, int(ids[position])])
    return total


def template(first: np.ndarray, second: np.ndarray) -> tuple[list[int], list[int]]:
    """Returns the tokens that the authors' get_span keeps, without the first and the last one."""
    sides: tuple[list[int], list[int]] = ([], [])
    matcher = difflib.SequenceMatcher(None, [str(x) for x in first.tolist()], [str(x) for x in second.tolist()])
    for kind, start, stop, other_start, other_stop in matcher.get_opcodes():
        if kind == "equal":
            sides[0].extend(range(start, stop))
            sides[1].extend(range(other_start, other_stop))
    return sides[0][1:-1], sides[1][1:-1]


@pytest.mark.parametrize(("modern", "budget"), [(False, 64), (False, 4096), (True, 256)])
def test_scores_equal_the_authors_loop_on_30_pairs(modern, budget):
    inference = build_inference(modern, budget)
    pairs = random_pairs(30)
    sentences = [ids for pair in pairs for ids in pair]
    # The first and the last token of both are equal, as the authors assume.
    masked = [positions[1:-1] for pair in pairs for positions in shared_positions(*pair)]
    source = MaskedCopies(sentences, masked, MASK)
    found = pseudo_log_likelihoods(inference, source, len(sentences)).reshape(-1, 2)
    assert len(source) == sum(map(len, masked)) > 300
    for (first, second), scores in zip(pairs, found, strict=True):
        kept = template(first, second)
        expected = [slow_score(inference, first, kept[0]), slow_score(inference, second, kept[1])]
        assert scores == pytest.approx(expected, abs=1e-4)
    assert np.ptp(found[:, 0] - found[:, 1]) > 1


def test_only_masked_tokens_reach_the_vocabulary(monkeypatch):
    inference = build_inference(False, 128)
    rows = []
    decoder = inference.model.head.mlm.decoder
    decoder.register_forward_hook(lambda module, given, logits: rows.append((len(logits), logits.shape[1])))
    ids = np.array([CLS, 7, 8, 9, 10, SEP])
    source = MaskedCopies([ids] * 40, [np.array([1, 3])] * 40, MASK)
    pseudo_log_likelihoods(inference, source, 40)
    assert sum(count for count, _ in rows) == 80
    assert max(count for count, _ in rows) <= 128 // 6
    assert {width for _, width in rows} == {VOCAB_SIZE}


def test_shared_positions_of_a_longer_word():
    first, second = np.array([1, 5, 6, 7, 2]), np.array([1, 5, 8, 9, 7, 2])
    assert [each.tolist() for each in shared_positions(first, second)] == [[0, 1, 3, 4], [0, 1, 4, 5]]


def test_frequent_tokens_of_long_sequences_are_shared():
    first = np.array([1, *[5, 6, 7] * 100, 2])
    second = first.copy()
    second[[100, 200]] = 8, 9
    assert [len(each) for each in shared_positions(first, second)] == [300, 300]


def test_a_sentence_without_masked_tokens_scores_0():
    inference = build_inference(False, 64)
    ids = np.array([CLS, 7, SEP])
    source = MaskedCopies([ids, ids], [np.array([1]), np.zeros(0, dtype=np.int64)], MASK)
    scores = pseudo_log_likelihoods(inference, source, 2)
    assert scores[0] < 0
    assert scores[1] == 0
