"""Readers of checkpoints: damaged bytes are detected, and a running training costs no reader its result."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from framework.checkpoint import layout, load
from framework.checkpoint.layout import newest_complete, remove
from framework.checkpoint.load import load_newest_intact, read_full_state
from framework.errors import CheckpointError
from tests.support.models.loading import save_checkpoint
from tests.support.models.tiny import Tiny, build, full_parameters


@pytest.fixture
def tiny() -> Tiny:
    return build("single")


def step_and_save(tiny: Tiny, folder: Path, step: int) -> Path:
    tiny.step(step)
    return save_checkpoint(folder, step, tiny.model, tiny.optimizer, {})


def flip_a_bit(shard: Path) -> None:
    """Flips the highest bit of an exponent in the middle: a weight of 0.1 becomes one of 1e37."""
    content = bytearray(shard.read_bytes())
    content[len(content) // 2 | 3] ^= 0x40
    shard.write_bytes(content)


@pytest.mark.parametrize("damage", ["a flipped bit", "the shard of another step"])
def test_a_reader_compares_the_checksum_of_its_files(damage: str, tiny: Tiny, tmp_path: Path):
    step_and_save(tiny, tmp_path, 1)
    expected = {name: value.clone() for name, value in full_parameters(tiny.model).items()}
    newest = step_and_save(tiny, tmp_path, 2)
    shard, before = newest / "__0_0.distcp", tmp_path / "step_00000001" / "__0_0.distcp"
    if damage == "a flipped bit":
        flip_a_bit(shard)
    else:
        assert shard.stat().st_size == before.stat().st_size
        shard.write_bytes(before.read_bytes())
    loaded = load_newest_intact(newest, read_full_state)
    assert loaded.folder.name == "step_00000001"
    assert (
        loaded.damage_message is not None and "__0_0.distcp has changed since it was written" in loaded.damage_message
    )
    assert all(torch.equal(loaded.state[name], value) for name, value in expected.items())


class Training:
    """Writes the next checkpoint and removes the previous one whenever a reader has begun to read."""

    def __init__(self, tiny: Tiny, folder: Path, meetings: int) -> None:
        self.tiny, self.folder, self.meetings = tiny, folder, meetings
        self.step = 1
        step_and_save(tiny, folder, 1)

    def go_on(self) -> None:
        if self.meetings:
            self.meetings -= 1
            step_and_save(self.tiny, self.folder, self.step + 1)
            remove(self.folder / f"step_{self.step:08d}")
            self.step += 1

    def read(self, read: Callable[[Path], object]) -> Callable[[Path], object]:
        def begin(folder: Path) -> object:
            self.go_on()
            return read(folder)

        return begin


@pytest.mark.parametrize("meetings", [0, 1, 5])
def test_a_reader_gets_the_newest_checkpoint_while_training_keeps_only_one(meetings: int, tiny, tmp_path: Path):
    training = Training(tiny, tmp_path, meetings)
    newest = newest_complete(tmp_path)
    assert newest is not None
    loaded = load_newest_intact(newest, training.read(read_full_state))
    assert loaded.folder.name == f"step_{1 + meetings:08d}" and loaded.damage_message is None
    for name, value in full_parameters(tiny.model).items():
        assert torch.equal(loaded.state[name], value), name


def test_a_reader_that_is_always_too_late_reports_the_reason(tiny, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(load, "_MOST_REMOVED", 2)
    training = Training(tiny, tmp_path, meetings=99)
    with pytest.raises(CheckpointError, match=r"removed 3 checkpoints while they were read.*trainer\.keep_last"):
        load_newest_intact(tmp_path / "step_00000001", training.read(read_full_state))


def test_a_checkpoint_that_is_replaced_during_the_listing_is_not_missed(tiny, tmp_path: Path, monkeypatch):
    training = Training(tiny, tmp_path, meetings=1)
    listing = Path.iterdir

    def slow(folder: Path):
        entries = list(listing(folder))
        if folder == tmp_path and training.meetings:
            training.go_on()
        return iter(entries)

    monkeypatch.setattr(Path, "iterdir", slow)
    newest = layout.newest_complete(tmp_path)
    assert newest is not None and newest.name == "step_00000002"
