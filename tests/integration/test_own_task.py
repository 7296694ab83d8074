"""Runs the task of framework/tasks/README.md from outside the package, with its files and commands, at a tiny size."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.support.commands.in_process import LABELS, TEXTS, TINY, train_vocabulary

ROOT = Path(__file__).resolve().parents[2]
SMALL = [*TINY, "init_from=null", "tokenizer=folder", "tokenizer.path=tokenizer", "precision=fp32", "logger=none"]


def section(name: str) -> str:
    text = (ROOT / "framework" / "tasks" / "README.md").read_text(encoding="utf-8")
    (body,) = re.findall(rf"^## {name}\n(.*?)(?:^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return body


def test_the_task_of_the_readme_trains_and_predicts(tmp_path):
    text = section("A task of your own")
    files = re.findall(r"^```(?:python|yaml)\n# (\S+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in files] == [
        "mine/task.py",
        "conf/task/prototypes.yaml",
        "conf/experiment/prototypes.yaml",
    ]
    for name, content in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    train_vocabulary(TEXTS, 80, tmp_path / "tokenizer")
    for name in ("train.tsv", "dev.tsv"):
        rows = "".join(f"{row}\t{label}\n" for row, label in zip(TEXTS, LABELS, strict=True))
        (tmp_path / name).write_text(rows, encoding="utf-8")

    def run(line: str, *more: str) -> str:
        python, *arguments = shlex.split(line)
        assert python == "python"
        # As in an installation of the package, with the current folder on the path.
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, *arguments, *more]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    train, predict = (line for line in text.splitlines() if line.startswith("python "))
    run(train, "model=demo", *SMALL, "trainer.max_epochs=1")
    prediction = json.loads(run(predict, "precision=fp32"))
    assert prediction["label"] in set(LABELS)
    run("python -m framework.export run=prototypes trust=[mine.task]")
    record = json.loads((tmp_path / "runs/prototypes/export/cloze.json").read_text())
    assert record["head"] == "prototypes"
    assert record["tensors_without_class"]["names"] == ["prototypes.weight"]
