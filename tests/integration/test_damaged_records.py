"""Tests of damaged values in records of runs and exports: each is a FrameworkError, and huge values do not hang."""

import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from framework.config.command_schema import PredictConfig
from framework.config.shared_schema import PrecisionConfig
from framework.data.reading.rows import Row
from framework.errors import FrameworkError
from framework.runs.trained import build_trained_model, open_trained
from tests.support.commands.in_process import FINETUNE, TEXTS

DELETED = object()
VALUES = [None, [], "x", 10**8, DELETED]


def damaged(content: dict[str, Any], path: tuple[str, ...], value: object) -> dict[str, Any]:
    content = copy.deepcopy(content)
    node = content
    for name in path[:-1]:
        node = node[name]
    if value is DELETED:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return content


def read(folder: Path) -> None:
    """Loads a run or an export, as predict, evaluate and export do."""
    settings = PredictConfig(run=str(folder), precision=PrecisionConfig("fp32"), text=TEXTS[0])
    trained = open_trained(settings)
    row = Row(1, None, dict.fromkeys(trained.task.fields, TEXTS[0]))
    trained.task.build_source([row], trained.tokenizer)
    build_trained_model(trained, torch.device("cpu"))
    if trained.folder is not None:
        assert trained.data is not None


def errors(file: Path, folder: Path, dump: Callable[[Any], str], content: Any, paths: list[tuple[str, ...]]) -> int:
    """Tries every value at every key, and returns the number of rejected ones. Other exceptions fail the test."""
    before, refused = file.read_text(encoding="utf-8"), 0
    texts = ["", "null", "5", "[" * 5000, "{"]
    texts += [dump(damaged(content, path, value)) for path in paths for value in VALUES]
    for text in texts:
        file.write_text(text, encoding="utf-8")
        start = time.monotonic()
        try:
            read(folder)
        except FrameworkError:
            refused += 1
        assert time.monotonic() - start < 20, f"{text[:200]} keeps the machine busy"
    file.write_text(before, encoding="utf-8")
    return refused


@pytest.fixture
def run(here, call) -> Path:
    assert call("train", *FINETUNE).code == 0
    assert call("export", "run=mine").code == 0
    return here / "runs" / "mine"


def test_no_damaged_record_ends_in_a_traceback(run):
    export = run / "export"
    read(run)
    read(export)
    # Checksums would hide the reader's own handling of a damaged file.
    cloze = json.loads((export / "cloze.json").read_text()) | {"blake2b": None}
    (export / "cloze.json").write_text(json.dumps(cloze))
    inner = [("encoder", "num_layers"), ("encoder", "gated"), ("task", "labels"), ("task", "config")]
    assert errors(export / "cloze.json", export, json.dumps, cloze, [("head",), ("encoder",), ("task",), *inner]) > 30
    config = json.loads((export / "config.json").read_text())
    assert errors(export / "config.json", export, json.dumps, config, [("model_type",), ("architectures",)]) > 5
    tokenizer = json.loads((export / "tokenizer.json").read_text())
    parts = [("model",), ("model", "vocab"), ("normalizer",), ("added_tokens",)]
    assert errors(export / "tokenizer.json", export, json.dumps, tokenizer, parts) > 15
    task = json.loads((run / "task.json").read_text())
    assert errors(run / "task.json", run, json.dumps, task, [("labels",), ("config", "max_length")]) > 10
    content = yaml.safe_load((run / "config.yaml").read_text())
    groups = [("model",), ("data",), ("trainer",), ("adapter",), ("run",)]
    assert errors(run / "config.yaml", run, yaml.safe_dump, content, groups) > 10
    read(run)
    read(export)


def test_an_attack_by_a_record_is_refused_by_every_command(run, call, tmp_path):
    trace = tmp_path / "trace"
    attack = {"_target_": "subprocess.getoutput", "cmd": f"touch {trace}"}
    task, export, config = run / "task.json", run / "export" / "cloze.json", run / "config.yaml"
    safe = {file: file.read_text() for file in (task, export, config)}
    task.write_text(json.dumps(damaged(json.loads(safe[task]), ("config", "best_metric"), attack)))
    export.write_text(json.dumps(damaged(json.loads(safe[export]), ("task", "config", "best_metric"), attack)))
    for command in (
        ["predict", "run=mine", f"text={TEXTS[0]}"],
        ["predict", f"run={run / 'export'}", f"text={TEXTS[0]}"],
        ["evaluate", "run=mine"],
        ["export", "run=mine", "output=again"],
    ):
        outcome = call(*command)
        assert outcome.code == 2 and "names the class 'subprocess.getoutput'" in outcome.err, command
    task.write_text(safe[task])
    config.write_text(yaml.safe_dump(damaged(yaml.safe_load(safe[config]), ("data", "where"), {"a": attack})))
    outcome = call("evaluate", "run=mine")
    assert outcome.code == 2 and "names the class 'subprocess.getoutput'" in outcome.err
    assert not trace.exists()
