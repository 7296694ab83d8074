"""The store and the way to it, `framework.data.prepare`."""

import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest

from framework.data.prepare import WordPieceTraining, prepare_store
from framework.data.sources import TableFiles, TextFiles
from framework.data.store import StoreData, StoreWriter, TokenStore
from framework.data.tokenizer import Tokenizer
from framework.data.tokenizer_training import train_wordpiece
from framework.errors import ConfigError, DataError

VOCABULARY = WordPieceTraining(vocab_size=200)


def write_corpus(folder: Path, num_documents: int = 40) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(num_documents):
        words = " ".join(f"word{(number * 7 + place) % 23}" for place in range(5 + number % 3))
        (folder / f"{number:03}.txt").write_text(f"Title {number}\n\n{words}. The cat sat.<br />Nice!\n")
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> TextFiles:
    return TextFiles(str(write_corpus(tmp_path_factory.mktemp("corpus")) / "*.txt"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return train_wordpiece(["the cat sat on a mat", "dogs play"], 100, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def by_hand(tmp_path, tokenizer) -> TokenStore:
    """Documents [[10, 11], [12]], [[13]] in a first record batch and [[14], [15, 16, 17]] in a second."""
    folder = tmp_path / "by_hand"
    folder.mkdir()
    writer = StoreWriter(folder, vocab_size=100)
    hashes = np.array([2**64 - 1, 5], dtype=np.uint64)
    writer.add(np.array([10, 11, 12, 13]), np.array([2, 1, 1]), np.array([2, 1]), hashes)
    writer.add(np.array([14, 15, 16, 17]), np.array([1, 3]), np.array([2]), np.array([7], dtype=np.uint64))
    writer.finish({"counts": {"documents": 3}}, tokenizer)
    return TokenStore.open(folder)


def test_places_by_hand(by_hand):
    assert by_hand.num_documents == 3 and by_hand.num_tokens == 8
    assert by_hand.document_offsets.tolist() == [0, 3, 4, 8]
    assert by_hand.document_sentences.tolist() == [0, 2, 3, 5]
    assert by_hand.sentence_offsets.tolist() == [0, 2, 3, 4, 5, 8]
    assert by_hand.text_hashes.tolist() == [2**64 - 1, 5, 7]


def test_gather_by_hand(by_hand):
    starts, lengths = np.array([5, 0, 3, 4, 1]), np.array([2, 3, 1, 4, 0])
    assert by_hand.gather(starts, lengths).tolist() == [15, 16, 10, 11, 12, 13, 14, 15, 16, 17]
    assert by_hand.gather(starts[:0], lengths[:0]).tolist() == []


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.int32)])
def test_ids_are_as_wide_as_the_vocabulary_needs(tmp_path, tokenizer, vocab_size, dtype):
    writer = StoreWriter(tmp_path, vocab_size)
    ids = np.array([vocab_size - 1, 0, 3])
    writer.add(ids, np.array([3]), np.array([1]), np.array([1], dtype=np.uint64))
    writer.finish({"counts": {"documents": 1}}, tokenizer)
    read = TokenStore.open(tmp_path).gather(np.array([0]), np.array([3]))
    assert read.dtype == dtype and read.tolist() == ids.tolist()


def test_datasets_reads_it_too(by_hand):
    rows = datasets.Dataset.from_file(str(by_hand.folder / "data.arrow"))
    assert rows[2] == {"input_ids": [14, 15, 16, 17], "sentence_lengths": [1, 3], "text_hash": 7}


