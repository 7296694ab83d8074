"""A step that is not finite stops the run on all ranks, with nothing updated and nothing on disk harmed."""

import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from framework.callbacks.cadence import Cadence
from framework.checkpoint.layout import newest_complete
from framework.errors import FrameworkError
from tests.modules.toy_run import build_module, train

CADENCE = Cadence(max_steps=5, log_every_n_steps=1, checkpoint_every_n_steps=1)


class Spoil(pl.Callback):
    """Makes the head's output infinite before step 3, on rank 1 only where there are several."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.before: dict[str, torch.Tensor] = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch.step == 2:
            self.before = local_values(pl_module)
            if trainer.global_rank == self.rank:
                pl_module.model.head.pair.register_forward_hook(lambda module, inputs, output: output * torch.inf)


def local_values(module) -> dict[str, torch.Tensor]:
    tensors = dict(module.model.named_parameters()) | module.optimizer.named_state()
    return {name: getattr(t, "_local_tensor", t).detach().clone() for name, t in tensors.items()}


def run_spoiled(run_folder: str, strategy: str, rank: int) -> tuple[str, bool]:
    spoil, module = Spoil(rank), build_module()
    try:
        train(Path(run_folder), strategy, CADENCE, extra_callbacks=(spoil,), module=module)
    except FrameworkError as error:
        after = local_values(module)
        return str(error), all(torch.equal(spoil.before[name], after[name]) for name in after)
    return "", False


def check(run_folder: Path, message: str) -> None:
    assert message.startswith("Step 3: the loss is nan and the gradient norm nan")
    assert [json.loads(line)["step"] for line in (run_folder / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    assert newest_complete(run_folder / "checkpoints").name == "step_00000002"
    summary = json.loads((run_folder / "summary.json").read_text())
    assert summary["ended"] == "failed"
    assert message in summary["why"]
    assert summary["steps"] == 2


def test_the_run_stops_before_the_update_and_names_step_and_sequences(tmp_path: Path):
    message, unchanged = run_spoiled(str(tmp_path), "single", 0)
    assert unchanged
    assert "sequence ids 12 to 17" in message
    check(tmp_path, message)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_all_ranks_decide_alike_although_one_rank_alone_is_spoiled(strategy: str, tmp_path: Path, workers):
    results = workers.run(run_spoiled, 2, str(tmp_path), strategy, 1)
    assert [unchanged for _, unchanged in results] == [True, True]
    assert all(message.startswith("Step 3") for message, _ in results)
    check(tmp_path, results[0][0])
