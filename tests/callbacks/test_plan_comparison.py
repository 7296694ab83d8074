"""Lines and values that compare a run with its plan."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from rich.console import Console

from framework.callbacks.cadence import Cadence
from framework.callbacks.plan_comparison import PlanComparison, PlannedPhase
from framework.callbacks.run_log import RunLog
from framework.callbacks.throughput import Throughput
from framework.callbacks.timings import Timings
from framework.tracking.analysis.closing_table import closing_table

PLANNED = {"first": PlannedPhase(2e9, (0.5, 0.4, 0.8), 1000)}
STEP_SECONDS = [9.0, 3.0, 0.6, 0.7, 0.7]


class Later:
    """Plan that is finished after a number of questions."""

    def __init__(self, result: Mapping[str, PlannedPhase] | str, questions: int) -> None:
        self.result, self.questions = result, questions

    def poll(self) -> Mapping[str, PlannedPhase] | str | None:
        self.questions -= 1
        return None if self.questions >= 0 else self.result


def compared(
    folder: Path, monkeypatch: pytest.MonkeyPatch, plan: Later, device: str = "cpu", rank: int = 0
) -> tuple[str, RunLog]:
    """Runs ten steps with a row after each second one, on a device whose peak memory is 2.5 GB."""
    output, seconds = io.StringIO(), iter(STEP_SECONDS)
    throughput = Throughput(Timings())
    rows = {"perf/memory_bytes": 2.5e9}
    monkeypatch.setattr(throughput, "take_window", lambda *_: rows | {"perf/step_seconds": next(seconds)})
    cadence = Cadence(max_steps=10, log_every_n_steps=2)
    run_log = RunLog(folder, cadence, throughput)
    line = PlanComparison(plan, "first", cadence, run_log, Console(file=output, width=60))
    runner = SimpleNamespace(metrics={"train/tokens": 90, "train/loss": torch.tensor(0.5)})
    module = cast(Any, SimpleNamespace(runner=runner, device=SimpleNamespace(type=device), hidden_metrics=frozenset()))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_: tensor)
    trainer = cast(Any, SimpleNamespace(global_step=0, is_global_zero=rank == 0))
    run_log.on_train_start(trainer, module)
    for step in range(1, 11):
        trainer.global_step = step
        for callback in (run_log, line):
            callback.on_train_batch_end(trainer, module, None, cast(Any, None), 0)
    line.on_train_end(trainer, module)
    return output.getvalue(), run_log


def test_a_run_is_compared_with_the_plan_of_its_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, run_log = compared(tmp_path, monkeypatch, Later(PLANNED, questions=4), "cuda")
    assert text == (
        "planned: a step takes 500.0 ms, from 400.0 ms to 800.0 ms (2,000 tokens per second); tensors of rank 0 need "
        "2.00 GB at the peak\n"
        # The median of the last three rows of five.
        "measured: a step took 700.0 ms, 140% of the planned time; rank 0 used 2.50 GB, 125% of the planned memory\n"
    )
    rows = [json.loads(line) for line in (tmp_path / "perf.jsonl").read_text().splitlines()]
    planned = {"plan/memory_bytes": 2e9, "plan/step_seconds": 0.5, "plan/tokens_per_second": 2000.0}
    with_plan = [{key: row[key] for key in row if key.startswith("plan/")} for row in rows]
    assert with_plan == [{}, {}, planned, {}, {}]  # the plan was known after the fifth step
    assert "plan/" not in (tmp_path / "metrics.jsonl").read_text()
    last = {key: value for key, value in run_log.latest.items() if key.startswith("plan/")}
    assert last == planned | {"plan/step_ratio": 1.4, "plan/memory_ratio": 1.25}
    table = closing_table(
        "mine",
        {"ended": "finished", "best": None, "last": last, "steps": 10, "tokens": 90, "wall_seconds": 1.0}
        | {"tokens_per_second": None},
    )
    console = Console(file=(shown := io.StringIO()), width=100)
    console.print(table)
    assert "step time, measured by planned │ 140%" in " ".join(shown.getvalue().split())
    assert "memory, measured by planned │ 125%" in " ".join(shown.getvalue().split())


def test_memory_of_a_process_is_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, run_log = compared(tmp_path, monkeypatch, Later(PLANNED, questions=0))
    assert text.endswith("measured: a step took 700.0 ms, 140% of the planned time\n")
    assert "plan/step_ratio" in run_log.latest and "plan/memory_ratio" not in run_log.latest


@pytest.mark.parametrize(
    ("plan", "line"),
    [
        (Later("the task reads values", 3), "plan: none, because the task reads values\n"),
        (Later(PLANNED, 100), "plan: not finished before the run ended; nothing is compared\n"),
    ],
    ids=["failed", "slow"],
)
def test_a_run_without_a_plan_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: Later, line: str) -> None:
    text, run_log = compared(tmp_path, monkeypatch, plan)
    assert text == line
    assert not [key for key in run_log.latest if key.startswith("plan/")]


def test_other_ranks_print_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compared(tmp_path, monkeypatch, Later(PLANNED, 0), rank=1)[0] == ""