def test_prepared_text_comes_back(tmp_path, corpus, monkeypatch):
    # Several record batches.
    monkeypatch.setattr("framework.data.prepare.BATCH_CHARACTERS", 300)
    prepared = prepare_store([corpus], VOCABULARY, tmp_path / "store", strip_html=True)
    store = TokenStore.open(tmp_path / "store")
    tokenizer = Tokenizer.from_folder(tmp_path / "store" / "tokenizer")
    assert not prepared.reused and prepared.fingerprint == store.fingerprint
    assert prepared.counts == {
        "files": 40,
        "bytes": sum(path.stat().st_size for path in corpus.paths()),
        "documents": 40,
        "duplicates": 0,
        "empty": 0,
        "skipped_rows": 0,
        "sentences": 160,
        "tokens": store.num_tokens,
        "unknown_tokens": 0,
        "vocab_size": tokenizer.vocab_size,
    }
    for number in (0, 17, 39):
        sentences = slice(store.document_sentences[number], store.document_sentences[number + 1])
        starts = store.sentence_offsets[:-1][sentences]
        lengths = np.diff(store.sentence_offsets)[sentences]
        words = " ".join(f"word{(number * 7 + place) % 23}" for place in range(5 + number % 3))
        expected = tokenizer.encode_batch([f"Title {number}", f"{words}.", "The cat sat. Nice!"])
        assert lengths.tolist() == [len(expected[0]), len(expected[1]), 4, 2]
        assert store.gather(starts, lengths).tolist() == np.concatenate(expected).tolist()


def test_same_input_same_bytes_and_no_second_work(tmp_path, corpus):
    first = prepare_store([corpus], VOCABULARY, tmp_path / "a")
    second = prepare_store([corpus], VOCABULARY, tmp_path / "b")
    for name in ("data.arrow", "store.json", "tokenizer/tokenizer.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    before = (tmp_path / "a" / "data.arrow").stat().st_mtime_ns
    again = prepare_store([corpus], VOCABULARY, tmp_path / "a")
    assert again.reused and again.counts == first.counts and again.fingerprint == second.fingerprint
    assert (tmp_path / "a" / "data.arrow").stat().st_mtime_ns == before


def test_other_content_settings_or_tokenizer_is_another_store(tmp_path, corpus, tokenizer):
    source = TextFiles(str(write_corpus(tmp_path / "texts", 6) / "*.txt"))
    first = prepare_store([source], VOCABULARY, tmp_path / "store")
    (tmp_path / "texts" / "003.txt").write_text("Other text. Here.")
    changed = [
        ([source], VOCABULARY, False),
        ([source], VOCABULARY, True),
        ([source], tokenizer.folder, True),
        ([source], WordPieceTraining(vocab_size=200, lowercase=False), True),
    ]
    fingerprints = {first.fingerprint}
    for sources, vocabulary, strip_html in changed:
        with pytest.raises(DataError, match="made from other files or settings"):
            prepare_store(sources, vocabulary, tmp_path / "store", strip_html)
        assert TokenStore.open(tmp_path / "store").fingerprint in fingerprints
        fingerprints.add(prepare_store(sources, vocabulary, tmp_path / "store", strip_html, overwrite=True).fingerprint)
    assert len(fingerprints) == 5
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("store")] == ["store"]


def test_a_half_written_store_is_never_opened(tmp_path, corpus, monkeypatch):
    killed = KeyboardInterrupt("in the middle")

    def fail(*arguments):
        raise killed

    monkeypatch.setattr(StoreWriter, "finish", fail)
    with pytest.raises(KeyboardInterrupt):
        prepare_store([corpus], VOCABULARY, tmp_path / "store")
    assert not (tmp_path / "store").exists()
    with pytest.raises(DataError, match="is not complete"):
        TokenStore.open(tmp_path / "store.partial")
    monkeypatch.undo()
    assert not prepare_store([corpus], VOCABULARY, tmp_path / "store").reused
    assert not (tmp_path / "store.partial").exists()


def test_damaged_stores(tmp_path, corpus):
    prepare_store([corpus], VOCABULARY, tmp_path / "store")
    with pytest.raises(DataError, match=r"nowhere does not exist; make it with framework\.prepare"):
        TokenStore.open(tmp_path / "nowhere")

    def damaged(name: str) -> Path:
        return Path(shutil.copytree(tmp_path / "store", tmp_path / name))

    (damaged("incomplete") / "COMPLETE").unlink()
    with pytest.raises(DataError, match="is not complete"):
        TokenStore.open(tmp_path / "incomplete")
    with pytest.raises(DataError, match="exists and is no complete store"):
        prepare_store([corpus], VOCABULARY, tmp_path / "incomplete")
    data = damaged("cut") / "data.arrow"
    data.write_bytes(data.read_bytes()[:2000])
    with pytest.raises(DataError, match="is damaged"):
        TokenStore.open(tmp_path / "cut")
    meta = damaged("old") / "store.json"
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "format": 0}))
    with pytest.raises(DataError, match="has format 0, this version reads 2"):
        TokenStore.open(tmp_path / "old")


