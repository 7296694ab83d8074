"""Canaries of a store: random words of the vocabulary, a number of copies, and the same after a kill."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest

from framework.data.canaries import CanarySettings, canary_words, read_canaries
from framework.data.preparation.prepare import StoreSpec, describe_preparation, prepare_store
from framework.data.reading.shards import ParquetShards
from framework.data.reading.sources import TextFiles
from framework.data.store.writer import StoreWriter
from framework.data.store_data import StoreData
from framework.data.tokenization.byte_level_training import ByteLevelBpeTraining
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.vocabulary import GivenTokenizer
from framework.data.tokenization.word_counts import WordCounts
from framework.data.tokenization.wordpiece_training import WordPieceTraining
from framework.errors import ConfigError, DataError

WORDS = [f"{first}{vowel}{last}" for first in "bcdfgh" for vowel in "aeiou" for last in "lmn"]
SETTINGS = CanarySettings(6, (1, 3), seed=5)
TRAININGS = {"wordpiece": WordPieceTraining(400), "byte_level": ByteLevelBpeTraining(600)}


@pytest.fixture(scope="module", params=TRAININGS)
def vocabulary(request, tmp_path_factory) -> GivenTokenizer:
    folder = tmp_path_factory.mktemp("words")
    training = TRAININGS[request.param]
    training.train(WordCounts(training.count([" ".join(["", *WORDS])] * 3)), folder)
    return GivenTokenizer(str(folder))


@pytest.fixture
def sources(tmp_path) -> dict[str, TextFiles]:
    (tmp_path / "texts.txt").write_text("bal cem.\n\nhon gul.")
    return {"mine": TextFiles(str(tmp_path / "texts.txt"), documents="blank_lines")}


def build(sources, vocabulary, folder: Path, settings: CanarySettings | None = SETTINGS):
    return prepare_store(StoreSpec(sources, vocabulary, folder, canaries=settings))


def texts_of(folder: Path) -> list[str]:
    rows = datasets.Dataset.from_file(str(folder / "data.arrow"))
    return [text.strip() for text in Tokenizer.from_folder(folder / "tokenizer").decode_batch(rows["input_ids"])]


def test_copies_follow_the_corpus_and_are_recorded(tmp_path, sources, vocabulary):
    counts = build(sources, vocabulary, tmp_path / "store").counts
    store = StoreData(str(tmp_path / "store")).opened
    canaries = read_canaries(store.meta, "store")
    assert [canary.repeats for canary in canaries] == [1, 3, 1, 3, 1, 3]
    documents = texts_of(store.folder)
    assert documents[2:] == [
        *(canary.text for canary in canaries),
        *(canary.text for canary in canaries[1::2]),
        *(canary.text for canary in canaries[1::2]),
    ]
    words = [word for canary in canaries for word in canary.text.split()]
    assert set(words) <= set(canary_words(vocabulary.load())) and len(set(words)) > 20
    assert all(len(canary.prefix.split()) == len(canary.secret.split()) == 4 for canary in canaries)
    assert store.sources == {"mine": 2, "canaries": 12}
    assert (counts["documents"], counts["canary_documents"], store.num_documents) == (14, 12, 14)
    card = json.loads((store.folder / "card.json").read_text())
    assert card["canaries"] == {"number": 6, "repeats": [1, 3], "seed": 5, "documents": 12}
    assert (card["documents"]["read"], card["documents"]["kept"], card["sources"][1]["documents"]) == (14, 14, 12)
    assert store.num_tokens == counts["tokens"] == card["tokens"]


def test_a_store_depends_on_the_seed_and_not_on_a_kill(tmp_path, sources, vocabulary, monkeypatch):
    whole = build(sources, vocabulary, tmp_path / "whole")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            build(sources, vocabulary, tmp_path / "cut")
    assert build(sources, vocabulary, tmp_path / "cut").fingerprint == whole.fingerprint
    for name in ("data.arrow", "store.json", "card.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (whole.folder / name).read_bytes()
    assert build(sources, vocabulary, tmp_path / "whole").reused
    other = build(sources, vocabulary, tmp_path / "other", CanarySettings(6, (1, 3), seed=6))
    assert texts_of(other.folder)[:2] == texts_of(whole.folder)[:2]
    assert not set(texts_of(other.folder)[2:]) & set(texts_of(whole.folder)[2:])


def test_without_canaries_a_store_has_no_trace_of_them(tmp_path, sources, vocabulary):
    folder = build(sources, vocabulary, tmp_path / "store", None).folder
    assert "canar" not in (folder / "store.json").read_text() + (folder / "card.json").read_text()
    with pytest.raises(DataError, match="has no canaries"):
        read_canaries(json.loads((folder / "store.json").read_text()), str(folder))


def test_words_are_whole_tokens_of_letters(vocabulary):
    tokenizer = vocabulary.load()
    words = canary_words(tokenizer)
    assert set(WORDS) <= set(words) and all(word.isalpha() and len(word) > 1 for word in words)
    prefix = " " if tokenizer.space_marked else ""
    ids = tokenizer.encode_batch([prefix + " ".join(words)])[0]
    assert len(ids) == len(words) and tokenizer.unk_id not in ids
    assert np.all(tokenizer.starts_word[ids])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"number": -1}, "corpus.canaries is -1. It must be from 1 to 10,000"),
        ({"number": 20_000}, "corpus.canaries is 20000"),
        ({"number": 2, "repeats": (1, 4, 16)}, r"canary_repeats is \[1, 4, 16\] for 2 canaries"),
        ({"number": 2, "repeats": ()}, r"canary_repeats is \[\] for 2 canaries"),
        ({"number": 2, "repeats": (1, 0)}, "canary_repeats is 0. It must be at least 1"),
    ],
)
def test_bad_numbers_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        CanarySettings(**values)


def test_what_cannot_have_canaries_is_refused_before_a_pass(tmp_path, sources, given):
    with pytest.raises(ConfigError, match="Canaries are random words and need at least 64"):
        describe_preparation(StoreSpec(sources, given, tmp_path / "store", canaries=SETTINGS))
    with pytest.raises(ConfigError, match="a source of the corpus is named canaries"):
        describe_preparation(StoreSpec({"canaries": sources["mine"]}, given, tmp_path / "store", canaries=SETTINGS))
    shards = {"shards": ParquetShards(str(tmp_path / "none.parquet"))}
    with pytest.raises(ConfigError, match="canaries is 6 and stream is true"):
        SETTINGS.check(shards, streamed=True)
    assert not (tmp_path / "store.partial").exists()
