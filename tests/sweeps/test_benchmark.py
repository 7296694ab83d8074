"""Tests of sweeps over the tasks of GLUE and CLUE: files, order of the jobs, missing files and the table of scores."""

import json
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from rich.console import Console

from framework.config.command import resolve_config
from framework.config.nodes import check_component
from framework.config.resolvers import conf_folder, register_resolvers
from framework.errors import DataError
from framework.sweeps import slurm
from framework.sweeps.outcome import Outcome
from framework.sweeps.plan import Job, Sweep
from framework.sweeps.slurm import SlurmLauncher
from tests.support.data.benchmark_folders import TASKS, write_clue, write_glue
from tests.support.sweeps.sweeping import results, states

CLUE = {"tnews": 2, "iflytek": 2, "afqmc": 2, "cmnli": 3, "ocnli": 3, "csl": 2, "wsc": 2}
LINE = ["--multirun", "experiment=glue", "init_from=start", "data.folder=GLUE", "logger=none"]


def composed(*overrides: str) -> dict:
    register_resolvers()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return resolve_config(compose("train", ["init_from=x", *overrides]))


def load(config: dict):
    task = check_component("task", config["task"]).build()
    data = check_component("data", config["data"]).build()
    return data.load() if not hasattr(task, "problem") else data.load(None, task.problem.answers)


@pytest.mark.parametrize("name", TASKS)
def test_glue_is_read_in_its_own_layout(name, tmp_path):
    write_glue(tmp_path)
    config = composed("experiment=glue", f"glue={name}", f"data.folder={tmp_path}")
    table = load(config)
    assert [len(rows) for rows in table.splits.values()] == [6, 6, 6] if name == "mnli" else [6, 6]
    first = table.splits["train"][0]
    assert first.text.startswith('"Text 0'), "quotation marks are part of the text"
    assert (first.pair is None) == (name in ("cola", "sst2"))
    if name == "stsb":
        assert [row.label for row in table.splits["train"][:3]] == [0.0, 2.5, 5.0]
    metrics = set(config["benchmark"]["metrics"].values())
    task = check_component("task", config["task"]).build()
    task.problem.learn(table.labels, [row.label for row in table.splits["train"]])
    known = set(task.build_metrics())
    assert {metric.partition("/")[2] for metric in metrics} <= known


@pytest.mark.parametrize("name", CLUE)
def test_clue_is_read_in_its_own_layout(name, tmp_path):
    write_clue(tmp_path)
    table = load(composed("experiment=clue", f"clue={name}", f"data.folder={tmp_path}"))
    assert len(table.labels) == CLUE[name]
    assert [len(rows) for rows in table.splits.values()] == ([5, 5] if name.endswith("nli") else [6, 6])
    first = table.splits["train"][0]
    if name == "csl":
        assert (first.text, first.pair) == ("水声学 波束形成", "为解决传统均匀波束形成器的问题")
    if name == "wsc":
        assert first.text.marked == "<e1>小明</e1>告诉老师，<e2>他</e2>病了"


def test_msr_files_are_read_without_the_files_of_the_download_script(tmp_path):
    write_glue(tmp_path)
    for old, new in (("train.tsv", "msr_paraphrase_train.txt"), ("dev.tsv", "msr_paraphrase_test.txt")):
        (tmp_path / "MRPC" / old).rename(tmp_path / "MRPC" / new)
    assert len(load(composed("experiment=glue", "glue=mrpc", f"data.folder={tmp_path}")).splits) == 2


def test_a_file_with_other_columns_is_named_with_both_lists(tmp_path):
    write_glue(tmp_path)
    file = tmp_path / "RTE" / "train.tsv"
    file.write_text(file.read_text().replace("sentence1", "premise", 1))
    with pytest.raises(DataError) as caught:
        load(composed("experiment=glue", "glue=rte", f"data.folder={tmp_path}"))
    message = str(caught.value)
    assert message.startswith(f"{file}, line 1: no column 'sentence1' among ['index', 'premise', 'sentence2', 'label']")
    assert message.endswith("The columns ['sentence1', 'sentence2', 'label'] are read. Name columns of the file.")


