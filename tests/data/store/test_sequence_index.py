import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from framework.data.store.sequence_index import INDEX_FOLDER, Division, divide_in_memory, open_index
from framework.data.store.token_store import TokenStore
from framework.data.tokenization.tokenizer import Tokenizer
from tests.support.data.stores import trained, write_store

DIVISION = Division(max_tokens=10, pairs=True)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return trained(["the cat sat on a mat"], tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def store(tmp_path, tokenizer) -> TokenStore:
    """Sentences of 3, 4, 4, 2 | 10 | 25, 1 | 5 | 2, 2 tokens."""
    lengths = [[3, 4, 4, 2], [10], [25, 1], [5], [2, 2]]
    return write_store(tmp_path / "store", [[[7] * length for length in document] for document in lengths], tokenizer)


def odd_and_even(text_hashes: np.ndarray) -> dict[str, np.ndarray]:
    odd = text_hashes % np.uint64(2) == 1
    return {"even": ~odd, "odd": odd}


def test_by_hand(store):
    index = open_index(store, DIVISION, odd_and_even, "odd and even")
    even, odd = index["even"], index["odd"]
    # Pieces of at most 5: 10 is 5 + 5, and 25 five of these.
    assert even.pieces.tolist() == [0, 3, 7, 11, 13, 18, 23, 28, 33, 38, 43, 48, 49, 54, 56, 58]
    assert even.documents.tolist() == [0, 2, 4] and odd.documents.tolist() == [1, 3]
    assert even.document_pieces.tolist() == [[0, 4], [6, 12], [13, 15]]
    assert odd.document_pieces.tolist() == [[4, 6], [12, 13]]
    # 3 + 4 | 4 + 2; 5 + 5 | 5 + 5 | 5 + 1; 2 + 2.
    assert even.chunks.tolist() == [[0, 2, 0], [2, 4, 0], [6, 8, 1], [8, 10, 1], [10, 12, 1], [13, 15, 2]]
    assert odd.chunks.tolist() == [[4, 6, 0], [12, 13, 1]]
    assert [even.chunks_before(document) for document in range(6)] == [0, 2, 2, 5, 5, 6]


def test_the_index_is_built_once_and_mapped_afterwards(store, monkeypatch):
    first = open_index(store, DIVISION, odd_and_even, "odd and even")
    monkeypatch.setattr(Division, "divide", None)  # would fail if it were called
    again = open_index(store, DIVISION, odd_and_even, "odd and even")
    for split in ("even", "odd"):
        for name in ("pieces", "documents", "document_pieces", "chunks"):
            array = getattr(again[split], name)
            assert array.tolist() == getattr(first[split], name).tolist()
            assert not array.flags.owndata and not array.flags.writeable
    with pytest.raises(TypeError):
        open_index(store, DIVISION, odd_and_even, "another split")
    with pytest.raises(TypeError):
        open_index(store, Division(10, pairs=False), odd_and_even, "odd and even")


def test_leftovers_of_a_killed_process_are_not_used(store, monkeypatch):
    def killed(self, sentence_lengths, document_sentences):
        if sentence_lengths.sum() != 23:  # the second record batch
            raise KeyboardInterrupt
        return divide(self, sentence_lengths, document_sentences)

    divide = Division.divide
    monkeypatch.setattr(Division, "divide", killed)
    with pytest.raises(KeyboardInterrupt):
        open_index(store, DIVISION, odd_and_even, "odd and even")
    monkeypatch.undo()
    index = open_index(store, DIVISION, odd_and_even, "odd and even")
    assert index["even"].pieces[-1] == 58 and len(index["odd"]) == 2


def test_a_store_that_cannot_be_written_is_divided_in_memory(store):
    (store.folder / INDEX_FOLDER).write_text("no folder")
    index = open_index(store, DIVISION, odd_and_even, "odd and even")
    expected = divide_in_memory(store, DIVISION, odd_and_even)
    assert index["even"].chunks.tolist() == expected["even"].chunks.tolist() and len(index["even"]) == 6


def _open(folder: Path, answers) -> None:
    index = open_index(TokenStore.open(folder), DIVISION, odd_and_even, "odd and even")
    answers.put((len(index["even"]), len(index["odd"]), int(index["even"].pieces[-1])))


def test_concurrent_processes_get_the_same_index(store):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [context.Process(target=_open, args=(store.folder, answers)) for _ in range(4)]
    for process in processes:
        process.start()
    assert [answers.get(timeout=60) for _ in processes] == [(6, 2, 58)] * 4
    for process in processes:
        process.join()
    assert len(list((store.folder / INDEX_FOLDER).iterdir())) == 1
