"""Tests that attributions of packed items equal slow computations by the definitions of the methods."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from framework.data.planning.plan import StepSequences
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.parallel.precision import resolve_precision
from framework.inference.explained_rows import scored_words
from framework.models.encoder import TransformerEncoder
from framework.modules.explanations.attribution import Attribution, Method, attribute
from framework.modules.explanations.item_passes import word_indices
from framework.modules.inference import Inference
from framework.tasks.explanation import Explained
from framework.tasks.sequence_classification.task import SequenceClassificationTask
from framework.tasks.task import TaskModel
from tests.support.commands.in_process import tokenizer_folder, train_vocabulary
from tests.support.models.tiny import tiny_config

__all__ = ["tokenizer_folder"]

FIRST = StepSequences(*np.zeros((3, 1), dtype=np.int64))
SENTENCES = ["a good film of 1990", "bad", "a fine  film, a poor film of 1993"]


def build_inference(modern: bool, budget: int = 64, pooling: str = "mean") -> Inference:
    """Returns a tiny classifier with large random weights, so that its scores are far from linear."""
    config = tiny_config(modern)
    task = SequenceClassificationTask(max_length=24, pooling=pooling)
    task.problem.learn(("no", "yes", "maybe"), ["no", "yes", "maybe"])
    encoder = TransformerEncoder(config)
    model = TaskModel(encoder, task.build_head(encoder, config))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float(name.endswith("norm.weight")), 0.4, generator=generator)
    return Inference(model, task, budget, resolve_precision("fp32", "cpu"), torch.device("cpu"))


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder) -> Tokenizer:
    return Tokenizer.from_folder(tokenizer_folder)


def source_of(inference: Inference, tokenizer: Tokenizer, texts: list[str]):
    return inference.task.build_source([Row(n, None, {"text": text}) for n, text in enumerate(texts, 1)], tokenizer)


def attributed(inference: Inference, tokenizer: Tokenizer, texts: list[str], method: Method, steps: int = 32):
    explained = [Explained(item, label) for item in range(len(texts)) for label in (0, 2)]
    return attribute(inference, tokenizer, source_of(inference, tokenizer, texts), explained, method, steps)


def alone(inference: Inference, tokenizer: Tokenizer, text: str):
    """Returns the micro-batch of one text, and the ids of its baseline."""
    batch = source_of(inference, tokenizer, [text]).build(FIRST, 0)
    special = {tokenizer.cls_id, tokenizer.sep_id}
    ids = [token if token in special else tokenizer.mask_id for token in batch.input_ids.tolist()]
    return batch, torch.tensor(ids)


@pytest.mark.parametrize("modern", [False, True])
def test_integrated_gradients_follow_their_definition(modern, tokenizer):
    """Compares with the sum over points, one text and one point at a time."""
    inference = build_inference(modern)
    results = attributed(inference, tokenizer, SENTENCES, "integrated_gradients", 16)
    model = inference.model
    nodes, weights = np.polynomial.legendre.leggauss(16)
    for index, text in enumerate(SENTENCES):
        batch, baseline_ids = alone(inference, tokenizer, text)
        at_item = model.encoder.embed(batch).detach()
        at_baseline = model.encoder.embed(replace(batch, input_ids=baseline_ids)).detach()
        for number, label in enumerate((0, 2)):
            total = torch.zeros_like(at_item)
            for node, weight in zip(nodes, weights, strict=True):
                point = (at_baseline + (node + 1) / 2 * (at_item - at_baseline)).requires_grad_()
                hidden = model.encoder.encode(point, batch)
                score = model.head(hidden, batch)["logits"][0, label]
                total += weight / 2 * torch.autograd.grad(score, point)[0]
            expected = ((at_item - at_baseline) * total).sum(dim=1).numpy()
            result = results[2 * index + number]
            assert np.allclose(result.token_scores, expected, atol=2e-5), (text, result.token_scores - expected)
            assert result.token_scores[0] == result.token_scores[-1] == 0
            ends = model.head(model.encoder.encode(at_baseline, batch), batch)["logits"][0, label]
            assert result.baseline_score == pytest.approx(float(ends), abs=1e-5)


@pytest.mark.parametrize("method", ["integrated_gradients", "gradient", "leave_one_out", "attention_rollout"])
def test_packing_changes_nothing(method, tokenizer):
    packed = attributed(build_inference(True, budget=4096), tokenizer, SENTENCES, method)
    single = attributed(build_inference(True, budget=1), tokenizer, SENTENCES, method)
    for one, other in zip(packed, single, strict=True):
        assert np.allclose(one.token_scores, other.token_scores, atol=1e-5)
        assert one.score == pytest.approx(other.score, abs=1e-5)


def test_completeness_error_is_that_of_the_sum(tokenizer):
    few, many = (
        attributed(build_inference(False), tokenizer, SENTENCES, "integrated_gradients", steps) for steps in (8, 64)
    )
    for coarse, fine in zip(few, many, strict=True):
        difference = fine.score - fine.baseline_score
        assert fine.error == pytest.approx(abs(fine.token_scores.sum() - difference) / abs(difference))
        assert fine.error < 1e-3
        assert coarse.error >= 0
    assert sum(each.error for each in many) < sum(each.error for each in few)


def test_leaving_a_word_out_masks_all_its_tokens(tokenizer):
    inference = build_inference(False)
    results = attributed(inference, tokenizer, SENTENCES, "leave_one_out")
    for index, text in enumerate(SENTENCES):
        batch, _ = alone(inference, tokenizer, text)
        words = word_indices(batch.input_ids.numpy(), tokenizer)
        full = inference.model(batch)["logits"][0]
        for word in range(words.max() + 1):
            ids = torch.where(torch.from_numpy(words == word), tokenizer.mask_id, batch.input_ids)
            dropped = full - inference.model(replace(batch, input_ids=ids))["logits"][0]
            for number, label in enumerate((0, 2)):
                scores = results[2 * index + number].token_scores[words == word]
                assert scores[0] == pytest.approx(dropped[label].item(), abs=1e-5)
                assert not scores[1:].any()


def test_rolled_out_attention_is_a_distribution_over_all_tokens(tokenizer):
    inference = build_inference(True)
    batch, _ = alone(inference, tokenizer, SENTENCES[0])
    maps = inference.model.encoder.attention_maps(batch)
    assert len(maps) == inference.model.encoder.config.num_layers
    length = len(batch.input_ids)
    expected = np.eye(length)
    for (layer,) in maps:
        assert layer.shape == (4, length, length)
        expected = (layer.detach().numpy().mean(0) + np.eye(length)) / 2 @ expected
    (result, _) = attributed(inference, tokenizer, SENTENCES[:1], "attention_rollout")
    assert np.allclose(result.token_scores[1:-1], expected.mean(0)[1:-1], atol=1e-6)


def test_parameters_need_gradients_again(tokenizer):
    inference = build_inference(False)
    attributed(inference, tokenizer, SENTENCES[:1], "gradient")
    assert all(parameter.requires_grad and parameter.grad is None for parameter in inference.model.parameters())


def scored(tokenizer: Tokenizer, *texts: str, max_length: int = 24) -> list[dict]:
    """Returns the words of texts, where the score of a token is its index."""
    task = SequenceClassificationTask(max_length=max_length)
    task.problem.learn(("no",), ["no"])
    task.has_pairs = len(texts) == 2
    values = dict(zip(("text", "pair"), texts, strict=False))
    source = task.build_source([Row(1, None, values)], tokenizer)
    ids = source.build(FIRST, 0).input_ids.numpy()
    attribution = Attribution(ids, np.arange(len(ids), dtype=float), 0.0, 0.0, None)
    return scored_words(attribution, task.explained_spans(source, Explained(0, 0), values, tokenizer), tokenizer)


def test_words_have_the_characters_of_the_text_as_given(tokenizer):
    words = scored(tokenizer, "A  GOOD\tfilm, of 1990 ¿")
    assert [(each["text"], each["start"], each["end"]) for each in words] == [
        *[("A", 0, 1), ("GOOD", 3, 7), ("film", 8, 12), (",", 12, 13), ("of", 14, 16), ("1990", 17, 21), ("¿", 22, 23)]
    ]
    # One token each, except that the vocabulary splits nothing here: token 0 is [CLS].
    assert [each["score"] for each in words][:2] == [1.0, 2.0]
    assert all("field" not in each for each in words)


def test_words_of_a_pair_name_their_field(tokenizer):
    words = scored(tokenizer, "a good film", "film of 1990")
    assert [(each["field"], each["text"]) for each in words] == [
        *[("text", word) for word in ("a", "good", "film")],
        *[("pair", word) for word in ("film", "of", "1990")],
    ]
    assert words[3]["start"] == 0


def test_a_truncated_text_has_only_the_words_that_the_model_read(tokenizer):
    words = scored(tokenizer, "a good film of 1990", max_length=5)
    assert [each["text"] for each in words] == ["a", "good", "film"]


def test_pieces_of_a_word_are_one_word(tmp_path):
    train_vocabulary(["unkindness is unkind", "kindness"], 20, tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    (ids,) = tokenizer.encode_batch(["kindness unkindness"])
    assert len(ids) > 2, "the vocabulary must split a word"
    words = scored(tokenizer, "kindness unkindness", max_length=40)
    assert [each["text"] for each in words] == ["kindness", "unkindness"]
    assert sum(each["score"] for each in words) == sum(range(1, len(ids) + 1))
