"""Complete runs on one GPU, compared with those on its host's CPU: equal dropout and data, losses up to rounding."""

import json
import os
from pathlib import Path

import pytest

from tests.support.data.drawn_store import drawn_store
from tests.support.needs import cuda
from tests.support.processes.ranks import Ranks
from tests.support.tasks.commands import FINE_TUNED, example, jsonl, prepare, rows, succeed

pytestmark = cuda

STEPS = 12
DATA = ["data.store=store", "data.validation_fraction=0.2"]
PRETRAINING = [
    *("experiment=pretrain_demo", "model=bert_mini", "model.num_layers=2", "schedule=constant"),
    *("model.vocab_size=null", "optimizer.lr=1e-3", "logger=none", "run.dir=runs", "task.sequence_length=64"),
    "strategy.compile=none",
    *(f"trainer.max_steps={STEPS}", "trainer.global_batch_size=16", "trainer.micro_batch_tokens=512"),
    *(
        "trainer.log_every_n_steps=1",
        f"trainer.val_every_n_steps={STEPS}",
        f"trainer.checkpoint_every_n_steps={STEPS // 2}",
    ),
]
WAYS = {
    "fp32": ["precision=fp32", "strategy=single"],
    "bf16": ["precision=bf16", "strategy=single"],
    "single_kernels": ["precision=bf16", "strategy=single", "strategy.graph=false"],
    "fp16": ["precision=fp16", "strategy=single"],
    "float8": ["precision=float8", "strategy=single"],
    "ddp": ["precision=bf16", "strategy=ddp"],
    "fp16_ddp": ["precision=fp16", "strategy=ddp"],
    "fsdp2": ["precision=bf16", "strategy=fsdp2"],
    "fsdp2_float8": ["precision=float8", "strategy=fsdp2"],
    "hsdp": ["precision=bf16", "strategy=hsdp"],
    "offload": ["precision=bf16", "strategy=fsdp2", "strategy.cpu_offload=true"],
    "tp": ["precision=bf16", "strategy=tp"],
    "fsdp2_tp": ["precision=bf16", "strategy=fsdp2_tp", "strategy.tensor_parallel_size=1"],
    "compiled": ["precision=bf16", "strategy=single", "strategy.compile=auto"],
    "compiled_ddp": ["precision=bf16", "strategy=ddp", "strategy.compile=inductor"],
    "compiled_fsdp2": ["precision=bf16", "strategy=fsdp2", "strategy.compile=inductor"],
    "compiled_float8": ["precision=float8", "strategy=fsdp2", "strategy.compile=inductor"],
    "selective": ["precision=bf16", "strategy=single", "strategy.activation_checkpointing.mode=selective"],
    "compiled_full": [
        *("precision=bf16", "strategy=fsdp2", "strategy.compile=inductor"),
        "strategy.activation_checkpointing.mode=full",
    ],
    "muon": ["precision=bf16", "strategy=fsdp2"],
    "auto": ["precision=bf16", "strategy=single", "trainer.micro_batch_tokens=auto"],
    "workers": ["precision=bf16", "strategy=single", "trainer.num_workers=2"],
}
TOLERANCE = {"fp32": 1e-4, "float8": 3e-2, "fsdp2_float8": 3e-2, "compiled_float8": 3e-2}
IN_HALF = 1e-2


def hide_gpus() -> None:
    """Runs in a rank, before it looks for its GPUs."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def losses(folder: Path, run_id: str) -> list[float]:
    return [row["train/loss"] for row in rows(folder, run_id) if "train/loss" in row]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder for the runs, with a token store."""
    runs = tmp_path_factory.mktemp("runs")
    drawn_store(runs)
    return runs


def losses_on_cpu(folder: Path, optimizer: str) -> list[float]:
    """Returns the losses of the same pre-training in fp32."""
    run_id = f"cpu_{optimizer}"
    if not (folder / "runs" / run_id).exists():
        arguments = [*PRETRAINING, *DATA, "strategy=single", "precision=fp32", f"optimizer={optimizer}"]
        ranks = Ranks([*arguments, f"run.id={run_id}"], 1, folder / "cpu.txt", hide_gpus, folder=folder)
        assert ranks.wait(300.0) == [0], ranks.read_output()
    return losses(folder, run_id)


@pytest.mark.parametrize("way", WAYS)
def test_a_run_has_the_losses_of_the_cpu(way, folder):
    optimizer = "muon" if way == "muon" else "adamw"
    succeed(folder, "train", *PRETRAINING, *DATA, f"optimizer={optimizer}", *WAYS[way], f"run.id={way}")
    expected = losses_on_cpu(folder, optimizer)
    assert len(set(expected)) == STEPS
    assert losses(folder, way) == pytest.approx(expected, rel=TOLERANCE.get(way, IN_HALF))


@pytest.mark.parametrize("way", ["bf16", "fp16", "fsdp2", "offload", "compiled"])
def test_a_run_resumes_from_its_checkpoint(way, folder):
    overrides = [*PRETRAINING, *DATA, "optimizer=adamw", *WAYS[way]]
    run = folder / "runs" / f"whole_{way}"
    succeed(folder, "train", *overrides, f"run.id=whole_{way}", "trainer.keep_last=9")
    half = run / "checkpoints" / f"step_{STEPS // 2:08d}"
    succeed(folder, "train", *overrides, f"run.id=rest_{way}", f"run.resume={half}", "trainer.keep_last=9")
    assert losses(folder, f"rest_{way}") == pytest.approx(losses(folder, f"whole_{way}")[STEPS // 2 :], rel=2e-3)


@pytest.mark.parametrize("name", FINE_TUNED)
def test_every_task_trains_is_evaluated_and_predicts(name, tmp_path):
    overrides = prepare(name, tmp_path)
    succeed(tmp_path, "train", *overrides, "run.id=one", "precision=bf16")
    found = losses(tmp_path, "one")
    assert sum(found[-4:]) < 0.97 * sum(found[:4])
    succeed(tmp_path, "evaluate", "run=one", "output=evaluated.json")
    metrics = json.loads((tmp_path / "evaluated.json").read_text())["metrics"]
    last = {key: value for key, value in rows(tmp_path, "one")[-1].items() if key.startswith("val/")}
    assert metrics["loss"] == pytest.approx(last["val/loss"], rel=2e-2)
    given_rows = example(name).ROWS
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given_rows), encoding="utf-8")
    succeed(tmp_path, "predict", "run=one", "input=rows.jsonl", "output=predictions.jsonl")
    predictions = jsonl(tmp_path / "predictions.jsonl")
    assert [
        {key: row[key] for key in row if key in given} for row, given in zip(predictions, given_rows, strict=True)
    ] == given_rows
