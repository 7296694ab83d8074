"""Prompts per side, and single texts whose positive is the same text under another dropout mask."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from framework.data.examples.splits import ReadSplits
from framework.data.facts import SplitFacts
from framework.data.layout import lay_out
from framework.data.planning.plan import StepSequences
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError
from framework.exports.sentence_transformers import sentence_transformers_files
from framework.nn.dropout import token_keys
from framework.tasks.embedding.data import TextGroup, TextPairData
from framework.tasks.embedding.task import EmbeddingTask
from framework.tasks.task import TaskModel
from tests.support.exports.random_models import random_model
from tests.support.exports.small_exports import CONFIGS, make_tokenizer

PROMPTS = {"query": "the big ", "document": "passage: "}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return Tokenizer.from_folder(make_tokenizer(tmp_path_factory.mktemp("tokenizer"), 0))


def ids_of(source, item) -> list[list[int]]:
    tokens = source.tokens(np.array([item]))
    return [part.tolist() for part in np.split(tokens.input_ids, np.cumsum(tokens.lengths)[:-1])]


def plain(texts, tokenizer) -> list[list[int]]:
    layout = lay_out(texts, None, tokenizer, 48)
    return [part.tolist() for part in np.split(layout.input_ids, np.cumsum(layout.lengths)[:-1])]


def sources_of(task, groups, tokenizer, monkeypatch, **columns):
    """Returns the training source of given rows."""
    splits = ReadSplits({"train": groups}, {"train": SplitFacts(len(groups))})
    monkeypatch.setattr(TextPairData, "load", lambda _self: splits)
    monkeypatch.setattr("framework.tasks.embedding.sources.with_facts", lambda source, *_: source)
    return task.build_sources(TextPairData(train="rows.csv", **columns), tokenizer, 0)["train"]


def test_each_side_has_its_prompt(tokenizer, monkeypatch):
    task = EmbeddingTask(max_length=48, prompts=PROMPTS)
    match = TextGroup("row 1", ("a dog", "a cat", "no cat"))
    source = sources_of(task, [match], tokenizer, monkeypatch, negative_columns=["negative"])
    assert ids_of(source, 0) == plain(["the big a dog", "passage: a cat", "passage: no cat"], tokenizer)
    for side, prefix in PROMPTS.items():
        predicted = EmbeddingTask(max_length=48, prompts=PROMPTS, side=side)
        source = predicted.build_source([Row(1, None, {"text": "a dog"})], tokenizer)
        assert ids_of(source, 0) == plain([prefix + "a dog"], tokenizer)
    pair = task.build_source([Row(1, None, {"text": "a dog", "pair": "a cat"})], tokenizer)
    assert ids_of(pair, 0) == plain(["the big a dog", "passage: a cat"], tokenizer)
    similar = EmbeddingTask("similarity", max_length=48, prompts=PROMPTS)
    rows = [TextGroup("row 1", ("a dog", "a cat"), 1.0)]
    source = sources_of(similar, rows, tokenizer, monkeypatch, score_column="score")
    assert ids_of(source, 0) == plain(["the big a dog", "the big a cat"], tokenizer)


def test_prompts_are_exported(tokenizer):
    task = EmbeddingTask(prompts=PROMPTS)
    files = sentence_transformers_files(CONFIGS["bert"], task.to_record())
    assert files["config_sentence_transformers.json"]["prompts"] == PROMPTS
    assert "prompts" not in EmbeddingTask().to_record()


def test_prompts_that_cannot_be_used(tokenizer):
    with pytest.raises(ConfigError, match=r"task.prompts has the side 'passage'"):
        EmbeddingTask(prompts={"passage": "passage: "})
    task = EmbeddingTask(max_length=4, prompts={"document": "a b c d e"})
    with pytest.raises(ConfigError, match=r"task.prompts.document is 'a b c d e', which has \d+ tokens"):
        task.build_source([Row(1, None, {"text": "a"})], tokenizer)


@torch.no_grad()
def test_a_text_matches_itself_under_another_dropout_mask(tokenizer, monkeypatch):
    task = EmbeddingTask("simcse", max_length=48)
    groups = [TextGroup(f"row {row}", (text,)) for row, text in enumerate(["a dog", "a cat", " a dog", "the big dog"])]
    source = sources_of(task, groups, tokenizer, monkeypatch, pair_column=None)
    batch = source.build(StepSequences(np.zeros(4, int), np.arange(4), np.arange(4)), 0)
    assert batch.counts == {"contrast": 4.0}
    config = replace(CONFIGS["bert"], hidden_dropout=0.3)
    encoder = random_model(config, torch.nn.Identity()).encoder
    model = TaskModel(encoder, task.build_head(encoder, config))
    vectors = functional.normalize(model(batch, token_keys(7, batch))["embeddings"], dim=1)
    first, second = vectors[0::2], vectors[1::2]
    assert float((first - second).abs().max()) > 1e-3
    # The third text is the first one, so neither is a negative of the other.
    scores = first @ second.T / task.temperature
    scores[0, 2] = scores[2, 0] = -torch.inf
    expected = functional.cross_entropy(scores, torch.arange(4), reduction="sum")
    rows = task.representations({"embeddings": vectors}, batch)
    assert float(task.step_loss_sums(rows)["contrast"]) == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(ConfigError, match=r"the rows of the data are single.*task.objective=simcse"):
        sources_of(EmbeddingTask(max_length=48), groups, tokenizer, monkeypatch, pair_column=None)
