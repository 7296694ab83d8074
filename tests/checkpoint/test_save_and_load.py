"""Checkpoints written under one strategy and world size, resumed under another."""

import json
import math
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from framework.checkpoint.integrity import verify
from framework.checkpoint.layout import newest_complete
from framework.checkpoint.load import load_checkpoint, read_full_state
from framework.checkpoint.tensors import IndexWriter, ignore_single_process_warning, read_index
from framework.errors import CheckpointError
from framework.optim.parameter_groups import AdamW, Lamb, Muon, OptimizerSettings, StableAdamW
from tests.support.models.loading import save_checkpoint
from tests.support.models.tiny import Tiny, build, full, full_parameters
from tests.support.processes.workers import WorkerPool

Curve = list[tuple[float, float]]


OPTIMIZERS: dict[str, OptimizerSettings] = {
    "adamw": AdamW(lr=2e-3),
    "stable_adamw": StableAdamW(lr=2e-3),
    "lamb": Lamb(lr=1e-2),
    "muon": Muon(adamw=AdamW(lr=2e-3), lr=1e-2),
    "muon_layer_decay": Muon(adamw=AdamW(lr=2e-3, layer_decay=0.8), lr=1e-2),
}


def build_with(strategy: str, optimizer: str, seed: int = 3) -> Tiny:
    """Builds a tiny run with one of the optimizers and an average of the weights."""
    tiny = build(strategy, seed=seed)
    row_parts = {"*.attention.qkv.weight": (4, 3)}
    tiny.optimizer = OPTIMIZERS[optimizer].build(tiny.model.named_parameters(), row_parts, torch.float32)
    tiny.optimizer.keep_average(0.9)
    return tiny


def everything(tiny: Tiny) -> dict[str, Tensor]:
    """Returns the full weights and optimizer state. Collective."""
    state = {name: full(value) for name, value in tiny.optimizer.named_state().items()}
    return full_parameters(tiny.model) | state


def run_and_save(strategy: str, optimizer: str, folder: str) -> tuple[Curve, dict[str, Tensor]]:
    """Makes two steps, a validation, a checkpoint and two more steps; returns these two and the final state."""
    tiny = build_with(strategy, optimizer)
    for step in range(2):
        tiny.step(step)
    tiny.evaluate(2)
    save_checkpoint(Path(folder), 2, tiny.model, tiny.optimizer, {"tokens": 77})
    return [tiny.step(step) for step in range(2, 4)], everything(tiny)


def load_and_run(strategy: str, optimizer: str, folder: str) -> tuple[Curve, dict[str, Tensor]]:
    """Loads the checkpoint over other initial weights and makes two steps."""
    tiny = build_with(strategy, optimizer, seed=99)
    newest = newest_complete(Path(folder))
    assert newest is not None
    assert load_checkpoint(newest, tiny.model, tiny.optimizer) == {"format": 1, "step": 2, "tokens": 77}
    return [tiny.step(step) for step in range(2, 4)], everything(tiny)


