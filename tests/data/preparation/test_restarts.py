"""A preparation that is killed, runs out of disk or meets another one resumes, or reports the remedy."""

import json
import os
import signal
import time

import pytest

from framework.data.preparation.corpus import Cleaning
from framework.data.preparation.prepare import StoreSpec, prepare_store
from framework.data.reading.sources import TextFiles
from framework.data.store.writer import StoreWriter
from framework.data.tokenization import document_encoder
from framework.errors import DataError
from tests.support.data.run_prepare import run_process
from tests.support.data.small_corpus import VOCABULARY, files_of, write_corpus
from tests.support.processes.alive import is_alive


def test_a_second_prepare_of_the_same_folder_is_rejected(tmp_path, corpus):
    refused = []

    def interfere(stage: str, done: int, total: int) -> None:
        if not refused:
            refused.append(stage)
            with pytest.raises(
                DataError,
                match=r"another framework\.prepare is writing .*store \(process \d+ on host .*\)\. .* Wait until",
            ):
                prepare_store(StoreSpec({"texts": corpus}, VOCABULARY, tmp_path / "store"))

    assert not prepare_store(StoreSpec({"texts": corpus}, VOCABULARY, tmp_path / "store"), progress=interfere).reused
    assert refused == ["vocabulary"]
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_store_that_is_complete_but_not_renamed_is_renamed(tmp_path, corpus, monkeypatch):
    def fail(self, meta, tokenizer):
        finish(self, meta, tokenizer)
        raise KeyboardInterrupt

    finish = StoreWriter.finish
    monkeypatch.setattr(StoreWriter, "finish", fail)
    with pytest.raises(KeyboardInterrupt):
        prepare_store(StoreSpec({"texts": corpus}, VOCABULARY, tmp_path / "store"))
    assert not (tmp_path / "store").exists() and (tmp_path / "store.partial").exists()
    prepare_store(StoreSpec({"texts": corpus}, VOCABULARY, tmp_path / "store"))
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_other_settings_start_anew(tmp_path, corpus, small_batches, monkeypatch):
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "tokens" and done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_store(StoreSpec({"texts": corpus}, VOCABULARY, tmp_path / "store"), progress=stop)
    cleaning = Cleaning(strip_html=True)
    prepare_store(StoreSpec({"texts": corpus}, VOCABULARY, tmp_path / "store", cleaning))
    prepare_store(StoreSpec({"texts": corpus}, VOCABULARY, tmp_path / "other", cleaning))
    assert files_of(tmp_path / "store") == files_of(tmp_path / "other")


def test_finished_work_is_not_repeated(tmp_path, corpus, small_batches, monkeypatch):
    """The batches before the last commit are not encoded again, and the vocabulary is kept."""
    encoded: list[str] = []
    call = document_encoder.DocumentEncoder.__call__

    def counted(self, texts):
        encoded.extend(texts)
        return call(self, texts)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "tokens" and done > total / 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(document_encoder.DocumentEncoder, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        prepare_store(StoreSpec({"texts": corpus}, VOCABULARY, tmp_path / "store"), progress=stop)
    first = list(encoded)
    stages = set()
    prepare_store(
        StoreSpec({"texts": corpus}, VOCABULARY, tmp_path / "store"), progress=lambda *state: stages.add(state[0])
    )
    again = len(encoded) - 40
    assert stages == {"tokens"}
    # A commit follows after at most 600 characters, at 300 or fewer per batch: at most 900 are repeated.
    assert len(first) > 10 and sum(map(len, first[len(first) - again :])) <= 900
    prepare_store(StoreSpec({"texts": corpus}, VOCABULARY, tmp_path / "whole"))
    assert files_of(tmp_path / "store") == files_of(tmp_path / "whole")


def test_killed_at_any_moment_it_resumes_to_the_same_bytes(tmp_path, corpus, small_batches):
    """Real processes are killed with SIGKILL before and after all of their changes to the disk."""
    num_stores = int(run_process(texts=corpus.files, folder=str(tmp_path), every=9))
    prepare_store(StoreSpec({"texts": corpus}, VOCABULARY, tmp_path / "whole"))
    whole = files_of(tmp_path / "whole")
    assert num_stores > 15
    for number in range(num_stores):
        assert files_of(tmp_path / str(number)) == whole, number
    assert {path.name for path in tmp_path.iterdir()} == {"whole", *map(str, range(num_stores + 1))}


def test_a_full_disk_is_reported_and_written_data_are_reused(tmp_path, small_batches):
    """A limit of the file size replaces the disk: the tokenizer is smaller, the Arrow file is not."""
    texts = str(write_corpus(tmp_path / "texts", 200) / "*.txt")
    store = tmp_path / "made" / "store"
    output = run_process(texts=texts, store=str(store), num_workers=1, file_bytes=9_000)
    assert output.startswith(f"{store} cannot be written ([Errno 27] File too large). The next start resumes from")
    assert [path.name for path in store.parent.iterdir()] == ["store.partial"]
    journal = json.loads((tmp_path / "made" / "store.partial" / "store" / "journal.json").read_text())
    assert journal["state"]["batches"] > 10
    sources = {"texts": TextFiles(texts)}
    prepare_store(StoreSpec(sources, VOCABULARY, store))
    prepare_store(StoreSpec(sources, VOCABULARY, tmp_path / "whole"))
    assert files_of(store) == files_of(tmp_path / "whole")


def test_workers_end_with_a_killed_main_process(tmp_path, corpus):
    output = run_process(texts=corpus.files, store=str(tmp_path / "store"), num_workers=2, killed="main")
    workers = output.split()
    assert len(workers) == 2
    for _ in range(600):
        workers = [pid for pid in workers if is_alive(int(pid))]
        if not workers:
            break
        time.sleep(0.1)
    for pid in workers:
        os.kill(int(pid), signal.SIGKILL)
    assert not workers, "after a minute"
    assert [path.name for path in tmp_path.iterdir()] == ["store.lock", "store.partial"]
    assert not prepare_store(StoreSpec({"texts": corpus}, VOCABULARY, tmp_path / "store")).reused
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_killed_workers_are_reported_and_the_work_resumes(tmp_path, corpus):
    output = run_process(texts=corpus.files, store=str(tmp_path / "store"), num_workers=2, killed="workers")
    error = output.splitlines()[1]
    assert error.startswith("a worker process was killed, probably because memory was short. The next start resumes")
    assert [path.name for path in tmp_path.iterdir()] == ["store.partial"]
    stages = set()
    prepare_store(
        StoreSpec({"texts": corpus}, VOCABULARY, tmp_path / "store"), progress=lambda *state: stages.add(state[0])
    )
    assert stages == {"tokens"}
