"""Tests that a corpus streamed from a web server gives the same batches as one on disk, from any step, on any rank."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from framework.batch import PackedBatch, StepBatch
from framework.data.preparation.corpus import Cleaning
from framework.data.preparation.prepare import StoreSpec, prepare_store
from framework.data.reading import remote_file
from framework.data.reading.shards import ParquetShards
from framework.data.reading.sources import TextFiles
from framework.data.store.token_store import TokenStore
from framework.data.store_data import StoreData
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.vocabulary import GivenTokenizer
from framework.datamodules.datamodule import EncoderDataModule
from framework.errors import ConfigError, DataError
from framework.random import key, mix, random_integers
from framework.tasks.pretraining.task import PretrainingTask
from tests.support.data.range_server import Faults, RangeServer
from tests.support.data.stores import trained

WORDS = ("the", "cat", "sat", "on", "a", "mat", "dogs", "play", "and", "sleep")
NUM_SHARDS, GROUPS, ROWS = 3, 4, 12
STEPS = 6


def document(number: int) -> str:
    """Returns 2 to 7 sentences. Every tenth document is empty, and every eleventh equals the first."""
    if number % 10 == 9:
        return "  "
    draws = mix(key("document", 0 if number % 11 == 10 else number), np.arange(80))
    lengths = 2 + random_integers(draws[: 2 + int(draws[79] % 6)], 7)
    words = [WORDS[int(draw % len(WORDS))] for draw in draws]
    return " ".join(
        " ".join(words[index * 8 : index * 8 + int(length)]).capitalize() + "." for index, length in enumerate(lengths)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Writes shards with a text column and a larger second column."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(NUM_SHARDS):
        schema = pa.schema({"text": pa.string(), "raw": pa.string()})
        file = pq.ParquetWriter(folder / f"{shard}.parquet", schema, compression="none", use_dictionary=False)
        with file:
            for group in range(GROUPS):
                first = (shard * GROUPS + group) * ROWS
                texts = [document(number) for number in range(first, first + ROWS)]
                file.write_table(
                    pa.table({"text": texts, "raw": [f"{number}".zfill(20_000) for number in range(ROWS)]})
                )
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return trained([" ".join(WORDS).capitalize() + ". " + " ".join(WORDS)], tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def server(folder, monkeypatch) -> Iterator[RangeServer]:
    monkeypatch.setattr(remote_file, "sleep", lambda seconds: None)
    with RangeServer(folder) as opened:
        yield opened


def prepared(folder: Path, files: list[str], tokenizer: Tokenizer, streamed: bool) -> StoreData:
    sources = {"web": ParquetShards(files)}
    prepare_store(StoreSpec(sources, GivenTokenizer(str(tokenizer.folder)), folder, streamed=streamed))
    return StoreData(str(folder), 0.0, block_size=8, window_blocks=2, cache_megabytes=4)


def over_http(server: RangeServer) -> list[str]:
    return [server.url(f"{shard}.parquet") for shard in range(NUM_SHARDS)]


def on_disk(folder: Path) -> list[str]:
    return [str(folder / f"{shard}.parquet") for shard in range(NUM_SHARDS)]


def datamodule(data: StoreData, tokenizer: Tokenizer, num_ranks: int = 1, rank: int = 0) -> EncoderDataModule:
    sources = PretrainingTask(48).build_sources(data, tokenizer, seed=3)
    return EncoderDataModule(sources, 3, 24, 256, STEPS, wraps_epochs=True, num_ranks=num_ranks, rank=rank)


def tensors(batch: PackedBatch) -> dict[str, list]:
    named = {"input_ids": batch.input_ids, "cu_seqlens": batch.cu_seqlens, "ids": batch.sequence_ids, **batch.targets}
    return {name: tensor.tolist() for name, tensor in named.items()}


def content(steps: Iterator[StepBatch]) -> list[tuple[int, list[dict[str, list]]]]:
    return [(step.step, [tensors(batch) for batch in step.micro_batches]) for step in steps]


def test_batches_are_those_of_a_store_on_the_disk(tmp_path, server, folder, tokenizer):
    local = prepared(tmp_path / "local", on_disk(folder), tokenizer, streamed=False)
    streamed = prepared(tmp_path / "streamed", over_http(server), tokenizer, streamed=True)
    assert streamed.opened.is_streamed and not local.opened.is_streamed
    # 144 rows, of which 14 are empty and 13 repeat the first.
    counts = streamed.opened.meta["counts"]
    assert (counts["documents"], counts["empty"], counts["duplicates"]) == (144 - 14 - 12, 14, 12)
    assert counts["documents"] == local.opened.num_documents
    size = {name: sum(p.stat().st_size for p in (tmp_path / name).rglob("*.arrow")) for name in ("local", "streamed")}
    expected = content(iter(datamodule(local, tokenizer).train_dataloader()))
    # Every 5th connection is cut from now on.
    server.faults = Faults(cut_every=5)
    assert content(iter(datamodule(streamed, tokenizer).train_dataloader())) == expected
    assert len(expected) == STEPS and size["streamed"] < size["local"]
    # Starts at another step, on two ranks, in a process that has fetched nothing yet.
    again = StoreData(streamed.store, 0.0, block_size=8, window_blocks=2, cache_megabytes=4)
    for rank in range(2):
        modules = [datamodule(data, tokenizer, num_ranks=2, rank=rank) for data in (local, again)]
        for module in modules:
            module.set_start(4)
        one, other = (content(iter(module.train_dataloader())) for module in modules)
        assert one == other and [step for step, _ in one] == [4, 5]


def test_a_window_fetches_its_own_row_groups_once(tmp_path, server, tokenizer):
    data = prepared(tmp_path / "store", over_http(server), tokenizer, streamed=True)
    fetched: list[int] = []
    encode = data.opened.tokens._fetch
    data.opened.tokens._fetch = lambda number: fetched.append(number) or encode(number)
    before = server.bytes_served
    list(datamodule(data, tokenizer).train_dataloader())
    assert len(fetched) == len(set(fetched)) <= NUM_SHARDS * GROUPS
    shards = sum((server.folder / f"{shard}.parquet").stat().st_size for shard in range(NUM_SHARDS))
    # The unused column makes up most of a shard.
    assert 0 < server.bytes_served - before < 0.5 * shards


def test_validation_fetches_no_row_group_of_training(tmp_path, folder, tokenizer):
    prepared(tmp_path / "store", on_disk(folder), tokenizer, streamed=True)
    data = StoreData(str(tmp_path / "store"), 0.4, block_size=8, window_blocks=2, cache_megabytes=4)
    module, fetched = datamodule(data, tokenizer), []
    encode = data.opened.tokens._fetch
    data.opened.tokens._fetch = lambda number: fetched.append(number) or encode(number)
    seen = {}
    for split, loader in (("train", module.train_dataloader()), ("validation", module.val_dataloader())):
        fetched.clear()
        assert list(loader)
        seen[split] = set(fetched)
    assert seen["train"] and seen["validation"] and not seen["train"] & seen["validation"]


def test_a_shard_that_changed_ends_the_run(tmp_path, server, folder, tokenizer):
    copies = tmp_path / "copies"
    copies.mkdir()
    for path in folder.iterdir():
        (copies / path.name).write_bytes(path.read_bytes())
    data = prepared(tmp_path / "store", on_disk(copies), tokenizer, streamed=True)
    pq.write_table(pa.table({"text": ["something else."] * 40, "raw": ["x"] * 40}), copies / "1.parquet")
    with pytest.raises(DataError, match=r"1\.parquet has changed since it was indexed\. Run framework\.prepare again"):
        list(datamodule(data, tokenizer).train_dataloader())


def test_a_row_group_that_gives_other_sentences_ends_the_run(tmp_path, folder, tokenizer):
    data = prepared(tmp_path / "store", on_disk(folder), tokenizer, streamed=True)
    index_file = tmp_path / "store" / "row_groups.json"
    content = json.loads(index_file.read_text())
    content["sources"][0]["groups"].reverse()
    index_file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"row group \d: the sentences differ from those of the token store"):
        list(datamodule(data, tokenizer).train_dataloader())


def test_what_cannot_be_streamed_is_refused(tmp_path, tokenizer, folder):
    (tmp_path / "a.txt").write_text("The cat sat.")
    sources = {"notes": TextFiles(str(tmp_path / "a.txt"))}
    with pytest.raises(ConfigError, match=r"`notes` is TextFiles, which has no index to seek in\. Streaming"):
        prepare_store(StoreSpec(sources, GivenTokenizer(str(tokenizer.folder)), tmp_path / "store", streamed=True))
    assert not (tmp_path / "store").exists()
    data = prepared(tmp_path / "streamed", on_disk(folder), tokenizer, streamed=True)
    with pytest.raises(ConfigError, match=r"data\.block_size is null.* is streamed.*Set data\.block_size"):
        datamodule(StoreData(data.store), tokenizer)
    with pytest.raises(ConfigError, match=r"cache_megabytes is 1\. Two windows"):
        datamodule(StoreData(data.store, block_size=8192, cache_megabytes=1), tokenizer)


def test_html_is_stripped_the_same_way_again(tmp_path, tokenizer):
    rows = ["The cat<br />sat on a mat. Dogs &amp; a cat.", "<p>Dogs play.</p> And sleep.", "A mat. <i>A</i> cat."]
    pq.write_table(pa.table({"text": rows}), tmp_path / "a.parquet")
    source, cleaning = {"web": ParquetShards(str(tmp_path / "a.parquet"))}, Cleaning(strip_html=True)
    for name, streamed in (("local", False), ("streamed", True)):
        prepare_store(
            StoreSpec(source, GivenTokenizer(str(tokenizer.folder)), tmp_path / name, cleaning, streamed=streamed)
        )
    stores = [TokenStore.open(tmp_path / name) for name in ("local", "streamed")]
    lengths = stores[0].batch(0).sentence_lengths
    starts = lengths.cumsum() - lengths
    local, streamed = (store.gather(starts, lengths).tolist() for store in stores)
    assert local == streamed and tokenizer.unk_id in local
