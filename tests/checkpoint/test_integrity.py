"""The record in COMPLETE, and the comparisons with it."""

import hashlib
import json
from pathlib import Path

import pytest

from framework.checkpoint.hashing import HashingFileSystem
from framework.checkpoint.integrity import mark_complete, verify
from framework.checkpoint.layout import DamagedError
from tests.support.models.loading import save_checkpoint
from tests.support.models.tiny import build
from tests.support.processes.workers import WorkerPool


def blake2b(path: Path) -> str:
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def save_one(folder: str) -> None:
    tiny = build("fsdp2")
    tiny.step(0)
    save_checkpoint(Path(folder), 1, tiny.model, tiny.optimizer, {})


def test_the_record_describes_the_bytes_on_disk(workers: WorkerPool, tmp_path: Path) -> None:
    workers.run(save_one, 2, str(tmp_path))
    folder = tmp_path / "step_00000001"
    names = {"__0_0.distcp", "__1_0.distcp", ".metadata", "state.json"}
    record = json.loads((folder / "COMPLETE").read_text())
    assert record == {
        "file_sizes_bytes": {name: (folder / name).stat().st_size for name in names},
        "blake2b": {name: blake2b(folder / name) for name in names},
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Writes a checkpoint of three files."""
    folder = tmp_path / "step_00000001"
    folder.mkdir()
    for name in ("__0_0.distcp", "__1_0.distcp", "state.json"):
        (folder / name).write_bytes(b"0123456789")
    mark_complete(folder)
    return folder


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_flipped_byte_of_a_shard_is_detected_by_checksums(folder: Path) -> None:
    verify(folder, "checksums")
    flip(folder / "__1_0.distcp")
    verify(folder, "sizes")
    with pytest.raises(DamagedError, match=r"__1_0\.distcp has changed since it was written"):
        verify(folder, "checksums")


def test_a_flipped_byte_of_a_small_file_is_always_detected(folder: Path) -> None:
    flip(folder / "state.json")
    with pytest.raises(DamagedError, match=r"state\.json has changed since it was written"):
        verify(folder, "sizes")


def test_a_flipped_byte_of_the_record_itself_is_detected(folder: Path) -> None:
    record = folder / "COMPLETE"
    content = record.read_bytes()
    quiet = []
    for position in range(len(content)):
        record.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        try:
            verify(folder, "checksums")
        except DamagedError:
            continue
        quiet.append(chr(content[position]))
    assert "".join(quiet) == "blake2b", "without this name it is a record of an older version"


def test_every_file_is_checked_by_one_rank(folder: Path) -> None:
    for name in ("__0_0.distcp", "__1_0.distcp", "state.json"):
        before = (folder / name).read_bytes()
        flip(folder / name)
        ranks = []
        for rank in range(2):
            try:
                verify(folder, "checksums", rank, num_ranks=2)
            except DamagedError:
                ranks.append(rank)
        assert len(ranks) == 1, name
        (folder / name).write_bytes(before)


def test_only_sizes_are_compared_in_checkpoints_of_older_versions(folder: Path) -> None:
    sizes = dict.fromkeys(("__0_0.distcp", "__1_0.distcp", "state.json"), 10)
    (folder / "COMPLETE").write_text(json.dumps({"file_sizes_bytes": sizes}))
    verify(folder, "checksums")
    (folder / "__0_0.distcp").write_bytes(b"012345678")
    with pytest.raises(DamagedError, match=r"__0_0\.distcp has 9 bytes, but 10 bytes were written"):
        verify(folder, "checksums")


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"file_sizes_bytes": {}}', '{"file_sizes_bytes": {"a": 1}, "blake2b": 3}']
)
def test_an_empty_record_is_rejected(folder: Path, content: str) -> None:
    (folder / "COMPLETE").write_text(content)
    with pytest.raises(DamagedError, match=r"COMPLETE (does not|cannot be read as JSON)"):
        verify(folder)


def test_the_error_of_the_disk_is_passed_on(tmp_path: Path) -> None:
    """After a failed write, the error of torch's zip writer does not mention the disk."""

    def write_and_stumble() -> None:
        with HashingFileSystem().create_stream(Path("/dev/full"), "wb") as stream:
            try:
                stream.write(b"0" * 100_000)
            finally:
                raise RuntimeError("unexpected pos 64 vs 0")

    with pytest.raises(OSError, match="No space left on device"):
        write_and_stumble()
