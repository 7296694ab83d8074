"""Fallback from a damaged checkpoint to the previous one, alike on all ranks."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from framework.checkpoint.integrity import Verify
from framework.checkpoint.load import Loaded, load_checkpoint, load_newest_intact
from framework.errors import CheckpointError
from framework.optim.combined import CombinedOptimizer
from tests.support.models.loading import save_checkpoint
from tests.support.models.tiny import Tiny, build, full, full_parameters
from tests.support.processes.workers import WorkerPool


def load_newest_whole(newest: Path, model: nn.Module, optimizer: CombinedOptimizer, how: Verify = "sizes") -> Loaded:
    return load_newest_intact(newest, lambda folder: load_checkpoint(folder, model, optimizer, how))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    """Flips one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {"truncate": truncate, "flip": flip, "delete": Path.unlink}


def values(tiny: Tiny) -> dict[str, Tensor]:
    """Returns the full tensors of model and optimizer."""
    state = {name: full(value).clone() for name, value in tiny.optimizer.named_state().items()}
    return {name: value.clone() for name, value in full_parameters(tiny.model).items()} | state


def on_first(action: Callable[[], object]) -> None:
    """Runs an action on rank 0 while the others wait."""
    if not dist.is_initialized() or dist.get_rank() == 0:
        action()
    if dist.is_initialized():
        dist.barrier()


Outcome = tuple[str, list[tuple[str, str]], bool, int]


def damage_and_load(strategy: str, folder: str, how: Verify) -> dict[tuple[str, str], Outcome]:
    """Writes two checkpoints, damages each file of the newer one in each way, and loads a fresh model each time."""
    checkpoints, tiny = Path(folder), build(strategy)
    tiny.step(0)
    save_checkpoint(checkpoints, 1, tiny.model, tiny.optimizer, {})
    before = values(tiny)
    tiny.step(1)
    newest = save_checkpoint(checkpoints, 2, tiny.model, tiny.optimizer, {})
    pristine = checkpoints / "pristine"
    on_first(lambda: shutil.copytree(newest, pristine))
    outcomes = {}
    other = build(strategy, seed=99)
    other.step(0)
    for name in sorted(path.name for path in pristine.iterdir()):
        for kind, damage in DAMAGES.items():
            on_first(lambda path=newest / name, damage=damage: damage(path))
            loaded = load_newest_whole(newest, other.model, other.optimizer, how)
            actual = values(other)
            same = actual.keys() == before.keys() and all(torch.equal(actual[key], before[key]) for key in before)
            bad = [(path.name, reason) for path, reason in loaded.damaged.items()]
            outcomes[name, kind] = (loaded.folder.name, bad, same, loaded.state["step"])
            on_first(lambda: (shutil.rmtree(newest), shutil.copytree(pristine, newest)))
    return outcomes


def check(outcomes: dict[tuple[str, str], Outcome], num_ranks: int) -> None:
    shards = [f"__{rank}_0.distcp" for rank in range(num_ranks)]
    assert len(outcomes) == 3 * (3 + num_ranks)
    assert {name for name, _ in outcomes} == {*shards, ".metadata", "state.json", "COMPLETE"}
    for (name, kind), (used, damaged, same, step) in outcomes.items():
        assert (used, same, step) == ("step_00000001", True, 1), (name, kind)
        ((folder, reason),) = damaged
        assert folder == "step_00000002"
        if name != "COMPLETE":
            expected = {"truncate": "bytes were written", "flip": "has changed", "delete": "is missing"}[kind]
            assert f"/{name} " in reason and expected in reason


def test_each_kind_of_damage_on_one_rank(tmp_path: Path) -> None:
    check(damage_and_load("single", str(tmp_path), "checksums"), 1)


def test_each_kind_of_damage_on_two_ranks(workers: WorkerPool, tmp_path: Path) -> None:
    first, second = workers.run(damage_and_load, 2, "fsdp2", str(tmp_path), "checksums")
    check(first, 2)
    assert first == second, "both ranks must use the same checkpoint for the same reason"


def test_a_shard_that_torch_cannot_read_counts_as_damaged(tmp_path: Path) -> None:
    """The shard's archive directory is missing. Sizes do not show this, and checksums are not requested."""
    tiny = build("single")
    for step in (1, 2):
        save_checkpoint(tmp_path, step, tiny.model, tiny.optimizer, {})
    shard = tmp_path / "step_00000002" / "__0_0.distcp"
    shard.write_bytes(b"\0" * shard.stat().st_size)
    loaded = load_newest_whole(tmp_path / "step_00000002", tiny.model, tiny.optimizer)
    assert loaded.folder.name == "step_00000001"
    assert "could not be read by rank 0" in loaded.damaged[tmp_path / "step_00000002"]


def load_what_one_rank_cannot_see(folder: str) -> tuple[str, list[str]]:
    """Removes a file of the newest checkpoint from rank 1's view only."""
    tiny = build("ddp")
    for step in (1, 2):
        save_checkpoint(Path(folder), step, tiny.model, tiny.optimizer, {})
    newest = Path(folder) / "step_00000002"
    if dist.get_rank() == 1:
        newest = Path(folder) / "rank1" / "step_00000002"
        shutil.copytree(Path(folder) / "step_00000002", newest)
        shutil.copytree(Path(folder) / "step_00000001", newest.parent / "step_00000001")
        (newest / "COMPLETE").unlink()
    loaded = load_newest_whole(newest, tiny.model, tiny.optimizer)
    return loaded.folder.name, list(loaded.damaged.values())


def test_damage_that_only_one_rank_sees_counts_for_all(workers: WorkerPool, tmp_path: Path) -> None:
    first, second = workers.run(load_what_one_rank_cannot_see, 2, str(tmp_path))
    assert first == second
    assert first[0] == "step_00000001"
    assert "rank1/step_00000002 has no file COMPLETE" in first[1][0]


def test_without_an_intact_checkpoint_one_error_names_each(tmp_path: Path) -> None:
    tiny = build("single")
    for step in (1, 2, 3):
        truncate(save_checkpoint(tmp_path, step, tiny.model, tiny.optimizer, {}) / "__0_0.distcp")
    with pytest.raises(CheckpointError) as caught:
        load_newest_whole(tmp_path / "step_00000003", tiny.model, tiny.optimizer)
    message = str(caught.value)
    assert message.startswith(f"No checkpoint in {tmp_path} is intact (step_00000003: ")
    assert message.index("step_00000003:") < message.index("step_00000002:") < message.index("step_00000001:")


def test_another_model_is_not_damage(tmp_path: Path) -> None:
    """The older checkpoint would not fit either, and must not hide the mistake."""
    tiny = build("single")
    for step in (1, 2):
        save_checkpoint(tmp_path, step, tiny.model, tiny.optimizer, {})
    other = build("single", modern=True)
    with pytest.raises(CheckpointError, match=r"step_00000002 (lacks|holds)"):
        load_newest_whole(tmp_path / "step_00000002", other.model, other.optimizer)
