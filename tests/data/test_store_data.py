"""Settings of a store in a config: held-out documents, weights of sources, order."""

from pathlib import Path

import numpy as np
import pytest

from framework.data.store.sequence_index import Division, SequenceIndex
from framework.data.store_data import StoreData, too_little_to_split
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, DataError
from tests.support.data.stores import trained, write_store

DIVISION = Division(max_tokens=8, pairs=False)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return trained(["the cat sat on a mat", "dogs play"], tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def store(tmp_path_factory, tokenizer) -> Path:
    """40 documents of one sentence; the first 10 are of source "a", the others of source "b"."""
    folder = tmp_path_factory.mktemp("stores") / "store"
    write_store(folder, [[[7, 8, 9]]] * 40, tokenizer, batch_documents=7, sources={"a": 10, "b": 30})
    return folder


def splits_of(store: Path, **options) -> dict[str, SequenceIndex]:
    return StoreData(str(store), **options).indexes(DIVISION)


def test_held_out_documents(store):
    splits = splits_of(store, validation_fraction=0.25)
    train, held_out = (set(splits[name].documents.tolist()) for name in ("train", "validation"))
    assert sorted([*train, *held_out]) == list(range(40))
    # Binomial(40, 0.25): mean 10, standard deviation 2.7.
    assert 2 <= len(held_out) <= 19
    other = splits_of(store, validation_fraction=0.25, split_seed=1)["validation"]
    assert set(other.documents.tolist()) != held_out
    assert held_out < set(splits_of(store, validation_fraction=0.5)["validation"].documents.tolist())
    assert list(splits_of(store, validation_fraction=0.0)) == ["train"]
    with pytest.raises(DataError, match=r"validation of .* is empty: the store has 40 documents and .* is 1e-09"):
        splits_of(store, validation_fraction=1e-9)
    with pytest.raises(ConfigError, match=r"validation_fraction is 1\.0"):
        StoreData(str(store), validation_fraction=1.0)


def test_a_document_stays_in_its_split_when_the_corpus_grows(tmp_path, store, tokenizer):
    write_store(tmp_path / "larger", [[[7, 8, 9]]] * 60, tokenizer)
    small, large = (splits_of(folder, validation_fraction=0.3) for folder in (store, tmp_path / "larger"))
    for split in ("train", "validation"):
        documents = large[split].documents
        assert small[split].documents.tolist() == documents[documents < 40].tolist()


def test_sources_are_seen_according_to_their_weights(store):
    data = StoreData(str(store), validation_fraction=0.0, weights={"a": 2.0, "b": 0.5})
    index = data.indexes(DIVISION)["train"]
    mixture = data.mixture(index)
    # 10 documents twice, and half of 30.
    assert len(mixture) == 35
    chunks = mixture.chunks(np.zeros(35, dtype=np.int64), np.arange(35))
    documents = index.documents[index.chunks[chunks, 2]]
    assert documents.tolist() == [*range(10), *range(10), *range(10, 25)]


def test_weights_hold_for_the_documents_of_the_split(store):
    data = StoreData(str(store), validation_fraction=0.25, weights={"a": 3.0})
    index = data.indexes(DIVISION)["train"]
    of_a = int((index.documents < 10).sum())
    assert 0 < of_a < 10
    assert len(data.mixture(index)) == 3 * of_a + len(index) - of_a


def test_impossible_weights(store):
    with pytest.raises(ConfigError, match=r"weights\.c names no source of .*\. Its sources are a, b\. Name one"):
        StoreData(str(store), weights={"c": 1.0}).mixture(splits_of(store)["train"])
    with pytest.raises(ConfigError, match=r"weights\.a is -1\.0\. It must be at least 0"):
        StoreData(str(store), weights={"a": -1.0})
    with pytest.raises(ConfigError, match="has no sequence"):
        StoreData(str(store), weights={"a": 0.0, "b": 0.0}).mixture(splits_of(store)["train"])
    with pytest.raises(ConfigError, match="block_size"):
        StoreData(str(store), block_size=0)


@pytest.mark.parametrize("num_documents", [1, 2, 5])
def test_text_that_is_too_short_for_a_held_out_part_is_reported_with_a_remedy(tmp_path, tokenizer, num_documents):
    folder = tmp_path / "store"
    write_store(folder, [[[7, 8, 9]]] * num_documents, tokenizer)
    message = too_little_to_split(str(folder))
    assert message is not None
    assert f"has {num_documents} document{'s' * (num_documents > 1)}. That is too few for" in message
    fraction = float(message.partition("Train with data.validation_fraction=")[2].split(",")[0])
    splits = splits_of(folder, validation_fraction=fraction)
    assert all(len(index.documents) > 0 for index in splits.values())
    assert (fraction > 0) == (len(splits) == 2)
    with pytest.raises(DataError, match=r"the split validation of .* is empty"):
        splits_of(folder)


def test_enough_text_gives_no_message(tmp_path, tokenizer):
    write_store(tmp_path / "store", [[[7, 8, 9]]] * 1000, tokenizer, batch_documents=100)
    assert too_little_to_split(str(tmp_path / "store")) is None
