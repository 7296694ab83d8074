"""Tests of trainer.evaluate_test, and of the columns that framework.predict writes, with windows over long texts."""

import csv
import json
from pathlib import Path

import pytest

from tests.support.commands.in_process import FINETUNE, assert_clear_error

WINDOWS = ["task.windows=max", "task.max_length=5", "task.stride=1"]


def test_the_test_split_is_evaluated_with_the_last_weights(call):
    ended = call("train", *FINETUNE, *WINDOWS, "data.test_fraction=0.2", "trainer.evaluate_test=true")
    assert ended.code == 0, ended.err
    assert "test accuracy" in ended.out
    last = json.loads(Path("runs/mine/summary.json").read_text())["last"]
    assert call("evaluate", "run=mine", "split=test", "output=test.json", "precision=fp32", "report=false").code == 0
    metrics = json.loads(Path("test.json").read_text())["metrics"]
    assert {f"test/{name}" for name in metrics} == {name for name in last if name.startswith("test/")}
    assert {name: last[f"test/{name}"] for name in metrics} == pytest.approx(metrics, abs=1e-6)

    Path("in.tsv").write_text("index\ttext\n7\ta good film of 1990\n9\ta poor film\n")
    arguments = ("run=mine", "input=in.tsv", "precision=fp32", "keep_columns=[index]")
    columns = "output_columns={index: index, prediction: label}"
    assert call("predict", *arguments, "output=out.tsv", columns).code == 0
    with Path("out.tsv").open() as file:
        rows = list(csv.reader(file, delimiter="\t"))
    assert rows[0] == ["index", "prediction"] and [row[0] for row in rows[1:]] == ["7", "9"]
    assert {row[1] for row in rows[1:]} <= {"0", "1"}
    refused = call("predict", *arguments, "output=other.tsv", "output_columns={prediction: answer}")
    assert refused.code == 2
    assert "output_columns.prediction is answer, which is none of text, index, label" in refused.err
    assert not Path("other.tsv").exists()


def test_a_run_without_a_test_split_is_refused(call):
    ended = call("train", *FINETUNE, "trainer.evaluate_test=true")
    assert_clear_error(ended, "`trainer.evaluate_test` is true, but the data has only train, validation.")
