"""Processor time of the host in a training step, by part: `python -m tests.benchmarks.host_time experiment=NAME ...`.

The arguments are those of framework.train, of a run on one CPU process with at least 20 steps. Give it
OMP_NUM_THREADS=1. The table has each part's own processor time of the main thread: the 10th percentile and the median
over all steps but the first 15. Its last rows are what the goal counts, everything but model, clipping and AdamW.
"""

import functools
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

import framework.modules.passes.model_passes as model_passes
import framework.train
from framework.callbacks import standard
from framework.data.flat_source import FlatSource
from framework.data.planning.plan import StepPlan
from framework.datamodules.steps import StepDataset
from framework.modules.encoder_module import EncoderModule
from framework.modules.passes.model_passes import ModelPasses
from framework.modules.step_runner import StepRunner
from framework.optim import combined
from framework.optim.combined import CombinedOptimizer
from framework.tasks.pretraining.features import PretrainingSource
from framework.tasks.task import TaskModel

WARM_UP_STEPS = 15
WORK = {"model forward", "model backward", "clipping and its kernels", "AdamW"}
"""Parts that do the work of the step."""

PARTS: list[tuple[Any, str, str]] = [
    (EncoderModule, "training_step", "training_step, rest"),
    (StepRunner, "run", "step, rest"),
    (StepRunner, "_global_counts", "counts of targets and tokens"),
    (StepRunner, "_clip_gradients", "clipping and its kernels"),
    (ModelPasses, "dropout_keys", "dropout keys"),
    (ModelPasses, "forward", "passes: forward, rest"),
    (ModelPasses, "backward", "passes: backward, rest"),
    (TaskModel, "forward", "model forward"),
    (torch.autograd, "backward", "model backward"),
    (model_passes, "contribution", "loss sums"),
    (CombinedOptimizer, "step", "optimizer step, rest"),
    (CombinedOptimizer, "set_learning_rates", "learning rates"),
    (CombinedOptimizer, "zero_grad", "zero_grad"),
    (LightningOptimizer, "step", "optimizer step of Lightning"),
    (StepDataset, "__getitem__", "loader, rest"),
    (StepPlan, "micro_batches", "loader: plan"),
    (PretrainingSource, "build", "loader: build"),
    (FlatSource, "build", "loader: build"),
    (_TrainingEpochLoop, "on_advance_end", "loop of Lightning, end"),
]
HOOKS = ("on_train_batch_start", "on_train_batch_end", "on_before_optimizer_step")


class Stopwatch:
    """Own processor time of nested parts, by step."""

    def __init__(self) -> None:
        self.steps: list[Counter[str]] = []
        self._children: list[float] = []

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """Returns the function, with its own time added to a part."""

        @functools.wraps(function)
        def run(*arguments: Any, **keywords: Any) -> Any:
            if not self.steps:
                return function(*arguments, **keywords)
            self._children.append(0.0)
            start = time.thread_time()
            try:
                return function(*arguments, **keywords)
            finally:
                seconds = time.thread_time() - start
                self.steps[-1][part] += seconds - self._children.pop()
                if self._children:
                    self._children[-1] += seconds

        return run

    def step(self, advance: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function, each call of which begins a step."""
        own = self.timed(advance, "loop of Lightning, rest")

        def run(*arguments: Any) -> Any:
            self.steps.append(Counter())
            return own(*arguments)

        return run


def measure(overrides: list[str]) -> list[Counter[str]]:
    """Runs a training; returns the seconds of each part in each step."""
    watch = Stopwatch()
    callbacks = [
        (kind, hook, f"callback {kind.__name__}")
        for kind in vars(standard).values()
        if isinstance(kind, type) and issubclass(kind, pl.Callback)
        for hook in HOOKS
        if hook in vars(kind)
    ]
    patches = [patch.object(owner, name, watch.timed(getattr(owner, name), part)) for owner, name, part in PARTS]
    patches += [patch.object(kind, hook, watch.timed(getattr(kind, hook), part)) for kind, hook, part in callbacks]
    patches.append(patch.dict(combined._UPDATES, adamw=watch.timed(combined._UPDATES["adamw"], "AdamW")))
    patches.append(patch.object(_TrainingEpochLoop, "advance", watch.step(_TrainingEpochLoop.advance)))
    for each in patches:
        each.start()
    framework.train.run(overrides)
    return watch.steps[WARM_UP_STEPS:]


def main() -> None:
    """Prints the table."""
    steps = measure(sys.argv[1:])
    parts = {part for step in steps for part in step}
    rows = {part: [1e3 * step[part] for step in steps] for part in parts}
    host = [sum(1e3 * seconds for part, seconds in step.items() if part not in WORK) for step in steps]
    print(f"\nprocessor time of {len(steps)} steps, ms: 10th percentile, median")
    for part, values in sorted(rows.items(), key=lambda row: -statistics.median(row[1])):
        print(f"{statistics.quantiles(values, n=10)[0]:9.3f} {statistics.median(values):9.3f}  {part}")
    medians = sum(statistics.median(values) for part, values in rows.items() if part not in WORK)
    print(f"{statistics.quantiles(host, n=10)[0]:9.3f} {statistics.median(host):9.3f}  host, by step")
    print(f"{'':9} {medians:9.3f}  host, sum of the medians of its parts")


if __name__ == "__main__":
    main()
