"""A non-finite step of every form: the run stops, nothing is updated, and the sequences are named."""

import re
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from framework.batch import PackedBatch
from framework.callbacks.cadence import Cadence
from framework.data.planning.plan import StepPlan
from framework.errors import FrameworkError
from framework.modules.encoder_module import EncoderModule
from tests.support.processes.workers import WorkerPool
from tests.support.training.forms import module_of
from tests.support.training.toy_contrast import ContrastTask
from tests.support.training.toy_run import SEED, ToySource, ToyTask, train

BAD_STEP, BAD_ID, BUDGET = 2, 14, 24
CADENCE = Cadence(max_steps=4, log_every_n_steps=1)


class BadTask(ToyTask):
    """Makes one sequence spoil the loss of its micro-batch."""

    def loss_sums(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        sums = super().loss_sums(outputs, batch)
        return {"word": spoiled(sums["word"], batch), "pair": sums["pair"], "z": sums["z"]}


class BadRows(ContrastTask):
    """Makes one sequence spoil the rows of its micro-batch."""

    def representations(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        rows = super().representations(outputs, batch)
        return rows | {"embeddings": spoiled(rows["embeddings"], batch)}


class BadLoss(ContrastTask):
    """Makes one sequence spoil the loss of the step, although all rows are finite."""

    def step_loss_sums(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        sums = super().step_loss_sums(rows)
        return sums | {"pair": sums["pair"] * torch.nan} if BAD_ID in rows["sequence_ids"] else sums


def spoiled(value: Tensor, batch: PackedBatch) -> Tensor:
    return value * torch.nan if BAD_ID in batch.sequence_ids else value


TASKS = {"none": BadTask, "r_drop": BadTask, "adversarial": BadTask, "rows": BadRows, "loss": BadLoss}


class Watch(pl.Callback):
    """Stores the weights before each step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.before = weights(pl_module)


def weights(module: EncoderModule) -> list[Tensor]:
    return [getattr(p, "_local_tensor", p).detach().clone() for p in module.parameters()]


def run_to_the_stop(folder: str, form: str, strategy: str) -> str:
    watch, module = Watch(), module_of("step_level" if form in ("rows", "loss") else form)
    module.runner.task = TASKS[form]()
    with pytest.raises(FrameworkError) as caught:
        train(Path(folder), strategy, CADENCE, BUDGET, module=module, extra_callbacks=(watch,))
    assert all(torch.equal(*pair) for pair in zip(weights(module), watch.before, strict=True))
    return str(caught.value)


def micro_batches(num_ranks: int) -> list[list[int]]:
    plan = StepPlan(ToySource(37), SEED, 6, BUDGET, num_ranks=num_ranks, wraps_epochs=True)
    shares = [plan.micro_batches(BAD_STEP, rank) for rank in range(num_ranks)]
    return [sorted(micro.sequence_ids.tolist()) for share in shares for micro in share]


def named(message: str) -> set[int]:
    """Returns the sequence ids that a message names: "1, 3 to 5"."""
    ids: set[int] = set()
    for text in re.findall(r"sequence ids ([\d, to]+)", message):
        for part in text.strip(", ").split(", "):
            first, _, last = part.partition(" to ")
            ids |= set(range(int(first), int(last or first) + 1))
    return ids


@pytest.mark.parametrize("form", TASKS)
def test_the_responsible_micro_batch_is_named(form: str, tmp_path: Path) -> None:
    message = run_to_the_stop(str(tmp_path), form, "single")
    assert message.startswith(f"Step {BAD_STEP + 1}: the loss is nan")
    (to_blame,) = [ids for ids in micro_batches(1) if BAD_ID in ids]
    everything = set(chain.from_iterable(micro_batches(1)))
    assert len(to_blame) < len(everything)
    assert named(message) == (everything if form == "loss" else set(to_blame))


@pytest.mark.parametrize("form", TASKS)
def test_both_ranks_stop_and_the_responsible_one_is_named(form: str, tmp_path: Path, workers: WorkerPool) -> None:
    first, second = workers.run(run_to_the_stop, 2, str(tmp_path), form, "fsdp2")
    assert first == second
    (to_blame,) = [ids for ids in micro_batches(2) if BAD_ID in ids]
    assert named(first) == (set(chain.from_iterable(micro_batches(2))) if form == "loss" else set(to_blame))
