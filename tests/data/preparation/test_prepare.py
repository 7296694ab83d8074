"""Preparation, from sources to a store: `framework.data.preparation.prepare`."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from framework.data.preparation import corpus as corpora
from framework.data.preparation.corpus import Cleaning
from framework.data.preparation.prepare import StoreSpec, prepare_store
from framework.data.reading.shards import ParquetShards
from framework.data.reading.sources import Source, TableFiles, TextFiles
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.wordpiece_training import WordPieceTraining
from framework.errors import ConfigError, DataError
from tests.support.data.small_corpus import VOCABULARY, files_of, write_corpus


def test_prepared_text_can_be_read_back(tmp_path, corpus, small_batches):
    prepared = prepare_store(StoreSpec({"texts": corpus}, VOCABULARY, tmp_path / "store", Cleaning(strip_html=True)))
    rows = datasets.Dataset.from_file(str(tmp_path / "store" / "data.arrow"))
    tokenizer = Tokenizer.from_folder(tmp_path / "store" / "tokenizer")
    assert not prepared.reused
    assert prepared.counts == {
        "files": 40,
        "bytes": sum(path.stat().st_size for path in corpus.paths()),
        "documents": 40,
        "duplicates": 0,
        "near_duplicates": 0,
        "excluded": 0,
        "empty": 0,
        "skipped_rows": 0,
        "sentences": 160,
        "tokens": sum(map(len, rows["input_ids"])),
        "unknown_tokens": 0,
        "vocab_size": tokenizer.vocab_size,
    }
    assert len(rows) == 40
    for number, row in enumerate(rows):
        words = " ".join(f"word{(number * 7 + index) % 23}" for index in range(5 + number % 3))
        expected = tokenizer.encode_batch([f"Title {number}", f"{words}.", "The cat sat.", "Nice!"])
        assert row["sentence_lengths"] == [len(sentence) for sentence in expected]
        assert row["input_ids"] == np.concatenate(expected).tolist()


def test_the_same_input_gives_the_same_bytes_without_new_work(tmp_path, corpus):
    first = prepare_store(StoreSpec({"texts": corpus}, VOCABULARY, tmp_path / "a"))
    second = prepare_store(StoreSpec({"texts": corpus}, VOCABULARY, tmp_path / "b"))
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    before = (tmp_path / "a" / "data.arrow").stat().st_mtime_ns
    again = prepare_store(StoreSpec({"texts": corpus}, VOCABULARY, tmp_path / "a"))
    assert again.reused and again.counts == first.counts and again.fingerprint == second.fingerprint
    assert (tmp_path / "a" / "data.arrow").stat().st_mtime_ns == before


def test_any_number_of_workers_gives_the_same_bytes(tmp_path, corpus, small_batches):
    for num_workers in (0, 2):
        prepare_store(StoreSpec({"texts": corpus}, VOCABULARY, tmp_path / str(num_workers)), num_workers=num_workers)
    assert files_of(tmp_path / "0") == files_of(tmp_path / "2")


def test_other_content_settings_or_tokenizer_is_another_store(tmp_path, given):
    sources = {"texts": TextFiles(str(write_corpus(tmp_path / "texts", 6) / "*.txt"))}
    first = prepare_store(StoreSpec(sources, VOCABULARY, tmp_path / "store"))
    (tmp_path / "texts" / "003.txt").write_text("Other text. Here.")
    changed: list[tuple[Any, Cleaning]] = [
        (VOCABULARY, Cleaning()),
        (VOCABULARY, Cleaning(strip_html=True)),
        (given, Cleaning(strip_html=True)),
        (WordPieceTraining(vocab_size=200, lowercase=False), Cleaning(strip_html=True)),
    ]
    fingerprints = [first.fingerprint]
    for vocabulary, cleaning in changed:
        with pytest.raises(DataError, match="made from other files or settings"):
            prepare_store(StoreSpec(sources, vocabulary, tmp_path / "store", cleaning))
        assert json.loads((tmp_path / "store" / "store.json").read_text())["fingerprint"] == fingerprints[-1]
        fingerprints.append(
            prepare_store(StoreSpec(sources, vocabulary, tmp_path / "store", cleaning, overwrite=True)).fingerprint
        )
    assert len(set(fingerprints)) == 5
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("store")] == ["store"]


def test_documents_of_each_source_are_counted(tmp_path, given):
    (tmp_path / "a.txt").write_text("the cat\n\nthe dog\n\nthe  cat")
    (tmp_path / "b.txt").write_text("the cat\n\n\x07\n\non a mat\n\nsat\n\ndogs")
    sources = {name: TextFiles(str(tmp_path / f"{name}.txt"), "blank_lines") for name in ("b", "a")}
    prepare_store(StoreSpec(sources, given, tmp_path / "store"))
    meta = json.loads((tmp_path / "store" / "store.json").read_text())
    assert meta["sources"] == [{"name": "b", "documents": 4}, {"name": "a", "documents": 1}]
    assert (meta["counts"]["duplicates"], meta["counts"]["empty"]) == (2, 1)


def test_a_batch_has_a_limited_size_or_one_document(monkeypatch):
    monkeypatch.setattr(corpora, "BATCH_CHARACTERS", 10)
    texts = ["aaaa", "bbbb", "", "c" * 30, "", "d", "eeeeeeeee", "f"]
    batches = [["aaaa", "bbbb"], [""], ["c" * 30], ["", "d"], ["eeeeeeeee"], ["f"]]
    assert list(corpora.in_batches(iter(texts))) == batches


def test_counts_of_dropped_documents_and_progress(tmp_path, given):
    table = tmp_path / "a.csv"
    # The last but one has no text that a tokenizer sees; § is not in the vocabulary.
    table.write_text('text,source\nthe cat,x\n"the  cat",x\n  ,x\n\x07,x\ndogs § play,x\nno,y\n')
    states: list[tuple[str, int, int]] = []
    prepared = prepare_store(
        StoreSpec({"table": TableFiles(str(table), where={"source": "x"})}, given, tmp_path / "store"),
        progress=lambda *state: states.append(state),
    )
    expected = {"documents": 2, "duplicates": 1, "empty": 2, "sentences": 2, "unknown_tokens": 1}
    assert {name: prepared.counts[name] for name in expected} == expected
    size = table.stat().st_size
    assert states[-1] == ("tokens", size, size) and [done for _, done, _ in states] == sorted(
        done for _, done, _ in states
    )


def test_bad_rows_are_counted_and_reported(tmp_path, given):
    table = tmp_path / "a.jsonl"
    table.write_bytes(b'{"text": "the cat"}\n{"text": "dogs\n{"text": "\xff"}\n{"text": "dogs play"}\n')
    sources = {"table": TableFiles(str(table))}
    with pytest.raises(DataError, match=r"a\.jsonl, line 2: not JSON"):
        prepare_store(StoreSpec(sources, given, tmp_path / "store"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
    for reused in (False, True):
        prepared = prepare_store(StoreSpec(sources, given, tmp_path / "store", on_bad_row="skip"))
        assert (prepared.reused, prepared.counts["documents"], prepared.counts["skipped_rows"]) == (reused, 2, 2)
        assert [message.removeprefix(str(table)).split(":")[0] for message in prepared.skipped] == [
            ", line 2",
            ", line 3",
        ]


def test_nothing_to_prepare(tmp_path, given):
    with pytest.raises(DataError, match="there are no sources"):
        prepare_store(StoreSpec({}, VOCABULARY, tmp_path / "store"))
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"no documents remain after cleaning \(1 read\)"):
        prepare_store(StoreSpec({"texts": TextFiles(str(tmp_path / "a.txt"))}, given, tmp_path / "store"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_that_cannot_be_written_or_is_something_else(tmp_path, corpus):
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot be written"):
        prepare_store(StoreSpec({"texts": corpus}, VOCABULARY, tmp_path / "file" / "store"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="exists, but is not a complete token store"):
        prepare_store(StoreSpec({"texts": corpus}, VOCABULARY, tmp_path / "folder"))
    (tmp_path / "folder" / "COMPLETE").touch()
    with pytest.raises(DataError, match=r"store\.json cannot be read"):
        prepare_store(StoreSpec({"texts": corpus}, VOCABULARY, tmp_path / "folder"))


def test_excluded_and_near_duplicate_documents_are_absent_from_later_passes(tmp_path, small_batches):
    """Among a, b, c, d and copies, c overlaps an evaluation text, d is b except for one word; neither is used."""
    common = " ".join(f"w{number}" for number in range(60))
    texts = {
        "a": "alpha " + " ".join(f"a{number}" for number in range(40)),
        "b": f"beta {common} end",
        "c": "gamma the quick brown fox jumps over the lazy dog and runs home again quickly",
        "d": f"beta {common} zzzz",
        "e": "alpha " + " ".join(f"a{number}" for number in range(40)),
        "f": "\x07",
    }
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts.values()))
    tests = tmp_path / "tests.txt"
    tests.write_text("The quick brown fox jumps over the lazy dog and runs home!\ntoo short\n")
    cleaning = Cleaning(exclude=[str(tests)], near_duplicates=0.7)
    stages: list[str] = []
    for store, num_workers in (("one", 1), ("two", 2)):
        prepared = prepare_store(
            StoreSpec({"rows": TableFiles(str(rows))}, VOCABULARY, tmp_path / store, cleaning),
            num_workers=num_workers,
            progress=lambda *state: stages.append(state[0]),
        )
        expected = {"documents": 2, "duplicates": 1, "near_duplicates": 1, "excluded": 1, "empty": 1}
        expected |= {"evaluation_texts": 1, "evaluation_texts_too_short": 1}
        assert {name: prepared.counts[name] for name in expected} == expected
    assert list(dict.fromkeys(stages)) == ["cleaning", "vocabulary", "tokens"]
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    stored = datasets.Dataset.from_file(str(tmp_path / "one" / "data.arrow"))
    tokenizer = Tokenizer.from_folder(tmp_path / "one" / "tokenizer")
    for row, name in zip(stored, "ab", strict=True):
        assert row["input_ids"] == tokenizer.encode_batch([texts[name]])[0].tolist()
    vocabulary = set(tokenizer.backend.get_vocab())
    assert "b" in vocabulary and not {"q", "z", "##q", "##z"} & vocabulary


def test_cleaning_is_not_repeated(tmp_path, corpus, small_batches):
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "vocabulary":
            raise KeyboardInterrupt

    cleaning = Cleaning(near_duplicates=0.9)
    with pytest.raises(KeyboardInterrupt):
        prepare_store(StoreSpec({"texts": corpus}, VOCABULARY, tmp_path / "store", cleaning), progress=stop)
    stages = set()
    again = prepare_store(
        StoreSpec({"texts": corpus}, VOCABULARY, tmp_path / "store", cleaning),
        progress=lambda *state: stages.add(state[0]),
    )
    assert stages == {"vocabulary", "tokens"}
    assert again.counts == prepare_store(StoreSpec({"texts": corpus}, VOCABULARY, tmp_path / "whole", cleaning)).counts
    assert files_of(tmp_path / "store") == files_of(tmp_path / "whole")


@pytest.mark.parametrize("cleaning", [{"near_duplicates": 0.0}, {"near_duplicates": 1.5}, {"num_permutations": 1}])
def test_settings_of_cleaning_out_of_range(cleaning):
    (name,) = cleaning
    with pytest.raises(ConfigError, match=f"{name} is "):
        Cleaning(**cleaning)


def write_shards(folder: Path) -> dict[str, Source]:
    """Writes row groups of 3, 3, 1 rows in two files of one source and 2 in another; some are repeated or empty."""
    folder.mkdir()
    rows = {
        "a-0": (["the cat", "", "dogs play", "the cat", "no", "on a mat"], "xxxxyx"),
        "a-1": (["a dog sat"], "x"),
        "b-0": (["the  cat", "\x07"], "xx"),
    }
    for name, (texts, kinds) in rows.items():
        table = pa.table({"text": texts, "kind": list(kinds)})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=3)
    sources = {name: ParquetShards(str(folder / f"{name}-*.parquet"), where={"kind": "x"}) for name in "ab"}
    return {**sources, "c": ParquetShards(str(folder / "a-1.parquet"))}


@pytest.mark.parametrize("batch_characters", [2_000_000, 9])
def test_a_streamed_store_records_the_positions_of_its_documents(tmp_path, given, monkeypatch, batch_characters):
    monkeypatch.setattr(corpora, "BATCH_CHARACTERS", batch_characters)
    sources = write_shards(tmp_path / "shards")
    stored = prepare_store(StoreSpec(sources, given, tmp_path / "stored"))
    streamed = prepare_store(StoreSpec(sources, given, tmp_path / "streamed", streamed=True))
    assert streamed.counts == stored.counts
    rows = datasets.Dataset.from_file(str(tmp_path / "streamed" / "data.arrow"))
    assert "input_ids" not in rows.column_names
    # In the second row group the first row is a repetition, and the second is not yielded at all.
    assert (rows["group"], rows["row"]) == ([0, 0, 1, 2], [0, 2, 1, 0])
    with pa.OSFile(str(tmp_path / "streamed" / "data.arrow")) as file:
        assert [batch.num_rows for batch in pa.ipc.open_stream(file)] == [2, 1, 1]
    whole = datasets.Dataset.from_file(str(tmp_path / "stored" / "data.arrow"))
    assert rows["text_hash"] == whole["text_hash"] and rows["sentence_lengths"] == whole["sentence_lengths"]
    meta = json.loads((tmp_path / "streamed" / "store.json").read_text())
    assert [source["documents"] for source in meta["sources"]] == [4, 0, 0]
    assert meta["streamed"] is True
    record = json.loads((tmp_path / "streamed" / "row_groups.json").read_text())
    assert (record["strip_html"], record["on_bad_row"]) == (False, "error")
    first = record["sources"][0]
    assert (first["text_column"], first["where"]) == ("text", {"kind": "x"})
    assert [group[:3] for group in first["groups"]] == [
        [str(tmp_path / "shards" / "a-0.parquet"), 0, 3],
        [str(tmp_path / "shards" / "a-0.parquet"), 1, 3],
        [str(tmp_path / "shards" / "a-1.parquet"), 0, 1],
    ]


def test_the_card_shows_the_counts_of_each_source(tmp_path, given, small_batches, monkeypatch):
    monkeypatch.undo()
    (tmp_path / "a.txt").write_text("the cat. A mat\n\nthe dog\n\nthe  dog")
    (tmp_path / "b.txt").write_text("the dog\n\n\x07\n\non a mat")
    sources = {name: TextFiles(str(tmp_path / f"{name}.txt"), "blank_lines") for name in "ab"}
    prepare_store(StoreSpec(sources, given, tmp_path / "store"))
    card = json.loads((tmp_path / "store" / "card.json").read_text())
    dropped = {"near_duplicates": 0, "excluded": 0}
    assert card["sources"] == [
        {"name": "a", "documents": 2, "read": 3, "duplicates": 1, "empty": 0, **dropped},
        {"name": "b", "documents": 1, "read": 3, "duplicates": 1, "empty": 1, **dropped},
    ]
    expected = {"read": 6, "kept": 3, "duplicates": 2, "empty": 1, "skipped_rows": 0, **dropped}
    assert card["documents"] == expected
    # "the cat .", "a mat"; "the", "[UNK]" or pieces; "on a mat"; each a sequence with two special tokens.
    tokens = 5 + len(given.load().encode_batch(["the dog"])[0]) + 3 + 3 * 2
    assert card["packing_efficiency"] == {str(size): pytest.approx(tokens / size) for size in (128, 512, 1024)}
    assert (tmp_path / "store" / "card.png").read_bytes().startswith(b"\x89PNG")


def test_only_parquet_shards_can_be_streamed(tmp_path, corpus):
    sources = {**write_shards(tmp_path / "shards"), "plain": corpus}
    with pytest.raises(ConfigError, match=r"the source `plain` is TextFiles, .* Convert it to Parquet .*stream=false"):
        prepare_store(StoreSpec(sources, VOCABULARY, tmp_path / "store", streamed=True))
    assert not (tmp_path / "store").exists()
