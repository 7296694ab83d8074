"""Tests that all command lines in fenced blocks of README.md files and CONTRIBUTING.md work as written.

An unknown line fails the test, so that no page contains an untested command. Overrides shorten long trainings. Lines
that need other machines are listed with the test of what they start.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from transformers import BertConfig, BertForPreTraining

from framework.data.tokenization.tokenizer import Tokenizer
from tests.support.commands.in_process import LABELS, TEXTS, TINY, run_command, train_vocabulary, write_rows

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    str(page.relative_to(ROOT))
    for page in [*sorted(ROOT.rglob("README.md")), ROOT / "CONTRIBUTING.md"]
    if not {".venv", "runs", "node_modules"} & set(page.relative_to(ROOT).parts)
]
_BLOCK = re.compile(r"^```(?:bash|sh)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(
    r"(?:[A-Z_]+=\S+ )*(?:\.venv/bin/)?(?:python|cloze|launch/|slurm/|docker|sbatch|kubectl|sky|pre-commit)\b"
)

NOT_RUN_HERE = {
    "launch/quickstart.sh": "test_scripts.py (launch/), and by hand: minutes",
    "QUICK=1 launch/quickstart.sh": "test_scripts.py (launch/), and by hand: minutes",
    "launch/test.sh": "continuous integration",
    "launch/test.sh tests/sweeps": "continuous integration",
    "launch/setup.sh demo": "continuous integration",
    "launch/setup.sh demo test": "continuous integration",
    "python -m pytest tests/data": "continuous integration",
    ".venv/bin/python -m pytest tests/sweeps/test_submit.py": "continuous integration",
    "pre-commit install": "nothing: it changes the checkout",
}
"""Lines that take minutes or change the checkout, with the job that runs them instead."""

ELSEWHERE = {
    r"docker(/build\.sh)? .*|docker/build\.sh": "tests/launch/test_docker.py",
    r"CLOZE_ARGUMENTS=.*docker compose.*": "tests/launch/test_docker.py",
    r"kubectl .*|sky .*": "tests/launch/test_cloud_files.py",
    r"launch/multi_node\.sh --hosts .*": "tests/launch/test_hosts.py",
    r"sbatch .*": "tests/integration/test_slurm.py",
    r"slurm/submit\.sh .*": "tests/sweeps/test_submit.py",
    r"python -m framework\.train -m .*hydra/launcher=slurm.*": "tests/sweeps/test_slurm_launcher.py",
    r"python -m framework\.audit .*audit\.attack\..*": "tests/integration/test_audit_command.py",
    r"python -m framework\.audit .*audit=membership.*": "tests/integration/test_membership_audit.py",
    r"python -m framework\.(prepare|train|audit) .*canaries.*": "tests/integration/test_canary_audit.py",
    r"python -m framework\.audit .*sentiment\.jsonl\.gz.*": "tests/audits/test_suite.py",
    r"python -m framework\.plan .*": "tests/integration/test_plan_command.py",
    r"python -m framework\.train .*electra.*": "tests/integration/test_replaced_tokens.py",
    r"python -m framework\.mine .*": "tests/integration/test_mine_command.py",
    r"python -m framework\.(train|evaluate) .*(mined|scifact).*": "tests/integration/test_mine_command.py",
    r"launch/faq\.sh .*": "tests/integration/test_mine_command.py",
    r"python -m tests\.benchmarks\..*": "tests/benchmarks",
    r"python -m tests\.support\.faults.*": "tests/integration/test_faults.py",
    r"python -m framework\.(train|predict) .*prototypes.*": "tests/integration/test_own_task.py",
    r"python -m framework\.(train|predict|evaluate) .*(image|run=clip|run=digits).*": "tests/tasks/test_battery.py",
    r"python -m framework\.(train|predict|export) .*run(\.id)?=(splade|colbert).*": "tests/tasks/test_battery.py",
    r"python -m framework\.(train|predict) .*run(\.id)?=reranker.*": "tests/tasks/test_battery.py",
}
"""Tests of what lines of these patterns start; several need SLURM, Docker or hosts of their own."""

OFFLINE = ["logger=none", "precision=fp32"]
SMALL = [*OFFLINE, *TINY, "trainer.max_steps=2", "trainer.max_epochs=null", "trainer.global_batch_size=4"]
ENCODER = ["model=demo", "init_from=null", "tokenizer=folder", "tokenizer.path=tokenizer", "task.max_length=16"]
PRETRAIN = [*SMALL, "task.sequence_length=32", "data.validation_fraction=0.2"]

SHORTENED = [
    (r"framework\.prepare vocabulary=given", []),
    (r"framework\.prepare$", ["check=true"]),
    (r"framework\.prepare .*", ["vocabulary.vocab_size=80"]),
    (
        r"\.train experiment=finetune_sst2 data=rotten_tomatoes",
        ["check=true", *ENCODER, *SMALL, *(f"data.{split}=train.tsv" for split in ("train", "validation", "test"))],
    ),
    (r"\btrain experiment=finetune_sst2", [*ENCODER, *SMALL]),
    (r"\btrain -m experiment=finetune_sst2", ["check=true", *ENCODER, *SMALL]),
    (r"\btrain experiment=finetune_private", ["check=true", *ENCODER, *SMALL, "adapter=none"]),
    (r"\btrain experiment=finetune_ner", ["check=true", "task.stride=4", *ENCODER, *SMALL]),
    (r"\btrain experiment=finetune_demo", [*SMALL, "task.max_length=16", "data.validation_fraction=0.2"]),
    (
        r"\.train experiment=continue_pretraining .*init_from=FOLDER",
        ["check=true", *OFFLINE, "data.validation_fraction=0.2", "task.sequence_length=16"],
    ),
    (r"\btrain experiment=pretrain_demo data\.store=(\S+)", [*PRETRAIN, r"tokenizer.path=\1/tokenizer"]),
    (r"framework\.audit .*audit=groups", ["audit.groups.min_rows=8", "audit.groups.num_samples=100"]),
    (r"framework\.(evaluate|predict|explain|audit) run=(mine|FOLDER audit=)", ["precision=fp32"]),
]
"""Overrides by pattern of the line. The first match is used."""


def lines_of(page: str) -> list[str]:
    """Returns the command lines of a page in order, without comments."""
    blocks = _BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
    lines = [line for block in blocks for line in block.splitlines()]
    return [re.sub(r"\s{2,}#.*", "", line).strip() for line in lines if _COMMAND.match(line)]


def runs_here(line: str) -> bool:
    return line not in NOT_RUN_HERE and not any(re.fullmatch(pattern, line) for pattern in ELSEWHERE)


LINES = list(dict.fromkeys((page, line) for page in PAGES for line in lines_of(page)))
"""Every line of every page. A line that is not run here is listed with its reason."""


def test_pages_are_found():
    assert {"README.md", "conf/README.md", "framework/tasks/README.md", "launch/README.md"} <= set(PAGES)
    assert len(LINES) > 40


def test_the_named_tests_exist():
    assert [test for test in ELSEWHERE.values() if not (ROOT / test).exists()] == []


def document(number: int) -> str:
    return ". ".join(TEXTS[number:] + TEXTS[:number]) + "."


@pytest.fixture(scope="module")
def reader_files(tmp_path_factory) -> Path:
    """Returns a folder with every file that the pages name."""
    folder = tmp_path_factory.mktemp("files")
    train_vocabulary(TEXTS, 80, folder / "tokenizer")
    for name in ("train.tsv", "dev.tsv"):
        rows = "".join(f"{row}\t{label}\n" for row, label in zip(TEXTS, LABELS, strict=True))
        (folder / name).write_text(rows, encoding="utf-8")
    for name in ("train.conll", "dev.conll"):
        (folder / name).write_text("Anna B-PER\nvisits O\nRome B-LOC\n\n" * 4, encoding="utf-8")
    write_rows(folder / "labelled.csv", TEXTS, LABELS)
    (folder / "texts").mkdir()
    (folder / "shards").mkdir()
    for number in range(30):
        (folder / "texts" / f"{number}.txt").write_text(document(number), encoding="utf-8")
    table = pa.table({"text": [document(number) for number in range(30)]})
    pq.write_table(table, folder / "shards" / "0.parquet", row_group_size=4)
    pq.write_table(table.rename_columns(["body"]), folder / "articles.parquet")
    page = (ROOT / "conf" / "corpus" / "README.md").read_text(encoding="utf-8")
    (mixed,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert yaml.safe_load(mixed)["sources"].keys() == {"books", "news"}
    (folder / "my_conf" / "corpus").mkdir(parents=True)
    (folder / "my_conf" / "corpus" / "mixed.yaml").write_text(mixed, encoding="utf-8")
    config = BertConfig(
        vocab_size=Tokenizer.from_folder(folder / "tokenizer").vocab_size,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    BertForPreTraining(config).save_pretrained(folder / "published")
    shutil.copytree(folder / "tokenizer", folder / "published", dirs_exist_ok=True)
    for name, labels in (("original", LABELS), ("edited", LABELS[::-1])):
        write_rows(folder / f"{name}.csv", TEXTS, labels)
    (folder / "tests.jsonl").write_text('{"name": "one", "kind": "label", "label": "1", "cases": ["a good film"]}\n')
    (folder / "terms.yaml").write_text("female: [good, fine]\nmale: [bad, poor]\n", encoding="utf-8")
    rows = [f"{row},{label},{'fm'[n // 2 % 2]}" for n, (row, label) in enumerate(zip(TEXTS, LABELS, strict=True))]
    (folder / "people.csv").write_text("\n".join(["text,label,gender", *rows]) + "\n", encoding="utf-8")
    pairs = "sent_more,sent_less,bias_type\na good film of 1990,a bad film of 1990,age\n"
    (folder / "crows_pairs_anonymized.csv").write_text(pairs, encoding="utf-8")
    (folder / "hosts.txt").write_text("10.0.0.5\n10.0.0.6\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder_of(reader_files, tmp_path_factory) -> Callable[[str], Path]:
    """Returns a page's working folder, in which later lines find the runs and stores of earlier ones."""
    folders: dict[str, Path] = {}

    def folder(page: str) -> Path:
        if page not in folders:
            folders[page] = tmp_path_factory.mktemp("page") / "files"
            shutil.copytree(reader_files, folders[page])
        return folders[page]

    return folder


