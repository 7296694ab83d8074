"""Profiled steps: files of rank 0, and the operations that cost most."""

import gzip
import json
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from framework.callbacks.profile import Profile
from framework.config.checks import check_profile
from framework.config.schema import TrainerConfig
from framework.errors import ConfigError

LENGTH = {"max_steps": 8, "max_epochs": None, "global_batch_size": 4, "micro_batch_tokens": 64}


def run_steps(callback: Profile, first: int, max_steps: int, is_global_zero: bool = True) -> None:
    """Calls the hooks as Lightning does. Step N multiplies matrices in a range named "step N"."""
    module = SimpleNamespace(device=torch.device("cpu"))
    trainer = SimpleNamespace(global_step=first, max_steps=max_steps, is_global_zero=is_global_zero)
    matrix = torch.ones(64, 64)
    for step in range(first + 1, max_steps + 1):
        callback.on_train_batch_start(trainer, module, None, step)
        with torch.profiler.record_function(f"step {step}"):
            for _ in range(20):
                matrix = matrix @ matrix / 64.0
        trainer.global_step = step
        callback.on_train_batch_end(trainer, module, None, None, step)
    callback.teardown(trainer, module, "fit")


@pytest.mark.parametrize(("first", "max_steps", "recorded"), [(0, 6, (2, 3, 4)), (2, 6, (3, 4)), (0, 3, (2, 3))])
def test_the_steps_are_recorded_and_the_dearest_operation_is_named(first, max_steps, recorded, tmp_path, capsys):
    run_steps(Profile(tmp_path, 2, 4, Console(width=1000)), first, max_steps)
    with gzip.open(tmp_path / "profile" / "trace.json.gz", "rt") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {name for name in names if str(name).startswith("step ")} == {f"step {step}" for step in recorded}
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"profile: steps {recorded[0]} to {recorded[-1]}, ")
    assert "aten::mm " in line and "aten::div " in line
    assert "aten::mm" in (tmp_path / "profile" / "operations.txt").read_text()


def test_other_ranks_and_runs_after_the_steps_record_nothing(tmp_path):
    run_steps(Profile(tmp_path, 2, 4), 0, 6, is_global_zero=False)
    run_steps(Profile(tmp_path, 2, 4), 4, 6)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("steps", [(5,), (5, 4), (0, 3), (1, 2, 3)])
def test_the_key_names_a_first_and_a_last_step(steps):
    with pytest.raises(ConfigError, match=r"`trainer\.profile` is \[.*\]\. It must be the first and the last step"):
        TrainerConfig(**LENGTH, profile=steps)


def test_a_run_must_reach_the_first_step():
    check_profile(TrainerConfig(**LENGTH, profile=(8, 12)), 8)
    with pytest.raises(ConfigError, match=r"`trainer\.profile` is \[9, 12\], but the run has 8 steps"):
        check_profile(TrainerConfig(**LENGTH, profile=(9, 12)), 8)
