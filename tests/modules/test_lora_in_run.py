"""A run with low-rank updates: only they and the head are trained, ranks agree, and it resumes bit for bit."""

from pathlib import Path

import pytest
import torch

from framework.callbacks.cadence import Cadence
from framework.checkpoint.layout import newest_complete
from framework.checkpoint.load import read_full_state
from framework.checkpoint.tensors import read_index
from framework.distributed.parallel.materialization import materialize
from framework.distributed.parallel.precision import Precision
from framework.modules.encoder_module import EncoderModule
from framework.modules.inference import Inference
from framework.nn.initialization import initial_values
from framework.nn.lora import LoraSettings, is_update, merge_lora
from tests.support.processes.workers import WorkerPool
from tests.support.training.tiny_run import rows
from tests.support.training.toy_run import CONFIG, SEED, ToySource, build_module, train

STEPS, CUT = 6, 4
LORA = LoraSettings(rank=3, alpha=6.0, targets=("query", "value", "output", "down"))


def build(precision: str = "fp32") -> EncoderModule:
    return build_module(adapter=LORA, precision=Precision(precision))


def run(folder: Path, strategy: str = "single", max_steps: int = STEPS, precision: str = "fp32") -> None:
    """Makes a run, or its missing rest."""
    cadence = Cadence(max_steps=max_steps, log_every_n_steps=1, validate_every_n_steps=2, checkpoint_every_n_steps=2)
    checkpoint = newest_complete(folder / "checkpoints")
    train(folder, strategy, cadence, checkpoint=checkpoint, module=build(precision))


def run_on_rank(folder: str, strategy: str, max_steps: int, precision: str = "fp32") -> None:
    run(Path(folder), strategy, max_steps, precision)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return folder


def test_only_updates_and_head_are_trained_and_have_optimizer_state(whole: Path):
    folder = whole / "checkpoints" / f"step_{STEPS:08d}"
    before = {name: make() for name, make in initial_values(build().model, CONFIG, SEED)}
    after = read_full_state(folder)
    assert before.keys() == after.keys()
    trained = {name for name in before if is_update(name) or name.startswith("head.")}
    assert len([name for name in trained if is_update(name)]) == 2 * 2 * len(LORA.targets)
    assert {name for name in before if not torch.equal(before[name], after[name])} == trained
    keys = {key for key in read_index(folder).state_dict_metadata if key.startswith("optimizer.")}
    assert keys == {f"optimizer.{name}.{key}" for name in trained for key in ("exp_avg", "exp_avg_sq", "step")}


def test_the_merged_weights_validate_like_the_run(whole: Path):
    state = read_full_state(whole / "checkpoints" / f"step_{STEPS:08d}")
    merged = merge_lora(state, CONFIG.num_heads, LORA)
    module = build_module()
    materialize(module.model, ((name, lambda name=name: merged[name]) for name in merged), "cpu")
    inference = Inference(module.model, module.task, 100, Precision("fp32"), torch.device("cpu"))
    found, _ = inference.evaluate(ToySource(11))
    assert rows(whole)[-1]["val/loss"] == pytest.approx(found["loss"], rel=1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_equal_one_and_resume_bit_for_bit(
    workers: WorkerPool, whole: Path, tmp_path: Path, strategy: str
):
    workers.run(run_on_rank, 2, str(tmp_path / "two"), strategy, STEPS)
    for ours, theirs in zip(rows(tmp_path / "two"), rows(whole), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    workers.run(run_on_rank, 2, str(tmp_path / "cut"), strategy, CUT)
    workers.run(run_on_rank, 2, str(tmp_path / "cut"), strategy, STEPS)
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "two" / "metrics.jsonl").read_bytes()


def test_bf16_shards_agree_with_one_process(workers: WorkerPool, whole: Path, tmp_path: Path):
    workers.run(run_on_rank, 2, str(tmp_path), "fsdp2", STEPS, "bf16")
    for ours, theirs in zip(rows(tmp_path), rows(whole), strict=True):
        assert ours["train/loss"] == pytest.approx(theirs["train/loss"], abs=1e-2)