@pytest.mark.parametrize(("page", "line"), [each for each in LINES if runs_here(each[1])], ids=lambda value: value[:70])
def test_a_line_works(folder_of, monkeypatch, capfd, page, line):
    monkeypatch.chdir(folder_of(page))
    if line.startswith("launch/"):
        script, *arguments = shlex.split(line)
        run_program(str(ROOT / script), "--dry-run", *arguments)
        if not any(argument.startswith("data.store=") for argument in arguments):
            return
        line = shlex.join(["python", "-m", "framework.train", *arguments[2:], "strategy=single"])
    program, *arguments = shlex.split(line)
    if program.endswith("python"):
        assert arguments.pop(0) == "-m"
        program = arguments.pop(0)
    if program in ("framework.launch", "tests.architecture"):
        dry = ["--dry-run"] if program == "framework.launch" else []
        run_program(sys.executable, "-m", program, *arguments[:1], *dry, *arguments[1:])
        return
    name = arguments.pop(0) if program == "cloze" else program.removeprefix("framework.")
    more = overrides_of(line)
    if {"STORE", "FOLDER"} & set(re.findall(r"[A-Z]+", line)):
        arguments = [given_files(argument) for argument in arguments]
    code = run_command(monkeypatch, name, *arguments, *more)
    captured = capfd.readouterr()
    assert code == 0, captured.err
    assert captured.out


def overrides_of(line: str) -> list[str]:
    for pattern, overrides in SHORTENED:
        match = re.search(pattern, line)
        if match:
            return [match.expand(override) for override in overrides] if match.groups() else list(overrides)
    assert re.search(r"--help|--cfg", line), f"no test knows the line {line!r}: add it to SHORTENED or ELSEWHERE"
    return []


def given_files(argument: str) -> str:
    """Replaces file names of the reader by files of this test."""
    return argument.replace("=FOLDER", "=published").replace("=STORE", "=given_store")


def run_program(*command: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout
