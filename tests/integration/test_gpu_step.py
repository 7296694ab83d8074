"""The benchmark of training steps runs whole on the CPU, in tiny shapes, and loses nothing to a case that hangs."""

import json
import sys

import pytest

from tests.benchmarks import gpu_cases, gpu_step
from tests.benchmarks.gpu_training import NUM_LOSSES
from tests.support.training.workloads import workload

CASES = [
    ("eager", "bert_base"),
    ("graph", "bert_base"),
    ("compiled", "modernbert_base"),
    ("compiled_graph", "bert_base"),
    ("transformers", "minilm_sst2"),
]


def reported(capsys, *arguments: str) -> dict:
    """Runs a case in this process; returns the fields that it reported."""
    gpu_cases.main([*arguments, "--device", "cpu", "--quick"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(gpu_step.ROW)]
    fields: dict = {}
    for line in lines:
        fields |= json.loads(line.removeprefix(gpu_step.ROW))
    return fields


@pytest.fixture(scope="module")
def eager_losses() -> list[float]:
    return []


@pytest.mark.parametrize(("case", "model"), CASES)
def test_a_case_of_training_reports_its_speed(case, model, capsys, eager_losses):
    row = reported(capsys, case, model)
    if row.get("state") == "not available":
        pytest.skip(row["note"])
    assert row["tokens_per_second"] > 0
    if case == "transformers":
        return
    assert row["recompiles"] == 0
    assert len(row["losses"]) == NUM_LOSSES and len(set(row["losses"])) > NUM_LOSSES // 2
    if case == "eager":
        eager_losses += row["losses"]
    elif model == "bert_base":
        assert row["losses"] == pytest.approx(eager_losses, rel=1e-2)
    if "graph" in case:
        assert row["captures"] > 0


@pytest.mark.parametrize("case", ["ceilings", "attention"])
def test_a_case_of_kernels_reports_rates(case, capsys):
    row = reported(capsys, case, "-")
    assert "stands in for" in row["note"] and row["measured"]
    assert all(rate.endswith(("TFLOP/s", "GB/s")) for rate in row["measured"].values())


def test_what_a_case_reported_before_it_hung_is_kept(tmp_path, monkeypatch, capsys):
    program = "import time; input(); print('row: {\"losses\": [2.0, 1.0]}', flush=True); time.sleep(60)"
    programs = {
        "eager": "print('row: {\"losses\": [2.0, 1.25]}')",
        "graph": program,
        "compiled": "raise SystemExit('no layers')",
    }
    monkeypatch.setattr(gpu_step, "command", lambda case, model, given: [sys.executable, "-c", programs[case]])
    monkeypatch.setitem(gpu_step.LIMITS, "graph", 3)
    gpu_step.main(["--cases", "eager,graph,compiled", "--models", "bert_base", "--out", str(tmp_path)])
    rows = [json.loads(line) for line in (tmp_path / "gpu_step.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["state"] for row in rows] == ["ok", "stopped after 3 s", "failed with 1"]
    assert rows[1]["loss_difference"] == pytest.approx(0.2)
    assert rows[2]["note"] == "no layers"
    assert "| graph | bert_base |" in capsys.readouterr().out


def test_no_case_starts_after_the_time_of_the_call(tmp_path, capsys):
    gpu_step.main(["--cases", "ceilings", "--out", str(tmp_path), "--minutes", "0"])
    assert "no time left" in capsys.readouterr().out


def test_sequences_have_the_lengths_of_the_data():
    assert workload("bert_base").lengths(10_000).mean() == pytest.approx(260, rel=0.02)
    assert workload("minilm_sst2").lengths(10_000).mean() == pytest.approx(24, rel=0.02)
    assert set(workload("modernbert_base", 1024).lengths(10).tolist()) == {1024}
