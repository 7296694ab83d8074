"""Fixtures for tests of preparation, from sources to a store."""

import pytest

from framework.data.preparation import card_files, tokens
from framework.data.preparation import corpus as corpora
from framework.data.reading.sources import TextFiles
from framework.data.tokenization.vocabulary import GivenTokenizer
from framework.data.tokenization.word_counts import WordCounts
from framework.data.tokenization.wordpiece_training import WordPieceTraining
from tests.support.data import prepare_process
from tests.support.data.small_corpus import write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> TextFiles:
    return TextFiles(str(write_corpus(tmp_path_factory.mktemp("corpus")) / "*.txt"))


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> GivenTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    training = WordPieceTraining(vocab_size=100)
    training.train(WordCounts(training.count(["the cat sat on a mat", "dogs play"])), folder)
    return GivenTokenizer(str(folder))


@pytest.fixture(autouse=True)
def no_picture(monkeypatch) -> None:
    """Drawing takes longer than everything else."""
    monkeypatch.setattr(card_files, "draw_card", prepare_process.no_picture)


@pytest.fixture
def small_batches(monkeypatch) -> None:
    """Makes many batches and commits from little text."""
    monkeypatch.setattr(corpora, "BATCH_CHARACTERS", 300)
    monkeypatch.setattr(tokens, "COMMIT_CHARACTERS", 600)
