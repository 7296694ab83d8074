"""A runner without a Trainer takes the steps of a training."""

from pathlib import Path

import torch

from framework.batch import StepBatch
from framework.callbacks.cadence import Cadence
from framework.data.planning.plan import StepPlan
from tests.support.training.toy_run import SEED, ToySource, build_module, train


def test_steps_without_a_trainer_are_those_of_training(tmp_path: Path):
    trained = train(tmp_path, cadence=Cadence(max_steps=3), budget=24, global_batch_size=6)
    module = build_module()
    module.place("single", None, torch.device("cpu"))
    optimizer = module.configure_optimizers()
    plan = StepPlan(ToySource(37), SEED, 6, 24, wraps_epochs=True)
    for step in range(3):
        batch = StepBatch(step, 0, tuple(plan.batches(step, 0)))
        assert len(batch.micro_batches) > 1
        module.runner.run(batch, optimizer, optimizer.step)
    assert module.runner.num_tokens == trained.runner.num_tokens > 0
    assert module.runner.metrics == trained.runner.metrics
    for name, weight in trained.model.state_dict().items():
        assert torch.equal(weight, module.model.state_dict()[name]), name