def save_and_gather(strategy: str, folder: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    tiny = build(strategy, muon=True)
    tiny.step(0)
    save_checkpoint(Path(folder), 1, tiny.model, tiny.optimizer, {})
    return full_parameters(tiny.model), {name: full(value) for name, value in tiny.optimizer.named_state().items()}


def run(workers: WorkerPool, function: Any, strategy: str, world_size: int, *args: Any) -> Any:
    """Runs on worker ranks, or in this process if there is a single one."""
    return function(strategy, *args) if strategy == "single" else workers.run(function, world_size, strategy, *args)[0]


def assert_goes_on(
    workers: WorkerPool, folder: Path, optimizer: str, written: tuple[str, int], continued: tuple[tuple[str, int], ...]
) -> None:
    """Compares two steps after a checkpoint with uninterrupted ones: bit for bit as written, else up to rounding."""
    expected, end = run(workers, run_and_save, *written, optimizer, str(folder))
    actual, found_end = run(workers, load_and_run, *written, optimizer, str(folder))
    assert actual == expected
    assert found_end.keys() == end.keys()
    assert all(torch.equal(found_end[name], end[name]) for name in end)
    for strategy, world_size in continued:
        actual, found_end = run(workers, load_and_run, strategy, world_size, optimizer, str(folder))
        torch.testing.assert_close(torch.tensor(actual), torch.tensor(expected), rtol=1e-5, atol=0)
        for name, value in end.items():
            error = (found_end[name] - value).norm() / value.norm().clamp(min=1e-30)
            assert error < 1e-4, f"{name} at {strategy} {world_size}: {error}"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_resumes_at_any_world_size_and_strategy(workers: WorkerPool, tmp_path: Path, optimizer: str) -> None:
    others = (("single", 1), ("fsdp2", 4), ("fsdp2", 3), ("ddp", 2), ("hsdp", 4), ("tp", 2), ("fsdp2_tp", 4))
    assert_goes_on(workers, tmp_path, optimizer, ("fsdp2", 2), others)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("written", [("single", 1), ("ddp", 2), ("hsdp", 4), ("tp", 4), ("fsdp2_tp", 4)])
def test_every_strategy_writes_the_same_format(
    workers: WorkerPool, tmp_path: Path, written: tuple[str, int], optimizer: str
) -> None:
    assert_goes_on(workers, tmp_path, optimizer, written, (("fsdp2", 2),))


def test_full_state_needs_no_process_group(workers: WorkerPool, tmp_path: Path) -> None:
    parameters, state = workers.run(save_and_gather, 3, "fsdp2", str(tmp_path))[0]
    assert not dist.is_initialized()
    actual = read_full_state(tmp_path / "step_00000001")
    assert actual.keys() == parameters.keys()
    assert all(torch.equal(actual[name], parameters[name]) for name in parameters)
    keys = read_index(tmp_path / "step_00000001").state_dict_metadata.keys()
    assert keys == {f"model.{name}" for name in parameters} | {f"optimizer.{name}" for name in state}
    assert "model.head.decoder.weight" not in keys, "a tied parameter is written once"


@pytest.mark.parametrize(("strategy", "world_size"), [("ddp", 2), ("hsdp", 4)])
def test_copies_are_written_once(workers: WorkerPool, tmp_path: Path, strategy: str, world_size: int) -> None:
    parameters, state = workers.run(save_and_gather, world_size, strategy, str(tmp_path))[0]
    index = read_index(tmp_path / "step_00000001")
    expected = sum(4 * tensor.numel() for tensor in (*parameters.values(), *state.values()))
    entries = index.state_dict_metadata.values()
    chunks = [chunk.sizes for entry in entries if isinstance(entry, TensorStorageMetadata) for chunk in entry.chunks]
    assert sum(4 * math.prod(sizes) for sizes in chunks) == expected
    assert index.storage_data is not None and len(index.storage_data) == len(chunks)


def save_after_validation(strategy: str, folder: str) -> dict[str, Tensor]:
    tiny = build(strategy, precision="bf16")
    tiny.step(0)
    parameters = full_parameters(tiny.model)
    tiny.evaluate(1)
    save_checkpoint(Path(folder), 1, tiny.model, tiny.optimizer, {})
    return parameters


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_saves_exclude_the_bf16_copies_of_a_validation(workers: WorkerPool, tmp_path: Path, strategy: str) -> None:
    parameters = workers.run(save_after_validation, 2, strategy, str(tmp_path))[0]
    actual = read_full_state(tmp_path / "step_00000001")
    assert {tensor.dtype for tensor in actual.values()} == {torch.float32}
    assert all(torch.equal(actual[name], parameters[name]) for name in parameters)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Writes a checkpoint with a single process."""
    folder = tmp_path_factory.mktemp("checkpoints")
    run_and_save("single", "adamw", str(folder))
    return folder / "step_00000002"


def copy(folder: Path, to: Path) -> Path:
    target = to / folder.name
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def test_files_and_state(written: Path) -> None:
    assert {path.name for path in written.iterdir()} == {"COMPLETE", "state.json", ".metadata", "__0_0.distcp"}
    assert json.loads((written / "state.json").read_text()) == {"format": 1, "step": 2, "tokens": 77}
    assert not list(written.parent.glob("*.tmp"))


def test_a_checkpoint_is_never_overwritten(written: Path) -> None:
    tiny = build("single")
    before = {path.name: path.read_bytes() for path in written.iterdir()}
    with pytest.raises(CheckpointError, match="never overwritten"):
        save_checkpoint(written.parent, 2, tiny.model, tiny.optimizer, {})
    assert before == {path.name: path.read_bytes() for path in written.iterdir()}


def test_the_leftovers_of_a_kill_are_replaced(written: Path, tmp_path: Path) -> None:
    tiny = build("single")
    cut_short = copy(written, tmp_path)
    (cut_short / "COMPLETE").unlink()
    (tmp_path / "step_00000002.tmp").mkdir()
    (tmp_path / "step_00000002.tmp" / "old").touch()
    assert newest_complete(tmp_path) is None
    folder = save_checkpoint(tmp_path, 2, tiny.model, tiny.optimizer, {})
    assert newest_complete(tmp_path) == folder
    assert "tokens" not in json.loads((folder / "state.json").read_text())


def test_damage_is_named(written: Path, tmp_path: Path) -> None:
    tiny = build("single")
    damaged = copy(written, tmp_path)
    shard = damaged / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp has \d+ bytes, but \d+"):
        load_checkpoint(damaged, tiny.model, tiny.optimizer)
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"__0_0\.distcp is missing"):
        read_full_state(damaged)
    (damaged / "COMPLETE").unlink()
    with pytest.raises(CheckpointError, match="COMPLETE"):
        verify(damaged)


def test_another_model_or_optimizer_is_rejected(written: Path) -> None:
    for other, message in (
        (build("single", modern=True), "lacks|holds"),
        (build("single", muon=True), "momentum_buffer"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(written, other.model, other.optimizer)
    tiny = build_with("single", "adamw")
    tiny.model.head.dense.bias = torch.nn.Parameter(torch.zeros(31))
    with pytest.raises(CheckpointError, match=r"model\.head\.dense\.bias is \(32,\) .* and \(31,\)"):
        load_checkpoint(written, tiny.model, tiny.optimizer)


class Attack:
    """Object whose unpickling calls a function that creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.system, (f"touch {self.path}",)


CHANGES_A_CLASS = (
    b"ctorch.distributed.checkpoint.metadata\nMetadata\n(N}S'state_dict_metadata'\nctorch\nSize\nstb."  # BUILD on it
)


def test_index_cannot_change_a_class(written: Path, tmp_path: Path) -> None:
    attacked = copy(written, tmp_path)
    (attacked / ".metadata").write_bytes(CHANGES_A_CLASS)
    rewrite_sizes(attacked)
    with pytest.raises(CheckpointError, match="do not trust"):
        read_full_state(attacked)
    assert "state_dict_metadata" not in vars(Metadata)
    # Python's own unpickler calls it.
    program = (
        f"import pickle; from torch.distributed.checkpoint.metadata import Metadata; pickle.loads({CHANGES_A_CLASS!r})"
        "; assert 'state_dict_metadata' in vars(Metadata)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("where", ["instead", "inside", "getattr"])
def test_index_cannot_run_code(written: Path, tmp_path: Path, where: str) -> None:
    attacked = copy(written, tmp_path)
    trace = tmp_path / "trace"
    index = read_index(attacked)
    if where == "instead":
        payload = pickle.dumps(Attack(trace))
    elif where == "inside":
        index.planner_data = Attack(trace)
        payload = pickle.dumps(index)
    else:
        # A name that exists in torch and gives access to others.
        payload = b"ctorch\nserialization.os.system\n(S'touch " + str(trace).encode() + b"'\ntR."
    (attacked / ".metadata").write_bytes(payload)
    rewrite_sizes(attacked)
    tiny = build("single")
    for read in (lambda: load_checkpoint(attacked, tiny.model, tiny.optimizer), lambda: read_full_state(attacked)):
        with pytest.raises(CheckpointError, match="do not trust"):
            read()
    assert not trace.exists()
    if where == "instead":
        # The attack works: torch's own reader runs the call.
        subprocess.run(
            [sys.executable, "-c", f"import pickle; pickle.load(open({str(attacked / '.metadata')!r}, 'rb'))"],
            check=True,
        )
        assert trace.exists()


def test_shards_cannot_run_code(tmp_path: Path) -> None:
    """Torch would unpickle objects that are not tensors. The check of the index already rejects them."""
    folder = tmp_path / "step_00000001"
    state = {"model.a": torch.zeros(2), "model.b": Attack(tmp_path / "trace")}
    ignore_single_process_warning()
    dcp.save(state, storage_writer=IndexWriter(folder), no_dist=True)
    (folder / "state.json").write_text('{"format": 1, "step": 1}')
    (folder / "COMPLETE").touch()
    rewrite_sizes(folder)
    with pytest.raises(CheckpointError, match=r"model\.b is not a tensor"):
        read_full_state(folder)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("path", ["../other.distcp", "/etc/passwd", "sub/other.distcp", "..", ""])
def test_index_cannot_point_elsewhere(written: Path, tmp_path: Path, path: str) -> None:
    attacked = copy(written, tmp_path)
    index = read_index(attacked)
    next(iter(index.storage_data.values())).relative_path = path
    (attacked / ".metadata").write_bytes(pickle.dumps(index))
    rewrite_sizes(attacked)
    with pytest.raises(CheckpointError, match="outside"):
        read_full_state(attacked)


def rewrite_sizes(folder: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "COMPLETE"}
    (folder / "COMPLETE").write_text(json.dumps({"file_sizes_bytes": sizes}))


def fail_to_write(folder: str) -> str:
    tiny = build("fsdp2")
    try:
        save_checkpoint(Path(folder), 1, tiny.model, tiny.optimizer, {})
    except CheckpointError as error:
        return str(error)
    return "nothing was raised"


def test_a_disk_that_rejects_writes_is_one_error_on_all_ranks(workers: WorkerPool, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").touch()
    messages = workers.run(fail_to_write, 2, str(tmp_path / "checkpoints"))
    assert messages[0] == messages[1]
    assert "the disk refused rank 0" in messages[0]
