"""Tests of the audit of associations: its files, its embeddings, and the word sets that come with the configs."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from framework.audits.associations import Associations, read_word_sets
from framework.audits.word_associations import associations, effect_size
from framework.data.planning.collate import pack_sequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.parallel.precision import resolve_precision
from framework.errors import ConfigError
from framework.models.encoder import TransformerEncoder
from framework.modules.inference import Inference
from framework.tasks.embedding.task import EmbeddingTask
from framework.tasks.task import TaskModel
from tests.support.commands.in_process import tokenizer_folder
from tests.support.models.tiny import set_random_weights, tiny_config

__all__ = ["tokenizer_folder"]

SETS = """
templates: ["a {} film", "of {}"]
tests:
  years_quality:
    targets: {early: ["1990", "1991", "1992"], late: ["1993", "1994", "1995"]}
    attributes: {pleasant: [good, fine], unpleasant: [bad, poor]}
"""


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder) -> Tokenizer:
    return Tokenizer.from_folder(tokenizer_folder)


def built(pooling: str) -> Inference:
    config = tiny_config(False)
    encoder = TransformerEncoder(config)
    set_random_weights(encoder, 1)
    task = EmbeddingTask(max_length=16, pooling=pooling)
    model = TaskModel(encoder, task.build_head(encoder, config))
    return Inference(model, task, 64, resolve_precision("fp32", "cpu"), torch.device("cpu"))


def subject(tokenizer: Tokenizer, record: dict) -> SimpleNamespace:
    return SimpleNamespace(trained=SimpleNamespace(record=record), tokenizer=tokenizer, seed=0)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_effect_sizes_are_those_of_the_pooled_embeddings(tmp_path, tokenizer, pooling):
    (tmp_path / "sets.yaml").write_text(SETS)
    inference = built(pooling)
    audit = Associations([str(tmp_path / "sets.yaml")])
    audit.check(subject(tokenizer, {} if pooling == "mean" else {"pooling": "cls"}))
    finding = audit.measure(inference)

    def embed(text: str) -> np.ndarray:
        ids = np.concatenate([[tokenizer.cls_id], tokenizer.encode_batch([text])[0], [tokenizer.sep_id]])
        with torch.no_grad():
            hidden = inference.model.encoder(pack_sequences(ids, np.array([len(ids)]), np.array([0])))
        return (hidden.mean(dim=0) if pooling == "mean" else hidden[0]).double().numpy()

    for part, forms in zip(finding.parts, (["{}"], ["a {} film", "of {}"]), strict=True):
        x, y, a, b = (
            np.stack([embed(form.replace("{}", word)) for word in words for form in forms])
            for words in (["1990", "1991", "1992"], ["1993", "1994", "1995"], ["good", "fine"], ["bad", "poor"])
        )
        expected = effect_size(associations(x, a, b), associations(y, a, b))
        assert part["effect_size"] == pytest.approx(expected, abs=1e-3)
        assert part["target_texts"] == 6 * len(forms)
        assert part["permutations"] == "all"
    assert [part["form"] for part in finding.parts] == ["words (WEAT)", "sentences (SEAT)"]
    assert finding.rate == np.mean([part["p"] < 0.01 for part in finding.parts])


def test_words_that_the_tokenizer_lacks_are_noted(tmp_path, tokenizer):
    (tmp_path / "sets.yaml").write_text(SETS.replace("poor", "好"))
    audit = Associations([str(tmp_path / "sets.yaml")])
    audit.check(subject(tokenizer, {}))
    assert (
        audit.measure(built("mean"))
        .notes[0]
        .startswith("sets: the tokenizer does not know 1 of 10 words, for example 好.")
    )


@pytest.mark.parametrize("name", ["en", "zh"])
def test_word_sets_of_the_configs_are_balanced(name):
    templates, tests = read_word_sets(name)
    assert len(templates) == 3
    assert len(tests) >= 3
    for test in tests:
        sizes = [len(words) for words in test.words]
        assert sizes[0] == sizes[1] >= 6
        assert sizes[2] == sizes[3] == 8
        assert len(set().union(*test.words)) == sum(sizes), test.name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "which cannot be read .* or one of en, zh"),
        ("templates: [x]\ntests: {}\n", "has no `templates`"),
        ("tests: {}\n", "has no `templates`"),
        (SETS.replace("[bad, poor]", "[no]"), "the test 'years_quality' is invalid"),
        (SETS.replace("unpleasant", "pleasant"), "the test 'years_quality' is invalid"),
        (SETS.replace('"1993"', '"1990"'), "the target sets of the test 'years_quality' share a word"),
    ],
)
def test_files_without_tests_are_rejected(tmp_path, tokenizer, content, message):
    if content is not None:
        (tmp_path / "sets.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        Associations([str(tmp_path / "sets.yaml")]).check(subject(tokenizer, {}))


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="is empty"):
        Associations([])
    with pytest.raises(ConfigError, match="forms"):
        Associations(["en"], ["letters"])
