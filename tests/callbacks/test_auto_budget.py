"""Automatic token budget under a known law of memory; the run after the trials equals one with that budget given."""

import json
from pathlib import Path

import numpy as np
import pytest

from framework.callbacks.auto_budget import AutoBudget
from framework.callbacks.cadence import Cadence
from framework.data.planning.auto_budget import Trial, even_budget, largest_budget, trial_batch
from framework.data.planning.fixed_shapes import fixed_shapes
from framework.errors import ConfigError
from framework.modules.encoder_module import EncoderModule
from tests.support.processes.workers import WorkerPool
from tests.support.training import toy_run
from tests.support.training.checkpointed_activations import composed


class LinearMemory:
    """Memory model: a step of n tokens uses at most base + slope * n bytes; more than `room` is an error."""

    def __init__(self, base: float, slope: float, room: float, floor: float = 0.0) -> None:
        self.base, self.slope, self.room, self.floor = base, slope, room, floor
        self.tried: list[int] = []

    def attempt(self, tokens: int) -> Trial:
        self.tried.append(tokens)
        peak = max(self.floor, self.base + self.slope * tokens)
        assert peak <= self.room, "out of memory"
        return Trial(tokens, peak, self.base)


@pytest.mark.parametrize("room", [2_000.0, 5_000.0, 50_000.0, 10e6])
@pytest.mark.parametrize("floor", [0.0, 1_800.0])
def test_largest_fitting_budget_is_chosen_without_running_out_of_memory(room: float, floor: float) -> None:
    """1,000 bytes and 3 per token. The floor is a constant part that hides the memory of the first trials."""
    memory = LinearMemory(1_000.0, 3.0, room, floor)
    budget = largest_budget(memory.attempt, 64, 10**9, 0.9 * room)
    exact = (0.9 * room - 1_000.0) / 3.0
    assert 0.98 * exact - 1 <= budget <= exact or budget == 64 == memory.tried[-1]
    assert all(tokens <= budget for tokens in memory.tried)


def test_a_captured_step_needs_the_memory_of_two_passes() -> None:
    memory = LinearMemory(1_000.0, 3.0, room=50_000.0)
    budget = largest_budget(lambda tokens: memory.attempt(tokens).of_captured_step(), 64, 10**9, 49_000.0)
    assert 0.98 * 8_000 <= budget <= 8_000  # of 6 bytes


def test_a_budget_that_barely_fits_is_tried_once() -> None:
    memory = LinearMemory(1_000.0, 3.0, room=1_250.0)
    assert largest_budget(memory.attempt, 64, 10**9, 1_250.0) == 64
    assert memory.tried == [64]


def test_no_budget_above_the_step_is_tried() -> None:
    memory = LinearMemory(1_000.0, 3.0, room=1e12)
    assert largest_budget(memory.attempt, 64, 1000, 1e12) == 1000
    assert max(memory.tried) <= 1000


def test_micro_batches_of_a_step_are_even() -> None:
    # 10,000 tokens with 5 % to spare are 10,500: one micro-batch, or two of 5,250, or three of 3,500.
    assert even_budget(20_000, 10_000, 128) == 10_500
    assert even_budget(10_000, 10_000, 128) == 5_250
    assert even_budget(4_000, 10_000, 128) == 3_500
    assert even_budget(4_000, 10, 128) == 128


def test_a_trial_is_a_full_micro_batch_with_the_shapes_of_the_run() -> None:
    source = toy_run.ToySource(37)
    free = trial_batch(source, 1000, 5, None)
    assert 980 < free.num_tokens == len(free.input_ids) <= 1000
    shapes = fixed_shapes(20, 12.0, 1000, np.arange(334.0))
    fixed = trial_batch(source, 1000, 5, shapes)
    # The budgets of the plan are smaller: its steps have at most 333 tokens.
    assert list(shapes.by_budget)[-1] < 400
    assert 1000 < len(fixed.input_ids) < 1250 and fixed.max_seqlen == 20
    assert fixed.num_tokens == free.num_tokens


