"""The line that describes the steps of a run, and the numbers of its first row."""

import io
import json
from pathlib import Path

import torch
from rich.console import Console

from framework.callbacks.cadence import Cadence
from framework.callbacks.plan_line import PlanLine
from framework.callbacks.run_log import RunLog
from framework.callbacks.throughput import Throughput
from framework.callbacks.timings import Timings
from framework.data.planning.batch_size import BatchWarmup
from framework.data.planning.plan import StepPlan
from tests.support.data.sequences import NumberedSource
from tests.support.training.toy_run import build_module


class Trainer:
    """Attributes of the trainer that the callbacks read."""

    def __init__(self, step: int = 0, is_global_zero: bool = True) -> None:
        self.global_step = step
        self.max_steps = 8
        self.is_global_zero = is_global_zero


class HalfUsed(NumberedSource):
    def unused_fraction(self, epoch: int) -> float:
        return 0.5


def started(tmp_path: Path, plan: StepPlan, trainer: Trainer) -> tuple[str, RunLog]:
    output = io.StringIO()
    run_log = RunLog(tmp_path, Cadence(max_steps=8, log_every_n_steps=2), Throughput(Timings()))
    line = PlanLine(plan, run_log, Console(file=output, width=60))
    module = build_module()
    module.runner.metrics = {"train/tokens": 90, "train/loss": torch.tensor(0.5)}
    for callback in (run_log, line):
        callback.on_train_start(trainer, module)
    for _ in range(4):
        trainer.global_step += 1
        run_log.on_train_batch_end(trainer, module, None, None, 0)
    return output.getvalue(), run_log


def test_the_line_computed_by_hand(tmp_path):
    """9 sequences of 10 tokens on two ranks: 5 and 4 of them, in micro-batches of 40 and 10."""
    plan = StepPlan(NumberedSource(900, max_length=10, same_length=True), 0, 9, 40, num_ranks=2)
    text, run_log = started(tmp_path, plan, Trainer())
    assert text == (
        "plan: 9 sequences per step; micro-batches of 40 tokens, 2 per rank, the last of 10; packing efficiency 90.0% "
        "over 5 steps\n"
    )
    first, second = map(json.loads, (tmp_path / "perf.jsonl").read_text().splitlines())
    assert (first["step"], first["perf/packing_efficiency"], first["perf/micro_batches"]) == (2, 0.9, 2.0)
    assert "perf/packing_efficiency" not in second
    assert run_log.latest["perf/packing_efficiency"] == 0.9
    assert "packing" not in (tmp_path / "metrics.jsonl").read_text()


def test_a_growing_batch_and_unused_text_are_mentioned(tmp_path):
    source = HalfUsed(900, max_length=10, same_length=True)
    plan = StepPlan(source, 0, 6, 40, wraps_epochs=True, batch_warmup=BatchWarmup(2, 4))
    text, _ = started(tmp_path, plan, Trainer())
    # Steps of 2, 4, 4, 6 and 6 sequences: 20, 40, 40, 40 + 20 twice.
    assert text == (
        "plan: 2 to 6 sequences per step (growing to 6 at step 4); micro-batches of 40 tokens, 1 to 2 per rank, the "
        "last of 20 to 40; packing efficiency 100.0% over 5 steps; 0.0444 epochs of the 900 sequences; sentence pairs "
        "do not use 50.0% of the text in an epoch\n"
    )


def test_a_batch_at_its_final_size_is_described_like_any_other(tmp_path):
    plan = StepPlan(NumberedSource(900), 0, 6, 40, wraps_epochs=True, batch_warmup=BatchWarmup(2, 4))
    assert started(tmp_path, plan, Trainer(step=4))[0].startswith("plan: 6 sequences per step; micro-batches")


def test_a_resumed_run_measures_its_remaining_steps(tmp_path):
    plan = StepPlan(NumberedSource(900), 0, 6, 40)
    assert "over 2 steps" in started(tmp_path, plan, Trainer(step=6))[0]
    assert started(tmp_path, plan, Trainer(step=8))[0] == ""


def test_other_ranks_print_nothing(tmp_path):
    assert started(tmp_path, StepPlan(NumberedSource(9), 0, 6, 40), Trainer(is_global_zero=False))[0] == ""
