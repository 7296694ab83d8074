"""Checkpoints behind a URL: no rename, COMPLETE is the only commit, everything else as on disk."""

import hashlib
import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from framework.checkpoint.integrity import verify
from framework.checkpoint.layout import complete_checkpoints, mark_damaged, newest_complete
from framework.checkpoint.load import load_checkpoint, load_newest_intact, read_full_state
from framework.checkpoint.retention import Retention
from framework.checkpoint.save import SaveError
from framework.checkpoint.storage import RemotePath, location
from framework.errors import CheckpointError, ConfigError
from tests.support.files.no_rename import NoRenameFileSystem
from tests.support.models.loading import save_checkpoint
from tests.support.models.tiny import build
from tests.support.processes.workers import WorkerPool

Curve = list[tuple[float, float]]
FILES = {"COMPLETE", "state.json", ".metadata", "__0_0.distcp"}


def names(folder: Any) -> set[str]:
    return {path.name for path in folder.iterdir()}


def save(url: str, *steps: int, strategy: str = "single") -> Curve:
    """Trains to the last step and one further, saving at each of these; returns the step after the last save."""
    tiny = build(strategy)
    for step in range(steps[-1] + 1):
        if step in steps:
            save_checkpoint(location(url), step, tiny.model, tiny.optimizer, {"tokens": step})
        curve = [tiny.step(step)]
    return curve


def load_newest(url: str) -> Curve:
    """Loads the newest intact checkpoint over other initial weights, and makes one step."""
    tiny = build("single", seed=99)
    newest = newest_complete(location(url))
    assert newest is not None
    loaded = load_newest_intact(newest, lambda folder: load_checkpoint(folder, tiny.model, tiny.optimizer, "checksums"))
    return [tiny.step(loaded.state["step"])]


@pytest.fixture
def memory() -> Iterator[str]:
    """URL of a folder in the memory of this process."""
    yield "memory://cloze/run"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def url(tmp_path: Path) -> str:
    """URL of a folder that exists only through the files in it, as in an object store."""
    return f"norename://{tmp_path}/run"


@contextmanager
def broken(name: str, value: Any) -> Iterator[None]:
    before = getattr(NoRenameFileSystem, name)
    setattr(NoRenameFileSystem, name, value)
    try:
        yield
    finally:
        setattr(NoRenameFileSystem, name, before)


def test_saving_to_memory_and_loading_from_it(memory: str) -> None:
    expected = save(memory, 1)
    folder = location(memory) / "step_00000001"
    assert names(location(memory)) == {"step_00000001"}, "nothing was written elsewhere"
    assert names(folder) == FILES
    stored = {name: MemoryFileSystem.store[f"/cloze/run/step_00000001/{name}"].getvalue() for name in FILES}
    assert json.loads(stored.pop("COMPLETE")) == {
        "file_sizes_bytes": {name: len(content) for name, content in stored.items()},
        "blake2b": {name: hashlib.blake2b(content, digest_size=16).hexdigest() for name, content in stored.items()},
    }
    assert load_newest(memory) == expected
    assert read_full_state(folder).keys() == {name for name, _ in build("single").model.named_parameters()}


def test_two_ranks_save_and_one_loads(workers: WorkerPool, tmp_path: Path, url: str) -> None:
    expected = workers.run(save_sharded, 2, url)[0]
    assert names(tmp_path / "run" / "step_00000001") == FILES | {"__1_0.distcp"}
    verify(tmp_path / "run" / "step_00000001", "checksums")
    (actual,) = load_newest(url)
    assert actual == pytest.approx(expected[0], rel=1e-5)


def save_sharded(url: str) -> Curve:
    return save(url, 1, strategy="fsdp2")


def test_an_incomplete_checkpoint_is_ignored_and_deleted_before_its_step_is_written_again(
    tmp_path: Path, url: str
) -> None:
    save(url, 1, 2)
    cut = tmp_path / "run" / "step_00000002"
    (cut / "COMPLETE").unlink()
    (cut / "__7_0.distcp").write_bytes(b"of a larger world")
    assert newest_complete(location(url)) == location(url) / "step_00000001"
    expected = save(f"{url}_of_another", 2)
    tiny = build("single")
    for step in range(2):
        tiny.step(step)
    save_checkpoint(location(url), 2, tiny.model, tiny.optimizer, {})
    assert names(cut) == FILES
    assert load_newest(url) == expected


def test_a_complete_checkpoint_is_never_overwritten(tmp_path: Path, url: str) -> None:
    save(url, 1)
    files = {path: path.read_bytes() for path in (tmp_path / "run" / "step_00000001").iterdir()}
    with pytest.raises(CheckpointError, match="never overwritten"):
        save(url, 1)
    with broken("unreachable", True), pytest.raises(SaveError, match="no answer"):
        save(url, 1)
    assert {path: path.read_bytes() for path in (tmp_path / "run" / "step_00000001").iterdir()} == files