def test_jobs_start_from_mnli_missing_files_are_named_and_scores_are_averaged(sweep):
    write_glue(Path("GLUE"))
    (Path("GLUE") / "QQP" / "train.tsv").unlink()
    sweep.line = [*LINE, "glue=mnli,qqp,rte,wnli"]
    runs = {(name, seed): f"mine-glue_{name}-seed_{seed}" for name in TASKS for seed in (0, 1)}
    sweep.metrics = {
        runs["mnli", 0]: {"val/accuracy": 0.80, "test/accuracy": 0.82},
        runs["mnli", 1]: {"val/accuracy": 0.84, "test/accuracy": 0.86},
        runs["rte", 0]: {"val/accuracy": 0.70},
        runs["wnli", 0]: {"val/accuracy": 0.50},
        runs["wnli", 1]: {"val/accuracy": 0.50},
    }
    sweep.roles = {runs["rte", 1]: "die"}
    ended = sweep("seed=0,1", "hydra.launcher.jobs_at_once=3")
    assert "mine: QQP is left out, because GLUE/QQP/train.tsv does not exist" in ended.out
    assert "mine: RTE starts from the runs of MNLI" in ended.out
    config = yaml.safe_load((Path("runs/mine") / runs["rte", 0] / "config.yaml").read_text())
    assert config["init_from"] == f"runs/mine/{runs['mnli', 0]}"
    assert yaml.safe_load((Path("runs/mine") / runs["wnli", 0] / "config.yaml").read_text())["init_from"] == "start"
    # (82 + 84) / 2 for MNLI, 70 for RTE from one seed; WNLI does not count.
    tasks = {each["task"]: each for each in results()["tasks"]}
    assert tasks["MNLI"]["score"] == pytest.approx(83.0) and tasks["RTE"]["finished"] == 1
    assert results()["missing"] == {"QQP": "GLUE/QQP/train.tsv"}
    assert "82.0 ± 2.8" in ended.out and "1 of 2" in ended.out and "of 2 tasks" in ended.out
    assert f"{(83 + 70) / 2:.1f}" in ended.out and "BERT-base 84.7" in ended.out
    assert "no GLUE/QQP/train.tsv" in ended.out
    assert ended.code == 2 and "1 of 6 jobs failed: glue=rte, seed=1" in ended.err


def test_a_job_waits_for_the_run_it_starts_from_and_fails_with_it(sweep):
    write_glue(Path("GLUE"))
    sweep.line = [*LINE, "glue=rte,mnli", "seed=0"]
    sweep.roles = {"mine-glue_mnli": "die"}
    ended = sweep("hydra.launcher.jobs_at_once=2")
    assert ended.code == 2 and "glue=rte (it starts from mine-glue_mnli, which failed)" in ended.err
    sweep.roles = {}
    assert sweep("hydra.launcher.jobs_at_once=2").code == 0
    assert set(states().values()) == {"finished"}
    # Jobs look for the id of a run in the folder of the sweep, so they get its path.
    Path("runs/start").mkdir()
    Path("runs/start/config.yaml").write_text("seed: 0\n")
    sweep.line = [*LINE, "glue=rte,cola", "seed=0"]
    ended = sweep(folder="runs/other")
    config = yaml.safe_load(Path("runs/other/other-glue_cola/config.yaml").read_text())
    assert config["init_from"] == "runs/start"
    assert "other: RTE starts from init_from, because this sweep does not train MNLI" in ended.out


def test_without_any_file_nothing_starts(sweep):
    Path("GLUE").mkdir()
    sweep.line = [*LINE, "glue=mnli,cola", "seed=0"]
    ended = sweep()
    assert ended.code == 2 and "no task has its files; GLUE/MNLI/train.tsv, GLUE/CoLA/train.tsv do not" in ended.err
    assert ended.err.count("\n") == 1 and not Path("runs/mine/sweep.json").exists()


def test_slurm_gets_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr(slurm.shutil, "which", lambda name: f"/bin/{name}")
    lines: list[list[str]] = []
    monkeypatch.setattr(slurm, "submit", lambda line, variables: lines.append(line) or 40 + len(lines))
    monkeypatch.setattr(slurm, "command_flags", lambda config: [])
    launcher = SlurmLauncher()
    launcher.config = None
    first = Job(tmp_path / "first", {"glue": "mnli"}, (), {})
    second = Job(tmp_path / "second", {"glue": "rte"}, (), {}, starts_from="first")
    sweep = Sweep(tmp_path, ("glue",), (first, second))
    outcomes = {"first": Outcome("waiting"), "second": Outcome("waiting")}
    numbers = launcher._submit_missing(sweep, outcomes, Console(quiet=True))
    assert numbers == {"first": 41, "second": 42}
    assert not [each for each in lines[0] if "dependency" in each]
    assert {"--dependency=afterok:41", "--kill-on-invalid-dep=yes"} <= set(lines[1])
    assert json.loads((tmp_path / "sweep.json").read_text())["jobs"][1]["state"] == "pending"
