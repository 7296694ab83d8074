"""Parquet shards over every kind of file system."""

import pickle
from collections.abc import Iterator

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from framework.data.reading import shards
from framework.data.reading.files import Reading
from framework.data.reading.shards import ParquetShards
from framework.errors import ConfigError, DataError
from tests.support.data.range_server import RangeServer
from tests.support.data.shard_files import (
    NAMES,
    ROWS_A_GROUP,
    TEXTS,
    over_http,
    text_of,
    texts_of,
    texts_of_shard,
    write_shard,
)

pytestmark = pytest.mark.usefixtures("waits")


def test_row_groups_are_addressed_from_the_footers(folder):
    source = ParquetShards([str(folder / "b" / "*.parquet"), str(folder / "*" / "*.parquet")])
    assert source.paths() == [str(folder / name) for name in (NAMES[2], NAMES[0], NAMES[1])]
    groups = source.groups()
    assert [(group.shard, group.number, group.num_rows) for group in groups] == [
        (str(folder / name), number, count)
        for name in (NAMES[2], NAMES[0], NAMES[1])
        for number, count in enumerate(ROWS_A_GROUP)
    ]
    assert texts_of(source, groups[1]) == [text_of(2, row) for row in (4, 5, 6)]
    assert texts_of(source, groups[2]) == []
    assert texts_of(source) == texts_of_shard(2) + texts_of_shard(0) + texts_of_shard(1)


def test_the_same_texts_over_http_as_from_local_files(server, folder):
    source = over_http(server)
    done: list[int] = []
    assert list(source.read(Reading(advance=done.append))) == TEXTS == texts_of(ParquetShards(str(folder / "*/*")))
    assert sum(done) == source.num_bytes() > 0
    # The content must not be encoded in transit: a range counts the bytes of the file.
    assert server.encodings == {"identity"}


def test_only_the_footer_and_the_requested_columns_are_fetched(server, folder):
    groups = over_http(server).groups()
    assert server.bytes_served <= 3 * 2**16
    assert len(server.gets()) == 3
    size = (folder / NAMES[1]).stat().st_size
    assert size > 3 * 2**16
    source = over_http(server)
    server.reset()
    assert texts_of(source, groups[4 + 3]) == [text_of(1, row) for row in range(7, 12)]
    assert server.bytes_served == 2**16 + groups[7].num_bytes < 2**16 + 1000
    assert server.gets()[0] == (f"/{NAMES[1]}", f"bytes={size - 2**16}-{size - 1}")
    # The footer is not requested again.
    server.reset()
    assert texts_of(source, groups[4 + 1]) == [text_of(1, row) for row in range(4, 7)]
    assert len(server.requests) == 1 and server.bytes_served == groups[5].num_bytes
    server.reset()
    assert texts_of(over_http(server), groups[6]) == [] and server.requests == []


def test_footers_of_open_shards_are_dropped_above_a_limit(server, monkeypatch):
    source = over_http(server)
    groups = source.groups()
    monkeypatch.setattr(shards, "_KEPT_FOOTER_BYTES", 1)
    server.reset()
    for group in (groups[0], groups[1], groups[5], groups[0]):
        texts_of(source, group)
    footers = [
        path for path, given in server.gets() if given.endswith(f"-{(server.folder / NAMES[0]).stat().st_size - 1}")
    ]
    assert footers == [f"/{name}" for name in (NAMES[0], NAMES[1], NAMES[0])]


def test_a_footer_longer_than_the_first_request(tmp_path):
    schema = pa.schema([("text", pa.string())], metadata={"notes": "y" * 200_000})
    pq.write_table(pa.table({"text": ["a", "b"]}, schema=schema), tmp_path / "a.parquet")
    with RangeServer(tmp_path) as server:
        source = over_http(server, ("a.parquet",))
        assert len(source.groups()) == 1 and len(server.gets()) == 2
        assert server.bytes_served < (tmp_path / "a.parquet").stat().st_size
        assert texts_of(source) == ["a", "b"]


def test_a_source_can_be_sent_to_another_process(folder):
    source = ParquetShards(str(folder / "a" / "*.parquet"))
    groups = source.groups()
    texts_of(source, groups[0])
    assert texts_of(pickle.loads(pickle.dumps(source)), pickle.loads(pickle.dumps(groups[5]))) == texts_of_shard(1)[4:7]


