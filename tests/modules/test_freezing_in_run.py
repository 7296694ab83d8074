"""A run with frozen parameters: they do not change, have no optimizer state, and ranks agree with one process."""

from pathlib import Path

import pytest
import torch

from framework.callbacks.cadence import Cadence
from framework.checkpoint.layout import newest_complete
from framework.checkpoint.load import read_full_state
from framework.checkpoint.tensors import read_index
from framework.distributed.parallel.precision import Precision
from framework.nn.initialization import initial_values
from tests.support.processes.workers import WorkerPool
from tests.support.training.tiny_run import rows
from tests.support.training.toy_run import CONFIG, SEED, build_module, train

STEPS, CUT = 6, 4
FROZEN = {
    "probe": ("encoder.*",),
    "bottom": ("encoder.embeddings.*", "encoder.layers.0.*"),
    # A group of frozen and trained parameters, below which everything needs a gradient.
    "mixed": ("encoder.layers.*.attention.*", "*.feed_forward_norm.weight", "head.word.bias"),
}


def run(folder: Path, kind: str, strategy: str = "single", max_steps: int = STEPS, precision: str = "fp32") -> None:
    """Makes a run, or its missing rest."""
    cadence = Cadence(max_steps=max_steps, log_every_n_steps=1, validate_every_n_steps=2, checkpoint_every_n_steps=2)
    module = build_module(ema_decay=0.8, frozen=FROZEN[kind], precision=Precision(precision))
    train(folder, strategy, cadence, checkpoint=newest_complete(folder / "checkpoints"), module=module)


def run_on_rank(folder: str, kind: str, strategy: str, max_steps: int, precision: str = "fp32") -> None:
    run(Path(folder), kind, strategy, max_steps, precision)


@pytest.mark.parametrize("kind", FROZEN)
def test_frozen_values_stay_and_have_no_optimizer_state(kind: str, tmp_path: Path):
    run(tmp_path, kind)
    folder = tmp_path / "checkpoints" / f"step_{STEPS:08d}"
    module = build_module(frozen=FROZEN[kind])
    trained = {name for name, parameter in module.model.named_parameters() if parameter.requires_grad}
    keys = set(read_index(folder).state_dict_metadata)
    expected = {f"optimizer.{name}.{key}" for name in trained for key in ("exp_avg", "exp_avg_sq", "step", "ema")}
    assert {key for key in keys if key.startswith("optimizer.")} == expected
    before = {name: make() for name, make in initial_values(module.model, CONFIG, SEED)}
    for weights in ("raw", "ema"):
        after = read_full_state(folder, weights)
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == trained


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("kind", FROZEN)
def test_two_processes_equal_one_and_resume_bit_for_bit(workers: WorkerPool, tmp_path: Path, kind: str, strategy: str):
    run(tmp_path / "one", kind)
    workers.run(run_on_rank, 2, str(tmp_path / "two"), kind, strategy, STEPS)
    for ours, theirs in zip(rows(tmp_path / "two"), rows(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    workers.run(run_on_rank, 2, str(tmp_path / "cut"), kind, strategy, CUT)
    workers.run(run_on_rank, 2, str(tmp_path / "cut"), kind, strategy, STEPS)
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "two" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("kind", FROZEN)
def test_bf16_shards_agree_with_one_process(workers: WorkerPool, tmp_path: Path, kind: str):
    run(tmp_path / "one", kind, precision="bf16")
    workers.run(run_on_rank, 2, str(tmp_path / "two"), kind, "fsdp2", STEPS, "bf16")
    for ours, theirs in zip(rows(tmp_path / "two"), rows(tmp_path / "one"), strict=True):
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], abs=1e-2)
