"""The rows of a run log: their numbers, files and times."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from framework.callbacks.cadence import Cadence
from framework.callbacks.run_log import RunLog
from framework.callbacks.throughput import Throughput
from framework.callbacks.timings import Timings
from framework.modules.encoder_module import EncoderModule
from tests.support.training.toy_run import build_module


class AtStep:
    """Attributes of the trainer that RunLog reads."""

    def __init__(self, is_global_zero: bool = True) -> None:
        self.global_step = 0
        self.is_global_zero = is_global_zero


class Keeper(CSVLogger):
    """Logger that keeps its rows."""

    def __init__(self) -> None:
        super().__init__("unused")
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))


@pytest.fixture
def module() -> EncoderModule:
    built = build_module()
    built.runner.metrics = {"train/loss": torch.tensor(2.5), "optim/lr": 0.25, "train/tokens": torch.tensor(90.0)}
    built.runner.num_tokens = 90
    return built


def run_steps(run_log: RunLog, trainer: AtStep, module: EncoderModule, num_steps: int) -> None:
    run_log.throughput.on_train_start(trainer, module)
    run_log.on_train_start(trainer, module)
    for step in range(1, num_steps + 1):
        trainer.global_step = step
        run_log.on_train_batch_end(trainer, module, None, None, 0)
        if run_log.cadence.validates(step):
            module.validation_metrics = {"val/loss": float(step)}
            run_log.on_validation_end(trainer, module)


def rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_step_has_one_row_and_timings_have_their_own_file(tmp_path: Path, module: EncoderModule):
    keeper = Keeper()
    cadence = Cadence(max_steps=8, log_every_n_steps=2, validate_every_n_steps=3)
    run_log = RunLog(tmp_path, cadence, Throughput(Timings()), [keeper])
    run_steps(run_log, AtStep(), module, 6)
    train_row = {"train/loss": 2.5, "optim/lr": 0.25, "train/tokens": 90}
    assert rows(tmp_path / "metrics.jsonl") == [
        {"step": 2, **train_row},
        {"step": 3, "val/loss": 3.0},
        {"step": 4, **train_row},
        {"step": 6, **train_row, "val/loss": 6.0},
    ]
    perf = rows(tmp_path / "perf.jsonl")
    assert [row["step"] for row in perf] == [2, 4, 6]
    assert all(key == "step" or key.startswith("perf/") for row in perf for key in row)
    assert [step for step, _ in keeper.rows] == [2, 3, 4, 6]
    assert {"train/loss", "val/loss", "perf/tokens_per_second"} <= set(keeper.rows[-1][1])


def test_other_ranks_write_nothing(tmp_path: Path, module: EncoderModule):
    run_log = RunLog(tmp_path, Cadence(max_steps=2, log_every_n_steps=1), Throughput(Timings()))
    run_steps(run_log, AtStep(is_global_zero=False), module, 2)
    assert list(tmp_path.iterdir()) == []
