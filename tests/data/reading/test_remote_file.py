"""Shards on a web server with all kinds of failures."""

import gc
import multiprocessing

import pytest

from framework.data.reading import remote_file
from framework.data.reading.shards import ParquetShards
from framework.errors import DataError
from tests.support.data.shard_files import NAMES, TEXTS, over_http, texts_of, texts_of_shard

pytestmark = pytest.mark.usefixtures("waits")


def test_a_large_range_is_several_requests(server, monkeypatch):
    source = over_http(server, NAMES[:1])
    group = source.groups()[0]
    assert texts_of(source, group) == texts_of_shard(0)[:4]
    monkeypatch.setattr(remote_file, "PIECE_BYTES", 20)
    server.reset(cut_every=3)
    assert texts_of(source, group) == texts_of_shard(0)[:4]
    needed = -(-group.num_bytes // 20)
    # Every third request is lost, and only its part is requested again.
    assert needed > 2 and needed < len(server.gets()) <= needed + -(-needed // 2)


@pytest.mark.parametrize("every", [2, 3])
def test_connections_cut_in_the_body_change_nothing(server, waits, every):
    server.reset(cut_every=every)
    source = over_http(server)
    assert texts_of(source) == TEXTS
    needed = 3 + 3 + 3 * 3  # footers for the index, footers at opening, the chunks of groups that have rows
    assert needed < len(server.gets()) <= needed * every / (every - 1) + 3
    assert len(waits) == len(server.gets()) - needed
    assert set(waits) <= {0.5, 1.0, 2.0}


def test_waits_grow_and_end_with_an_error_with_a_remedy(server, waits):
    source = over_http(server, retries=8)
    group = source.groups()[0]
    texts_of(source, group)
    server.reset(unavailable=frozenset(range(1, 100)))
    with pytest.raises(
        DataError, match=r"0\.parquet: reading bytes \d+ to \d+ failed 9 times.*server answered 503\. .*`retries`"
    ):
        texts_of(source, group)
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert len(server.gets()) == 9 + 1  # and once for the footer: the reason might be that the shard has changed
    # Request for the size: fsspec itself falls back from HEAD to GET.
    server.reset(statuses={NAMES[0]: 503})
    with pytest.raises(DataError, match=r"requesting the size failed 3 times.*answered 503"):
        over_http(server, retries=2).groups()
    assert len(server.requests) == 6


@pytest.mark.parametrize("fault", ["unavailable", "short"])
def test_a_server_that_recovers(server, waits, fault):
    server.reset(**{fault: frozenset({1, 2, 5})})
    assert texts_of(over_http(server, NAMES[:1])) == texts_of_shard(0)
    assert waits == [0.5, 1.0, 0.5]


@pytest.mark.parametrize(("status", "match"), [(404, "answered 404"), (403, "answered 403")])
def test_denied_files_are_errors_immediately(server, waits, status, match):
    server.reset(statuses={NAMES[1]: status})
    with pytest.raises(DataError, match=rf"a/1\.parquet cannot be read \(.*{match}\)\. Correct the path or URL"):
        over_http(server).groups()
    assert waits == []


def test_a_file_that_disappears_is_an_error_immediately(server, folder, waits):
    source = over_http(server, NAMES[:1])
    texts_of(source, source.groups()[0])
    (folder / NAMES[0]).unlink()
    with pytest.raises(DataError, match=r"0\.parquet cannot be read"):
        texts_of(source, source.groups()[1])
    assert waits == []


def test_a_timeout_is_tried_again(server, waits):
    source = over_http(server, NAMES[:1], timeout_seconds=0.25, retries=1)
    group = source.groups()[0]
    server.reset(hang=frozenset({2}))
    assert texts_of(source, group) == texts_of_shard(0)[:4]
    assert waits == [0.5]
    server.reset(hang=frozenset({1, 2}))
    with pytest.raises(DataError, match=r"failed 2 times.*no complete response within 0\.25 s"):
        texts_of(source, group)


def test_a_server_without_ranges_is_an_error(server, waits):
    server.reset(ignore_range=True)
    with pytest.raises(
        DataError, match=r"0\.parquet: 65536 bytes were requested and \d+ arrived\. .*ignores byte ranges"
    ):
        over_http(server).groups()
    assert (waits, len(server.gets())) == ([], 1)


def test_a_server_that_does_not_exist(waits):
    source = ParquetShards("http://127.0.0.1:9/a.parquet?token=secret", retries=2)
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/a\.parquet: .* failed 3 times") as caught:
        source.groups()
    assert "secret" not in str(caught.value)


def test_a_forked_process_and_its_parent_can_both_continue(server):
    source = over_http(server, timeout_seconds=5.0, retries=0)
    group, other = source.groups()[0], source.groups()[5]
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        gc.collect()  # objects that fsspec dropped after the fork are finalized now
        sender.send((texts_of(source, group), texts_of(source, other)))

    texts_of(source, group)
    process = context.Process(target=child)
    process.start()
    assert receiver.poll(20)
    assert receiver.recv() == (texts_of_shard(0)[:4], texts_of_shard(1)[4:7])
    # Without a spare attempt: the child must not have disturbed the parent's connections.
    assert texts_of(source, other) == texts_of_shard(1)[4:7]
    process.join(20)
    assert process.exitcode == 0
