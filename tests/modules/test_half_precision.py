"""fp16 with its loss scale in complete runs, and weights and optimizer state that must be fp32."""

import json
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from framework.callbacks.cadence import Cadence
from framework.distributed.parallel.precision import Precision
from framework.errors import ConfigError, FrameworkError
from tests.support.processes.workers import WorkerPool
from tests.support.training.toy_run import build_module, train

EVERY_STEP = Cadence(max_steps=20, log_every_n_steps=1)
RESUMABLE = Cadence(max_steps=14, log_every_n_steps=1, checkpoint_every_n_steps=5)
CALM = Precision("fp16", init_scale=2.0**10)
HUGE = Precision("fp16", init_scale=2.0**30, growth_interval=3)


def rows(run_folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


def local_values(module: Any) -> list[torch.Tensor]:
    tensors = [*module.model.parameters(), *module.optimizer.named_state().values()]
    return [getattr(tensor, "_local_tensor", tensor).detach().clone() for tensor in tensors]


class Watch(pl.Callback):
    """Records for each step whether weights or optimizer state changed, and spoils gradients if requested."""

    def __init__(self, spoiled_rank: int | None = None, spoiled_step: int = 0) -> None:
        self.spoiled_rank = spoiled_rank
        self.spoiled_step = spoiled_step
        self.changed: list[bool] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.before = local_values(pl_module)
        self.step = batch.step
        if batch.step == 0 and trainer.global_rank == self.spoiled_rank:
            pl_module.model.head.pair.register_forward_hook(self._spoil)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        pairs = zip(self.before, local_values(pl_module), strict=True)
        self.changed.append(not all(torch.equal(before, after) for before, after in pairs))

    def _spoil(self, module, inputs, output) -> None:
        if self.step == self.spoiled_step and output.requires_grad:
            output.register_hook(lambda gradient: gradient * torch.inf)


def run_watched(
    run_folder: str, strategy: str, precision: Precision, spoiled_rank: int | None = None
) -> tuple[list[bool], dict[str, Any]]:
    watch, module = Watch(spoiled_rank, spoiled_step=3), build_module(precision=precision)
    train(Path(run_folder), strategy, EVERY_STEP, extra_callbacks=(watch,), module=module)
    assert module.runner.loss_scale is not None
    return watch.changed, module.runner.loss_scale.state_dict()


def run_resumable(run_folder: str, strategy: str, checkpoint: str | None) -> None:
    module = build_module(precision=HUGE)
    start = Path(checkpoint) if checkpoint is not None else None
    train(Path(run_folder), strategy, RESUMABLE, checkpoint=start, module=module)


def test_fp16_learns_as_fp32_does(tmp_path: Path, workers: WorkerPool) -> None:
    train(tmp_path / "fp32", cadence=EVERY_STEP)
    run_watched(str(tmp_path / "single"), "single", CALM)
    workers.run(run_watched, 2, str(tmp_path / "ddp"), "ddp", CALM)
    losses, norms = {}, {}
    for name in ("fp32", "single", "ddp"):
        found = rows(tmp_path / name)
        losses[name] = torch.tensor([row["train/loss"] for row in found])
        norms[name] = torch.tensor([row["optim/grad_norm"] for row in found])
        assert len(found) == 20 and found[-1].get("optim/overflow_steps", 0.0) == 0.0
    for name in ("single", "ddp"):
        torch.testing.assert_close(losses[name], losses["fp32"], rtol=0, atol=1e-2)
        # Compared with the unscaled gradient; a difference shows that something was computed in fp16.
        torch.testing.assert_close(norms[name], norms["fp32"], rtol=5e-2, atol=0)
        assert not torch.equal(norms[name], norms["fp32"])


def test_an_overflow_changes_only_the_scale_on_all_ranks_alike(tmp_path: Path, workers: WorkerPool) -> None:
    single = run_watched(str(tmp_path / "single"), "single", HUGE)
    ranks = workers.run(run_watched, 2, str(tmp_path / "ddp"), "ddp", HUGE)
    assert ranks[0] == ranks[1]
    for name, (changed, state) in (("single", single), ("ddp", ranks[0])):
        scale, num_finite, num_overflows = HUGE.init_scale, 0, 0
        for row, updated in zip(rows(tmp_path / name), changed, strict=True):
            if updated:
                num_finite += 1
                assert row["optim/grad_norm"] > 0
            else:
                scale, num_finite, num_overflows = scale / 2, 0, num_overflows + 1
                assert row["optim/grad_norm"] == 0
            if num_finite == 3:
                scale, num_finite = scale * 2, 0
            assert (row["optim/loss_scale"], row["optim/overflow_steps"]) == (scale, num_overflows)
            assert row["train/loss"] < 20
        assert state == {"value": scale, "num_finite_steps": num_finite, "num_overflows": num_overflows}
        assert 3 <= num_overflows <= 17 and not changed[0]


def test_an_overflow_on_one_rank_is_an_overflow_on_all(tmp_path: Path, workers: WorkerPool) -> None:
    ranks = workers.run(run_watched, 2, str(tmp_path), "ddp", CALM, 1)
    assert ranks[0] == ranks[1]
    changed, state = ranks[0]
    assert changed == [step != 3 for step in range(20)]
    assert state == {"value": 2.0**9, "num_finite_steps": 16, "num_overflows": 1}


@pytest.mark.parametrize("strategy", ["single", "ddp"])
def test_a_resumed_run_has_the_scale_of_the_uninterrupted_one(
    strategy: str, tmp_path: Path, workers: WorkerPool
) -> None:
    def run(folder: Path, checkpoint: str | None) -> bytes:
        if strategy == "single":
            run_resumable(str(folder), strategy, checkpoint)
        else:
            workers.run(run_resumable, 2, str(folder), strategy, checkpoint)
        return (folder / "metrics.jsonl").read_bytes()

    whole = run(tmp_path, None)
    scales = [row["optim/loss_scale"] for row in rows(tmp_path)]
    assert scales[9] < HUGE.init_scale and scales[10:] != [scales[9]] * 4
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000014")
    assert run(tmp_path, str(tmp_path / "checkpoints" / "step_00000010")) == whole


def test_a_non_finite_loss_is_no_overflow(tmp_path: Path) -> None:
    class Spoil(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if batch.step == 2:
                pl_module.model.head.pair.register_forward_hook(lambda module, inputs, output: output * torch.inf)

    module = build_module(precision=CALM)
    with pytest.raises(FrameworkError, match="Step 3: the loss is nan"):
        train(tmp_path, cadence=EVERY_STEP, extra_callbacks=(Spoil(),), module=module)
    assert module.runner.loss_scale is not None
    assert module.runner.loss_scale.state_dict() == {"value": 2.0**10, "num_finite_steps": 2, "num_overflows": 0}


def run_with_a_bf16_head(run_folder: str, strategy: str) -> str:
    module = build_module(precision=Precision("bf16"))
    module.model.head.pair.to(torch.bfloat16)
    with pytest.raises(ConfigError) as error:
        train(Path(run_folder), strategy, EVERY_STEP, module=module)
    return str(error.value)


@pytest.mark.parametrize("strategy", ["single", "ddp", "fsdp2"])
def test_weights_in_other_dtypes_than_fp32_are_rejected_by_name(
    strategy: str, tmp_path: Path, workers: WorkerPool
) -> None:
    message = (
        run_with_a_bf16_head(str(tmp_path), strategy)
        if strategy == "single"
        else workers.run(run_with_a_bf16_head, 2, str(tmp_path), strategy)[1]
    )
    assert message.startswith("the parameter head.pair.weight is bfloat16. Weights must be fp32")


def test_optimizer_state_in_other_dtypes_than_fp32_is_rejected_by_name(tmp_path: Path) -> None:
    module = build_module()
    build = module.build_optimizer

    def build_half(model: Any) -> Any:
        optimizer = build(model)
        state = optimizer.state[model.head.pair.bias]
        state["exp_avg_sq"] = state["exp_avg_sq"].half()
        return optimizer

    module.build_optimizer = build_half
    with pytest.raises(ConfigError, match=r"^the optimizer state head\.pair\.bias\.exp_avg_sq is float16\."):
        train(tmp_path, cadence=EVERY_STEP, module=module)