def test_counts_of_what_was_dropped_and_progress(tmp_path, tokenizer):
    table = tmp_path / "a.csv"
    # The last but one has no text that a tokenizer sees; § is not in the vocabulary.
    table.write_text('text,source\nthe cat,x\n"the  cat",x\n  ,x\n\x07,x\ndogs § play,x\nno,y\n')
    told: list[tuple[str, int, int]] = []
    prepared = prepare_store(
        [TableFiles(str(table), where={"source": "x"})],
        tokenizer.folder,
        tmp_path / "store",
        progress=lambda *state: told.append(state),
    )
    expected = {"documents": 2, "duplicates": 1, "empty": 2, "sentences": 2, "unknown_tokens": 1}
    assert {name: prepared.counts[name] for name in expected} == expected
    size = table.stat().st_size
    assert told[-1] == ("tokens", size, size) and [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_bad_rows_are_counted_and_told(tmp_path, tokenizer):
    table = tmp_path / "a.jsonl"
    table.write_bytes(b'{"text": "the cat"}\n{"text": "dogs\n{"text": "\xff"}\n{"text": "dogs play"}\n')
    source = TableFiles(str(table))
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: not JSON"):
        prepare_store([source], tokenizer.folder, tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    for reused in (False, True):
        prepared = prepare_store([source], tokenizer.folder, tmp_path / "store", on_bad_row="skip")
        assert (prepared.reused, prepared.counts["documents"], prepared.counts["skipped_rows"]) == (reused, 2, 2)
        assert [told.removeprefix(str(table)).split(":")[0] for told in prepared.skipped] == [", line 2", ", line 3"]


def test_nothing_to_prepare(tmp_path, tokenizer):
    with pytest.raises(DataError, match="there are no sources"):
        prepare_store([], VOCABULARY, tmp_path / "store")
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(DataError, match="none of the 1 documents holds text"):
        prepare_store([TextFiles(str(tmp_path / "a.txt"))], tokenizer.folder, tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_that_cannot_be_written(tmp_path, corpus):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot be written"):
        prepare_store([corpus], VOCABULARY, tmp_path / "file" / "store")


def test_held_out_documents(tmp_path, corpus):
    prepare_store([corpus], VOCABULARY, tmp_path / "store")
    data = StoreData(str(tmp_path / "store"), validation_fraction=0.25)
    splits = data.documents()
    assert sorted([*splits["train"], *splits["validation"]]) == list(range(40))
    # Binomial(40, 0.25): mean 10, standard deviation 2.7.
    assert 2 <= len(splits["validation"]) <= 19
    other = StoreData(str(tmp_path / "store"), validation_fraction=0.25, split_seed=1).documents()
    assert other["validation"].tolist() != splits["validation"].tolist()
    larger = StoreData(str(tmp_path / "store"), validation_fraction=0.5).documents()
    assert set(splits["validation"]) < set(larger["validation"])
    assert list(StoreData(str(tmp_path / "store"), validation_fraction=0).documents()) == ["train"]
    with pytest.raises(DataError, match="leaves none for validation"):
        StoreData(str(tmp_path / "store"), validation_fraction=1e-9).documents()
    with pytest.raises(ConfigError, match=r"validation_fraction is 1\.0"):
        StoreData(str(tmp_path / "store"), validation_fraction=1.0)


def test_a_document_stays_on_its_side_when_the_corpus_grows(tmp_path):
    texts = write_corpus(tmp_path / "texts", 30)
    sides = {}
    for count, store in ((30, "small"), (60, "large")):
        write_corpus(texts, count)
        prepare_store([TextFiles(str(texts / "*.txt"))], VOCABULARY, tmp_path / store)
        data = StoreData(str(tmp_path / store), validation_fraction=0.3)
        sides[store] = {split: set(data.opened.text_hashes[documents]) for split, documents in data.documents().items()}
    assert sides["small"]["validation"] < sides["large"]["validation"]
    assert sides["small"]["train"] < sides["large"]["train"]
