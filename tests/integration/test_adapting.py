"""Tests of freezing, early stopping and LoRA by the commands, from training to prediction and to a folder for peft."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from framework.checkpoint.load import read_full_state
from framework.published.pretrained import load_pretrained
from tests.support.commands.in_process import FINETUNE, TEXTS, Outcome, assert_clear_error

Call = Callable[..., Outcome]
LORA = ["adapter=lora", "adapter.rank=2", "optimizer.lr=0.02", "run.id=lora"]
FROM_BASE = [override for override in FINETUNE if not override.startswith(("model.", "tokenizer.path"))] + [
    "model=from_weights",
    "tokenizer=from_weights",
    "init_from=base/export",
]


def make_base(call: Call) -> None:
    """Exports a run, from which other runs start."""
    assert call("train", *FINETUNE, "run.id=base").code == 0
    assert call("export", "run=base", "output=base/export").code == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.freeze=[encoder.layer.0.*]"], "`trainer.freeze` has the pattern 'encoder.layer.0.*', which matches"),
        (["trainer.freeze=['*']"], "`trainer.freeze` is ['*'], which freezes all parameters"),
        (["trainer.early_stopping_patience=0"], "`trainer.early_stopping_patience` is 0. It must be at least 1"),
        (["trainer.early_stopping_min_delta=-1"], "`trainer.early_stopping_min_delta` is -1.0. It must be"),
        (
            ["trainer.early_stopping_patience=2", "data.validation_fraction=0"],
            "`trainer.early_stopping_patience` is 2, but the data has only train. Early stopping requires",
        ),
        (["adapter=lora"], "`adapter` is set, but `init_from` is null"),
        (["adapter=lora", "init_from=x", "strategy=tp"], "`adapter` is set, but strategy=tp splits each"),
        (["adapter=lora", "init_from=x", "precision=float8"], "precision=float8 does not support its linear layers"),
        (["adapter=lora", "init_from=x", "adapter.targets=[qkv]"], "has 'qkv', which is no linear layer"),
        (["adapter=lora", "init_from=x", "adapter.rang=4"], "unknown config key `adapter.rang`. Did you mean `rank`?"),
    ],
)  # fmt: skip
def test_bad_input_is_told_in_one_line(here: Path, call: Call, overrides: list[str], message: str):
    assert_clear_error(call("train", *FINETUNE, *overrides), message)
    assert not (here / "runs").exists()


def test_a_linear_probe_trains_the_head_and_a_later_start_may_not_thaw(here: Path, call: Call):
    assert call("train", *FINETUNE, "trainer.max_steps=1").code == 0
    probe = [*FINETUNE, "run.id=probe", "init_from=mine", "trainer.freeze=[encoder.*]", "optimizer.lr=0.1"]
    outcome = call("train", *probe)
    assert outcome.code == 0, outcome.err
    before = read_full_state(here / "runs" / "mine" / "checkpoints" / "step_00000001")
    after = read_full_state(here / "runs" / "probe" / "checkpoints" / "step_00000002")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.startswith("head.")}
    perf = (here / "runs" / "probe" / "perf.jsonl").read_text()
    assert "perf/tokens_per_second" in perf and "mfu" not in perf
    thawed = call("train", *probe, "trainer.freeze=[]", "trainer.max_steps=4")
    assert_clear_error(thawed, "`trainer.freeze` was ['encoder.*'] and is now None")


def test_a_run_that_stopped_early_is_finished(here: Path, call: Call):
    stopping = [*FINETUNE, "trainer.max_steps=9", "trainer.val_every_n_steps=1", "optimizer.lr=0"]
    outcome = call("train", *stopping, "trainer.early_stopping_patience=2")
    assert outcome.code == 0, outcome.err
    summary = json.loads((here / "runs" / "mine" / "summary.json").read_text())
    assert (summary["ended"], summary["steps"], summary["max_steps"]) == ("finished", 3, 9)
    assert summary["why"].startswith("early stopping: val/accuracy did not improve on ")
    assert f"ended       {summary['why']}" in outcome.out

    def steps() -> int:
        return len((here / "runs" / "mine" / "metrics.jsonl").read_text().splitlines())

    again = call("train", *stopping, "trainer.early_stopping_patience=2")
    assert (again.code, steps()) == (0, 3) and summary["why"] in again.out
    assert call("train", *stopping, "trainer.early_stopping_patience=4").code == 0
    assert steps() == 5
    assert call("train", *stopping).code == 0
    assert steps() == 9


def test_lora_from_training_to_prediction_and_peft(here: Path, call: Call):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    make_base(call)
    trained = call("train", *FROM_BASE, *LORA)
    assert trained.code == 0, trained.err
    assert call("train", *FROM_BASE, *LORA).code == 0, "a finished run tells its table again"
    run = here / "runs" / "lora"
    summary = json.loads((run / "summary.json").read_text())
    evaluated = call("evaluate", "run=lora", "output=scores.json", "precision=fp32")
    assert evaluated.code == 0, evaluated.err
    scores = json.loads((here / "scores.json").read_text())["metrics"]
    assert scores["loss"] == pytest.approx(summary["last"]["val/loss"], rel=1e-5)

    assert call("export", "run=lora").code == 0
    separate = call("export", "run=lora", "lora=separate")
    assert separate.code == 0, separate.err
    assert "runs/lora/adapter: adapter_config.json, adapter_model.safetensors" in separate.out
    one = json.loads(call("predict", "run=runs/lora/export", f"text={TEXTS[7]}", "precision=fp32").out)
    same = json.loads(call("predict", "run=lora", f"text={TEXTS[7]}", "precision=fp32").out)
    assert one["probability"] == pytest.approx(same["probability"], abs=1e-5)

    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "adapter")
    model = peft.AutoPeftModelForSequenceClassification.from_pretrained(run / "adapter").eval()
    inputs = tokenizer(TEXTS[7], return_tensors="pt")
    with torch.no_grad():
        probabilities = model(**inputs).logits.softmax(-1)[0]
    assert float(probabilities.max()) == pytest.approx(same["probability"], abs=1e-5)

    # Runs that start from this run use its merged weights.
    assert call("train", *FROM_BASE, "init_from=lora", "run.id=next", "optimizer.lr=0").code == 0
    started = read_full_state(here / "runs" / "next" / "checkpoints" / "step_00000002")
    merged = load_pretrained("runs/lora/export").encoder["layers.0.attention.qkv.weight"]
    assert torch.equal(started["encoder.layers.0.attention.qkv.weight"], merged)
    base = load_pretrained("base/export").encoder["layers.0.attention.qkv.weight"]
    assert not torch.allclose(merged, base, atol=1e-4)
    assert_clear_error(call("export", "run=base", "lora=separate"), "base is not a run with an adapter")
    assert_clear_error(call("train", *FROM_BASE, *LORA, "adapter.rank=4"), "`adapter.rank` was 2 and is now 4")