def test_old_checkpoints_and_leftovers_are_deleted(tmp_path: Path, url: str) -> None:
    save(url, 1, 2, 3, 4)
    (tmp_path / "run" / "step_00000002" / "COMPLETE").unlink()
    Retention(keep_last=1, keep_every_n_steps=3).prune(location(url))
    assert names(tmp_path / "run") == {"step_00000003", "step_00000004"}


def test_the_previous_checkpoint_is_used_if_one_is_damaged(tmp_path: Path, url: str) -> None:
    expected = save(f"{url}_of_another", 1)
    save(url, 1, 2)
    shard = tmp_path / "run" / "step_00000002" / "__0_0.distcp"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert load_newest(url) == expected
    complete = (shard.parent / "COMPLETE").read_bytes()
    mark_damaged(location(url) / "step_00000002")
    assert [path.name for path in complete_checkpoints(location(url))] == ["step_00000001"]
    assert (shard.parent / "DAMAGED").read_bytes() == complete
    save(url, 2)
    assert names(shard.parent) == FILES
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"{url}/step_00000002/__0_0\.distcp has \d+ bytes, but"):
        verify(location(url) / "step_00000002")


def test_an_index_cannot_run_code(tmp_path: Path, url: str) -> None:
    save(url, 1)
    index = tmp_path / "run" / "step_00000001" / ".metadata"
    index.write_bytes(pickle.dumps(Path(tmp_path)))
    (index.parent / "COMPLETE").write_text(json.dumps({"file_sizes_bytes": {".metadata": index.stat().st_size}}))
    with pytest.raises(CheckpointError, match="do not trust"):
        read_full_state(location(url) / "step_00000001")


def save_where_it_is_full(url: str, full_at: str) -> str:
    tiny = build("fsdp2")
    save_checkpoint(location(url), 1, tiny.model, tiny.optimizer, {})
    with broken("full_at", f"step_00000002/{full_at}"):
        try:
            save_checkpoint(location(url), 2, tiny.model, tiny.optimizer, {})
        except SaveError as error:
            return str(error)
    return "nothing was raised"


@pytest.mark.parametrize(
    ("full_at", "rank"), [("__1_0.distcp", 1), (".metadata", 0), ("state.json", 0), ("COMPLETE", 0)]
)
def test_a_rejected_write_is_one_error_on_all_ranks(
    workers: WorkerPool, tmp_path: Path, url: str, full_at: str, rank: int
) -> None:
    first, second = workers.run(save_where_it_is_full, 2, url, full_at)
    assert first == second
    assert f"{url}/step_00000002 could not be written: the disk refused rank {rank}" in first
    assert "No space left on device" in first
    assert names(tmp_path / "run") == {"step_00000001"}
    verify(tmp_path / "run" / "step_00000001", "checksums")


def test_files_written_by_others_are_visible(url: str) -> None:
    """A file system may answer from a cache."""
    save(url, 1)
    other, path = fsspec.core.url_to_fs(url, skip_instance_cache=True)
    assert names(location(url)) == {"step_00000001"}
    other.makedirs(f"{path}/step_00000002")
    other.touch(f"{path}/step_00000002/COMPLETE")
    assert names(location(url)) == {"step_00000001", "step_00000002"}


@pytest.mark.parametrize("text", ["/data/ckpt", "file:///data/ckpt", "file:///data/ckpt/", "local:///data/ckpt"])
def test_local_folders_are_paths(text: str) -> None:
    assert location(text) == Path("/data/ckpt")


def test_relative_folders_and_names_are_paths() -> None:
    assert [location(text) for text in ("auto", "../runs/a")] == [Path("auto"), Path("../runs/a")]


def test_a_url_has_the_names_of_a_path() -> None:
    folder = location("memory://bucket/some folder//")
    assert folder == RemotePath("memory://bucket/some folder")
    assert (folder.name, str(folder.parent), str(folder / "a")) == (
        "some folder",
        "memory://bucket",
        "memory://bucket/some folder/a",
    )
    assert pickle.loads(pickle.dumps(folder)) == folder


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nosuch://bucket", r"nosuch://bucket cannot be used for checkpoints \(Protocol not known: nosuch\)\. Choose"),
        ("s3://bucket/x", r"s3://bucket/x needs a package that is not installed \(Install s3fs .*\)\. Install it"),
        ("memory://", r"it is not PROTOCOL://FOLDER"),
        ("simplecache::memory://x", r"it is not PROTOCOL://FOLDER"),
        ("memory://me:s3cret@host/x", r"memory://\*\*\*@host/x was given with a password .* environment variables"),
        ("memory://host/x?sig=s3cret", r"memory://host/x was given with a password or a query"),
        ("nosuch://me:s3cret@host/x", r"nosuch://\*\*\*@host/x was given with a password"),
    ],
)
def test_an_unusable_url_is_one_clear_error(url: str, words: str) -> None:
    if url.startswith("s3"):
        try:
            fsspec.get_filesystem_class("s3")
        except ImportError:
            pass
        else:
            pytest.skip("s3fs is installed")
    with pytest.raises(ConfigError, match=words) as caught:
        location(url)
    assert "s3cret" not in str(caught.value)