@pytest.fixture
def bucket(folder) -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    for name in NAMES:
        memory.pipe_file(f"/bucket/{name}", (folder / name).read_bytes())
    yield "memory://bucket"
    memory.rm("/bucket", recursive=True)


def test_an_object_store_is_listed(bucket):
    fsspec.filesystem("memory").pipe_file("/bucket/a/folder.parquet/marker", b"")
    source = ParquetShards(f"{bucket}/a/*.parquet")
    assert source.paths() == ["memory:///bucket/a/0.parquet", "memory:///bucket/a/1.parquet"]
    assert texts_of(source) == texts_of_shard(0) + texts_of_shard(1)
    assert texts_of(ParquetShards(["memory:///bucket/b/2.parquet", f"{bucket}/**/*.parquet"])) == texts_of_shard(
        2
    ) + texts_of_shard(0) + texts_of_shard(1)
    with pytest.raises(DataError, match=r"no file matches 'memory://bucket/\*\.csv'"):
        ParquetShards(f"{bucket}/*.csv").paths()


def test_a_list_of_shards(server, folder, bucket):
    (folder / "shards.txt").write_text(f"{server.url(NAMES[2])}\n\n {folder}/a/*.parquet\n")
    source = ParquetShards(f"@{folder}/shards.txt")
    assert texts_of(source) == texts_of_shard(2) + texts_of_shard(0) + texts_of_shard(1)
    with pytest.raises(DataError, match=r"nowhere\.txt, the list of shards, cannot be read"):
        ParquetShards("@nowhere.txt").paths()
    with pytest.raises(DataError, match=r"is a glob\. A web server does not list .*files=@shards\.txt"):
        ParquetShards(server.url("a/*.parquet")).paths()
    with pytest.raises(DataError, match=r"`files` is \[\], which names no file"):
        ParquetShards([]).paths()


@pytest.mark.parametrize("compression", ["gzip", "zstd", "snappy", "brotli"])
def test_compressed_and_dictionary_encoded_columns(tmp_path, compression):
    values = [f"word {number % 7}" for number in range(3_000)]
    columns = {"text": pa.array(values).dictionary_encode(), "large": pa.array(values, pa.large_string())}
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), file, compression=compression, row_group_size=1_300, write_page_checksum=True)
    with RangeServer(tmp_path) as server:
        source = over_http(server, ("a.parquet",))
        assert [len(texts_of(source, group)) for group in source.groups()] == [1_300, 1_300, 400]
        assert texts_of(source) == values == texts_of(over_http(server, ("a.parquet",), text_column="large"))


def test_a_flipped_bit_is_detected_if_pages_have_checksums(tmp_path):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["spade", "heart"]}), file, compression="none", write_page_checksum=True)
    file.write_bytes(file.read_bytes().replace(b"spade", b"spare", 1))
    with pytest.raises(DataError, match=r"row group 0 is damaged \(.*CRC"):
        texts_of(ParquetShards(str(file)))


