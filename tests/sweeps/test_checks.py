"""Tests that all jobs are checked, with their files, before the first starts: `check_jobs`, and `check=true`."""

import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

import framework.sweeps.start as starting
import framework.sweeps.torchrun as launching
from framework.config.command import start
from tests.support.commands.in_process import FINETUNE, LABELS, TEXTS, write_rows

LINE = [*(each for each in FINETUNE if not each.startswith("run.id=")), "hydra.sweep.dir=runs/mine"]


@pytest.fixture
def sweep(here, monkeypatch, capfd):
    """Returns a function that runs a sweep and fails if a job starts."""
    checked: list[object] = []
    assemble = starting.assemble_run

    def assemble_and_count(*given: object) -> object:
        checked.append(given)
        return assemble(*given)

    def refuse(*_: object) -> None:
        raise AssertionError("a job was started")

    monkeypatch.setattr(starting, "assemble_run", assemble_and_count)
    monkeypatch.setattr(launching.TorchrunLauncher, "run", refuse)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def run(*overrides: str) -> tuple[int, str, str, int]:
        GlobalHydra.instance().clear()
        checked.clear()
        monkeypatch.setattr(sys, "argv", ["train", "--multirun", *LINE, *overrides])
        code = 0
        try:
            start("framework.train")
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        captured = capfd.readouterr()
        return code, captured.out, captured.err, len(checked)

    return run


def test_check_true_starts_no_job_and_leaves_nothing(sweep):
    code, out, err, checked = sweep("optimizer.lr=1e-3,2e-3", "seed=0,1,2", "check=true")
    assert (code, err) == (0, "")
    assert out == "check passed for 6 of 6 jobs; nothing was started\n"
    assert checked == 1, "jobs that differ in rate and seed read the same files"
    assert not Path("runs").exists()
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/multirun.yaml").write_text("of the sweep itself")
    assert sweep("optimizer.lr=1e-3,-1", "check=true")[0] == 2
    assert [path.read_text() for path in Path("runs/mine").iterdir()] == ["of the sweep itself"]


def test_a_job_whose_files_cannot_be_used_keeps_all_from_starting(sweep):
    write_rows(Path("other.csv"), TEXTS, LABELS, columns=("text", "stars"))
    code, out, err, checked = sweep("data.train=rows.csv,other.csv")
    assert (code, out, checked) == (2, "", 2)
    assert err.startswith("ConfigError: The job data.train=other.csv cannot run: ")
    assert "no column 'label' among ['text', 'stars']" in err
    assert err.count("\n") == 1


def test_a_value_of_the_optimizer_or_the_schedule_is_found_in_every_job(sweep):
    for override, message in (
        ("optimizer.lr=1e-3,-1", "The job optimizer.lr=-1 cannot run: optimizer.lr is -1.0."),
        ("schedule.warmup_fraction=0.1,2", "cannot run: schedule.warmup_fraction"),
    ):
        code, out, err, checked = sweep(override)
        assert (code, out, checked, err.count("\n")) == (2, "", 1, 1), err
        assert message in err


def test_jobs_are_checked_with_their_secrets_not_with_masks(sweep, monkeypatch):
    monkeypatch.setenv("DATA_PASS", "s3cret")
    seen = []
    monkeypatch.setattr(starting, "assemble_run", lambda config, *_: seen.append(config["data"]["train"]))
    sweep("seed=0,1", "data.train=https://me:${oc.env:DATA_PASS}@host/rows.csv?token=typed", "check=true")
    assert seen and set(seen) == {"https://me:s3cret@host/rows.csv?token=typed"}
