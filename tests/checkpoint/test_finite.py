"""A non-finite value anywhere in weights or optimizer state, on any rank, prevents a checkpoint."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from framework.callbacks.cadence import Cadence
from framework.checkpoint.save import check_finite
from framework.checkpoint.tensors import checkpoint_tensors
from framework.errors import CheckpointError, FrameworkError
from tests.support.models.tiny import build
from tests.support.processes.workers import WorkerPool
from tests.support.training.toy_run import build_module, train

NAME = "encoder.layers.1.attention.qkv.weight"


def check_spoiled(strategy: str, where: str, value: float, rank: int) -> str:
    """Sets the last element of one rank's part of a tensor to a non-finite value."""
    tiny = build(strategy)
    check_finite(checkpoint_tensors(tiny.model, tiny.optimizer))
    tensors = {f"model.{name}": parameter for name, parameter in tiny.model.named_parameters()}
    tensors |= {f"optimizer.{name}": state for name, state in tiny.optimizer.named_state().items()}
    local = getattr(tensors[where], "_local_tensor", tensors[where])
    if not dist.is_initialized() or dist.get_rank() == rank:
        with torch.no_grad():
            local.view(-1)[-1] = value
    try:
        check_finite(checkpoint_tensors(tiny.model, tiny.optimizer))
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("where", [f"model.{NAME}", f"optimizer.{NAME}.exp_avg_sq"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_element_is_enough(where: str, value: float) -> None:
    assert check_spoiled("single", where, value, 0).startswith(f"{where} is no longer finite")


def test_all_ranks_learn_of_a_bad_shard_on_one_rank(workers: WorkerPool) -> None:
    messages = workers.run(check_spoiled, 2, "fsdp2", f"model.{NAME}", float("nan"), 1)
    assert messages[0] == messages[1]
    assert messages[0].startswith(f"model.{NAME} is no longer finite")


def test_a_run_whose_last_update_overflows_saves_nothing_and_reports_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^model\..* is no longer finite although loss and gradient norm"):
        train(tmp_path, cadence=Cadence(max_steps=1), module=build_module(lr=1e39))
    assert not (tmp_path / "checkpoints").exists()


def test_a_run_whose_earlier_update_overflowed_saves_nothing_and_reports_it(tmp_path: Path, capsys) -> None:
    """Loss and norm of the step were finite; when its checkpoint is rejected, the next step has begun."""
    with pytest.raises(FrameworkError, match=r"^Step 2: the loss is nan"):
        train(tmp_path, cadence=Cadence(max_steps=4, checkpoint_every_n_steps=1), module=build_module(lr=1e39))
    assert "is no longer finite although loss and gradient norm" in capsys.readouterr().out
    assert not (tmp_path / "checkpoints").exists()