def test_a_column_with_a_dot_in_its_name(tmp_path):
    table = pa.table({"body": [{"text": 1}] * 2, "body.text": ["a", "b"], "body.tex": ["c", "d"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert texts_of(ParquetShards(str(tmp_path / "a.parquet"), "body.tex")) == ["c", "d"]


def test_where_may_leave_a_group_empty(folder):
    source = ParquetShards(str(folder / NAMES[0]), where={"parity": 1})
    assert texts_of(source) == [text_of(0, row) for row in (1, 3, 5, 7, 9, 11)]
    source = ParquetShards(str(folder / NAMES[0]), where={"text": text_of(0, 5)})
    assert [texts_of(source, group) for group in source.groups()] == [[], [text_of(0, 5)], [], []]
    with pytest.raises(DataError, match=r"has no row where \{'parity': '2'\}"):
        texts_of(ParquetShards(str(folder / NAMES[0]), where={"parity": 2}))


def test_missing_values_are_errors_or_counted(tmp_path):
    pq.write_table(pa.table({"text": ["a", "b", "c", None, "d"]}), tmp_path / "a.parquet", row_group_size=2)
    source = ParquetShards(str(tmp_path / "a.parquet"))
    with pytest.raises(DataError, match=r"a\.parquet, row group 1, row 2: 'text' has no value"):
        texts_of(source)
    reading = Reading("skip")
    assert [list(source.read_group(group, reading)) for group in source.groups()] == [["a", "b"], ["c"], ["d"]]
    assert reading.num_skipped == 1


def test_a_changed_shard_is_detected(server, folder):
    source = over_http(server)
    groups = source.groups()
    texts_of(source, groups[0])
    for name in NAMES[:2]:
        write_shard(folder / name, 7, start=100)
    # In a process that opens the shard anew, in one that had it open, and in one that never indexed.
    for reader, group in ((source, groups[4]), (source, groups[3]), (over_http(server), groups[0])):
        with pytest.raises(
            DataError, match=r"a/[01]\.parquet has changed since it was indexed\. Run framework\.prepare"
        ):
            texts_of(reader, group)
    assert texts_of(source, groups[9]) == texts_of_shard(2)[4:7]


def test_fingerprints_depend_on_content_and_not_on_the_location(server, folder, bucket):
    local = ParquetShards(str(folder / "*" / "*.parquet")).fingerprint()
    signed = ParquetShards([f"{server.url(name)}?signature={name}" for name in NAMES])
    assert local == signed.fingerprint() == ParquetShards(f"{bucket}/*/*.parquet").fingerprint()
    assert local != ParquetShards([str(folder / name) for name in reversed(NAMES)]).fingerprint()
    assert local != ParquetShards(str(folder / "a" / "*.parquet")).fingerprint()
    # Other texts of the same lengths differ in the statistics.
    write_shard(folder / NAMES[2], 7, compression="none")
    assert local != ParquetShards(str(folder / "*" / "*.parquet")).fingerprint()


def damaged_in_the_middle(content: bytes) -> bytes:
    return content[:4] + bytes(len(content) - 2**16 - 4) + content[-(2**16) :]


FAULTS = [
    (lambda content: content[: len(content) // 2], r"does not end like a Parquet file\. It is truncated"),
    (lambda content: b"", r"does not end like a Parquet file"),
    (lambda content: b"PAR1", r"does not end like a Parquet file"),
    (lambda content: b"<html>not found</html>", r"does not end like a Parquet file"),
    (lambda content: content[-40:-8] + (32).to_bytes(4, "little") + b"PAR1", r"footer, is damaged"),
    (lambda content: content[:-1] + b"2", r"does not end like a Parquet file"),
    (damaged_in_the_middle, r"row group 0 is damaged"),
]


@pytest.mark.parametrize(("damage", "match"), FAULTS, ids=[match for _, match in FAULTS])
def test_damaged_shards(folder, damage, match):
    file = folder / NAMES[1]
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=rf"a/1\.parquet.*{match}.*again"):
        texts_of(ParquetShards(str(folder / "a" / "*.parquet")))


def test_shards_with_another_schema_are_detected_before_reading(folder):
    pq.write_table(pa.table({"body": ["a"]}), folder / "b" / "3.parquet")
    with pytest.raises(DataError, match=r"3\.parquet, schema: no column 'text' among \['body'\]"):
        ParquetShards(str(folder / "b" / "*.parquet")).groups()
    with pytest.raises(DataError, match=r"2\.parquet: column 'nested' is of type list.*must hold text or numbers"):
        ParquetShards(str(folder / NAMES[2]), text_column="nested").groups()
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), folder / "empty.parquet")
    with pytest.raises(DataError, match=r"empty\.parquet: no shard has rows"):
        ParquetShards(str(folder / "empty.parquet")).groups()


def test_errors_of_settings(folder):
    with pytest.raises(ConfigError, match=r"retries is -1\. It must be at least 0"):
        ParquetShards("a.parquet", retries=-1)
    with pytest.raises(ConfigError, match=r"timeout_seconds is 0\. It must be above 0"):
        ParquetShards("a.parquet", timeout_seconds=0)
    with pytest.raises(ConfigError, match=r"nope://a/b cannot be opened \(Protocol not known: nope\)"):
        ParquetShards("nope://a/b").groups()
    with pytest.raises(DataError, match=r"cannot be read \(TypeError: .*'colour'.*storage_options"):
        ParquetShards("http://127.0.0.1:9/a", storage_options={"colour": "secret"}).groups()
    assert "secret" not in repr(ParquetShards("a", storage_options={"key": "secret"}))
