"""Fixtures for tests of shards."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.data.reading import remote_file
from tests.support.data.range_server import RangeServer
from tests.support.data.shard_files import NAMES, write_shard


@pytest.fixture
def folder(tmp_path) -> Path:
    for shard, name in enumerate(NAMES):
        write_shard(tmp_path / name, shard, compression="none")
    return tmp_path


@pytest.fixture
def server(folder) -> Iterator[RangeServer]:
    with RangeServer(folder) as opened:
        yield opened


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """Records the seconds of waits, without waiting."""
    seconds: list[float] = []
    monkeypatch.setattr(remote_file, "sleep", seconds.append)
    return seconds