class TokenMemory:
    """Fake memory readings that depend on the tokens of the module's trials: 4,000 bytes and 10 per token."""

    def __init__(self, module: EncoderModule, available: int) -> None:
        self.num_available = available
        self.tokens: list[int] = []
        trial = module.runner.run_trial

        def run_trial(batch: toy_run.PackedBatch) -> None:
            self.tokens.append(batch.num_tokens)
            trial(batch)
            assert all(parameter.grad is None for parameter in module.parameters()), "gradients are left"

        module.runner.run_trial = run_trial  # type: ignore[method-assign]

    def start(self) -> int:
        return 4_000

    def peak(self) -> int:
        return 4_000 + 10 * self.tokens[-1]

    def available(self) -> int:
        return self.num_available


def run(folder: str, strategy: str, budget: int, available: tuple[int, ...] | None) -> tuple[list[str], int, int]:
    """Returns the rows of a toy run with a given or an automatic budget, the budget, and the trials."""
    module = toy_run.build_module()
    callbacks = ()
    memory = None
    if available is not None:
        rank = toy_run.process_info().rank if strategy != "single" else 0
        memory = TokenMemory(module, available[rank])
        callbacks = (AutoBudget(memory),)
    cadence = Cadence(max_steps=4, log_every_n_steps=1, validate_every_n_steps=2)
    toy_run.train(Path(folder), strategy, cadence, budget, 24, module=module, extra_callbacks=callbacks)
    rows = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return rows, module.trainer.datamodule.plans["train"].micro_batch_tokens, len(memory.tokens) if memory else 0


def test_the_run_equals_one_with_the_same_given_budget_bit_for_bit(tmp_path: Path) -> None:
    """24 sequences of 12 tokens: 288 per step, 302.4 with 5 %; (0.9 * 6,000 - 4,000) / 10 = 140 fit: 3 parts."""
    actual, budget, num_trials = run(str(tmp_path / "auto"), "single", 20, (6_000,))
    assert num_trials >= 2 and 90 <= budget <= 110
    assert run(str(tmp_path / "given"), "single", budget, None)[0] == actual
    assert len(actual) == 4 and "val/loss" in json.loads(actual[-1])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_all_ranks_use_the_smallest_budget_that_fits(workers: WorkerPool, tmp_path: Path, strategy: str) -> None:
    """144 tokens per rank and step; rank 1 has room for (0.9 * 5,400 - 4,000) / 10 = 86, rank 0 for more."""
    ranks = workers.run(run, 2, str(tmp_path / "auto"), strategy, 20, (50_000, 5_400))
    (actual, budget, num_trials), (_, other, other_trials) = ranks
    assert budget == other and num_trials == other_trials >= 2 and 70 <= budget <= 86
    assert workers.run(run, 2, str(tmp_path / "given"), strategy, budget, None)[0][0] == actual


def test_without_a_memory_limit_a_fixed_budget_is_used(tmp_path: Path) -> None:
    module = toy_run.build_module()
    toy_run.train(tmp_path, "single", Cadence(max_steps=1), 20, 600, module=module, extra_callbacks=(AutoBudget(None),))
    # 600 sequences of 12 tokens and 5 % are 7,560: two micro-batches.
    assert module.trainer.datamodule.plans["train"].micro_batch_tokens == 3780


def test_the_config_accepts_auto_or_a_number() -> None:
    assert composed("trainer.micro_batch_tokens=auto")[1].trainer.micro_batch_tokens == "auto"
    with pytest.raises(ConfigError, match=r"micro_batch_tokens` is 0"):
        composed("trainer.micro_batch_tokens=0")
    with pytest.raises(ConfigError, match=r"trainer\.micro_batch_tokens"):
        composed("trainer.micro_batch_tokens=most")
