"""The store: tokens can be read back, a killed writer resumes, and no partial store looks complete."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest

from framework.data.store.token_store import TokenStore
from framework.data.store.writer import StoreWriter
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import DataError
from tests.support.data.stores import trained, write_store

DOCUMENTS = [[[10, 11], [12]], [[13]], [[14], [15, 16, 17]]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return trained(["the cat sat on a mat", "dogs play"], tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def store(tmp_path, tokenizer) -> TokenStore:
    """Writes the first two documents in one record batch, the third in another."""
    return write_store(tmp_path / "by_hand", DOCUMENTS, tokenizer)


def add(writer: StoreWriter, documents: list[list[list[int]]], hashes: list[int]) -> None:
    sentences = [sentence for document in documents for sentence in document]
    writer.add(
        np.array([token for sentence in sentences for token in sentence]),
        np.array([len(sentence) for sentence in sentences]),
        np.array([len(document) for document in documents]),
        np.array(hashes, dtype=np.uint64),
    )


def finish(writer: StoreWriter, num_documents: int, tokenizer: Tokenizer) -> None:
    writer.finish({"counts": {"documents": num_documents}, "sources": []}, tokenizer)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_boundaries_by_hand(store):
    assert store.num_documents == 3 and store.num_tokens == 8 and store.batch_starts.tolist() == [0, 4]
    first, second = store.batches()
    assert first.sentence_lengths.tolist() == [2, 1, 1] and first.document_sentences.tolist() == [2, 1]
    assert second.sentence_lengths.tolist() == [1, 3] and second.document_sentences.tolist() == [2]
    assert first.text_hashes.tolist() == [0, 0x9E3779B97F4A7C15] and (first.num_tokens, second.num_tokens) == (4, 4)


def test_gather_by_hand(store):
    starts, lengths = np.array([5, 0, 3, 4, 1]), np.array([2, 3, 1, 4, 0])
    assert store.gather(starts, lengths).tolist() == [15, 16, 10, 11, 12, 13, 14, 15, 16, 17]
    assert store.gather(starts[:0], lengths[:0]).tolist() == []
    store.tokens.read_ahead(0, 8)
    store.tokens.read_ahead(3, 4)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.int32)])
def test_ids_are_as_wide_as_the_vocabulary_requires(tmp_path, tokenizer, vocab_size, dtype):
    writer = StoreWriter(tmp_path, vocab_size)
    add(writer, [[[vocab_size - 1, 0, 3]]], [1])
    finish(writer, 1, tokenizer)
    read = TokenStore.open(tmp_path).gather(np.array([0]), np.array([3]))
    assert read.dtype == dtype and read.tolist() == [vocab_size - 1, 0, 3]


def test_the_datasets_library_reads_it(store):
    rows = datasets.Dataset.from_file(str(store.folder / "data.arrow"))
    assert rows[2]["input_ids"] == [14, 15, 16, 17] and rows[2]["sentence_lengths"] == [1, 3] and len(rows) == 3


@pytest.mark.parametrize("committed", [0, 1, 2])
def test_a_writer_resumes_after_the_last_commit(tmp_path, tokenizer, committed):
    def write(folder: Path, stops_after: int | None) -> None:
        folder.mkdir(exist_ok=True)
        writer = StoreWriter(folder, 100)
        done = writer.state["done"] if writer.state else 0
        for number in range(done, 3):
            if stops_after is not None and number > stops_after:
                # Data added after the last commit are in the file, perhaps partly.
                writer.close()
                with (folder / "data.arrow").open("ab") as file:
                    file.write(b"torn" * 5000)
                return
            add(writer, [DOCUMENTS[number]], [number])
            if number < committed or stops_after is None:
                writer.commit({"done": number + 1})
        finish(writer, 3, tokenizer)

    write(tmp_path / "whole", None)
    write(tmp_path / "killed", 1)
    with pytest.raises(DataError, match="is not complete"):
        TokenStore.open(tmp_path / "killed")
    write(tmp_path / "killed", None)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    read = TokenStore.open(tmp_path / "killed").gather(np.array([0, 3, 4]), np.array([3, 1, 4]))
    assert read.tolist() == [10, 11, 12, 13, 14, 15, 16, 17]


def test_a_journal_that_does_not_match_its_file_is_ignored(tmp_path, tokenizer):
    writer = StoreWriter(tmp_path, 100)
    add(writer, [DOCUMENTS[0]], [0])
    writer.commit({"done": 1})
    writer.close()
    data = tmp_path / "data.arrow"
    data.write_bytes(data.read_bytes()[:-8])
    assert StoreWriter(tmp_path, 100).state is None


def test_the_fingerprint_covers_tokens_boundaries_and_tokenizer(tmp_path, tokenizer):
    other_tokenizer = trained(["no cat"], tmp_path / "another tokenizer")
    variants = {
        "same": (DOCUMENTS, tokenizer),
        "token": ([[[10, 11], [19]], *DOCUMENTS[1:]], tokenizer),
        "sentence": ([[[10], [11, 12]], *DOCUMENTS[1:]], tokenizer),
        "document": ([[[10, 11]], [[12], [13]], DOCUMENTS[2]], tokenizer),
        "tokenizer": (DOCUMENTS, other_tokenizer),
    }
    prints = {name: write_store(tmp_path / name, *variant).fingerprint for name, variant in variants.items()}
    assert len(set(prints.values())) == 5
    assert write_store(tmp_path / "again", DOCUMENTS, tokenizer).fingerprint == prints["same"]


def test_damaged_stores(tmp_path, store):
    with pytest.raises(DataError, match=r"nowhere does not exist\. .* Build it with framework\.prepare"):
        TokenStore.open(tmp_path / "nowhere")

    def damaged(name: str) -> Path:
        return Path(shutil.copytree(store.folder, tmp_path / name))

    (damaged("incomplete") / "COMPLETE").unlink()
    with pytest.raises(DataError, match="is not complete"):
        TokenStore.open(tmp_path / "incomplete")
    data = damaged("cut") / "data.arrow"
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(DataError, match="is damaged"):
        TokenStore.open(tmp_path / "cut")
    meta = damaged("old") / "store.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "format": 0}))
    with pytest.raises(DataError, match=r"has format 0\. This version reads format 3"):
        TokenStore.open(tmp_path / "old")
    # An older format may even have other files.
    (tmp_path / "old" / "data.arrow").unlink()
    with pytest.raises(DataError, match=r"has format 0\. This version reads format 3"):
        TokenStore.open(tmp_path / "old")
