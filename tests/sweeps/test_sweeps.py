"""Tests of sweeps by the command line's own `main`, with small stand-ins for the training jobs."""

import csv
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

import framework.sweeps.torchrun as launching
from framework.sweeps.plan import Job
from framework.sweeps.start import sweep_lock
from tests.support.sweeps.sweeping import NAMES, results, starts, states

ONE_RATE = "optimizer.lr=choice(1e-3)"


def test_jobs_that_failed_are_named_the_others_kept_and_only_what_is_missing_runs_again(sweep):
    sweep.roles = dict(zip(NAMES, ("finish", "die", "fail", "refuse"), strict=True))
    ended = sweep()
    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert line.startswith("SweepError: 3 of 4 jobs failed: ")
    for message in (
        "optimizer.lr=0.001, seed=1 (killed by SIGKILL)",
        "optimizer.lr=0.002, seed=0 (exit code 1; ValueError (step 3): no room)",
        "optimizer.lr=0.002, seed=1 (exit code 2; DataError: the file rows.csv, row 7: no label; add one.)",
    ):
        assert message in line
    assert states() == dict(zip(NAMES, ("finished", "failed", "failed", "failed"), strict=True))
    assert results()["ended"] == "failed"

    # The summary.json and failure.json of the first start say nothing about the second.
    sweep.roles = {NAMES[2]: "die"}
    ended = sweep()
    assert "3 of 4 jobs to run" in ended.out
    assert "1 of 4 jobs failed: optimizer.lr=0.002, seed=0 (killed by SIGKILL). The results" in ended.err
    sweep.roles = {}
    ended = sweep()
    assert (ended.code, ended.err) == (0, "")
    assert set(states().values()) == {"finished"} and results()["ended"] == "finished"
    assert [len(starts(name)) for name in NAMES] == [1, 2, 3, 2]

    assert "0 of 4 jobs to run" in sweep().out
    assert "1 of 3 jobs to run" in sweep(ONE_RATE, "seed=0,1,2").out
    assert "3 of 3 jobs to run" in sweep(ONE_RATE, "seed=0,1,2", "trainer.max_steps=20").out
    ended = sweep(ONE_RATE, "optimizer.weight_decay=0.3")
    assert (ended.code, ended.out) == (2, "")
    assert "belongs to another config: `optimizer.weight_decay` was 0.1 and is now 0.3" in ended.err


def test_seeds_are_folded_to_mean_and_sample_deviation(sweep):
    # For 2, 3 and 7: mean 4, squared differences 4 + 1 + 9 = 14 over n - 1 = 2.
    names = [f"mine-lr_{lr}-seed_{seed}" for lr in ("0.001", "0.002") for seed in (0, 1, 2)]
    sweep.losses = dict(zip(names, (2.0, 3.0, 7.0, 5.0, 6.0, 6.0), strict=True))
    sweep.roles = {names[4]: "die", names[5]: "die"}
    ended = sweep("seed=0,1,2")
    one, other = results()["seeds"]
    assert one["values"] == {"optimizer.lr": "0.001"} and other["values"] == {"optimizer.lr": "0.002"}
    assert (one["last"]["n"], one["last"]["mean"]) == (3, 4.0)
    assert one["last"]["deviation"] == pytest.approx(7**0.5)
    assert (one["best"]["mean"], one["best"]["deviation"]) == (3.5, pytest.approx(7**0.5))
    assert other["last"] == {"n": 1, "mean": 5.0, "deviation": None}
    assert "4.0000 ± 2.6458" in ended.out and "1 of 3" in ended.out

    with Path("runs/mine/sweep.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    assert [line["run"] for line in lines] == names
    expected = {"seed": "2", "metric": "val/loss", "last": "7.0", "best": "6.5", "best_step": "10"}
    assert {name: lines[2][name] for name in expected} == expected


def test_jobs_beside_each_other_get_a_signal_passed_on_and_go_on_later(sweep):
    sweep.roles = {NAMES[0]: "wait", NAMES[1]: "wait"}

    def interrupt() -> None:
        while not all((Path("runs/mine") / name / "waits").exists() for name in NAMES[:2]):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    ended = sweep("hydra.launcher.jobs_at_once=2")
    assert ended.code == 0
    assert "SIGTERM: 2 jobs save and exit" in ended.out and "The sweep stopped before its end" in ended.out
    assert results()["ended"] == "preempted"
    assert states() == dict(zip(NAMES, ("preempted", "preempted", "waiting", "waiting"), strict=True))
    sweep.roles = {}
    assert "4 of 4 jobs to run" in sweep().out
    assert results()["ended"] == "finished"


def test_jobs_have_a_group_their_own_gpus_and_a_lock(sweep, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3,4,6,7")
    sweep.recorded_variables = ("CUDA_VISIBLE_DEVICES", "WANDB_RUN_GROUP", "WANDB_JOB_TYPE")
    parallel = ("strategy=ddp", "hydra.launcher.processes=2")
    ended = sweep(*parallel, "hydra.launcher.jobs_at_once=3")
    assert (ended.code, ended.out) == (2, "")
    assert (
        "processes=2 and jobs_at_once=3 need 6 GPUs, but this process sees 5. Each process needs its own GPU."
        in ended.err
    )
    assert sweep(*parallel, "hydra.launcher.jobs_at_once=2").code == 0
    first, second = (starts(name)[0] for name in NAMES[:2])
    assert (first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]) == ("1,3", "4,6")
    assert (first["WANDB_RUN_GROUP"], first["WANDB_JOB_TYPE"]) == ("mine", "optimizer.lr=0.001")

    with sweep_lock(Path("runs/mine")):
        ended = sweep(*parallel)
    assert ended.code == 2 and "The sweep in runs/mine is running" in ended.err


def test_ranks_of_a_killed_job_are_found_by_their_mark(tmp_path):
    ours = launching.job_mark(Job(tmp_path / "a", {}, (), {}))
    processes = {
        value: launching.subprocess.Popen(["sleep", "60"], env={**os.environ, "CLOZE_SWEEP_JOB": value})
        for value in (ours, ours + "b")
    }
    # Until a child has executed its program, it still has the environment of this process.
    for process in processes.values():
        while b"sleep" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
            time.sleep(0.001)
    launching.kill_marked(ours)
    assert processes[ours].wait(10) == -signal.SIGKILL
    other = processes[ours + "b"]
    assert other.poll() is None
    other.kill()
    other.wait()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["hydra.launcher.job_at_once=2"], "unknown config key `hydra.launcher.job_at_once`"),
        (["+hydra.launcher.gpus=2"], "unexpected keyword argument 'gpus'"),
        (["hydra.launcher.processes=two"], "hydra.launcher.processes is 'two'. It must be an integer of at least 1."),
        (["hydra.launcher.jobs_at_once=0"], "`hydra.launcher.jobs_at_once` is 0. It must be at least 1"),
        (
            ["hydra.launcher.processes=2", "strategy=single"],
            "The job optimizer.lr=0.001, seed=0 cannot run: strategy=single cannot run in",
        ),
        (["run.id=x"], "run.id is x for every job. Each job of a sweep needs its own run folder."),
        (["seed=0,0"], "2 jobs have the same run folder runs/mine/mine-lr_0.001-seed_0"),
        (["trainer.keep_last=0"], "cannot run: `trainer.keep_last` is 0"),
        (["trainer.keep_lost=1"], "unknown config key `trainer.keep_lost`. Did you mean `keep_last`?"),
        (["hydra.sweep.dir=runs/-x"], "hydra.sweep.dir is 'runs/-x', whose last part is no valid prefix"),
        (["hydra.sweeper.max_batch_size=2"], "hydra.sweeper.max_batch_size is 2"),
        (["hydra/launcher=basic"], "hydra/launcher is basic, which trains all jobs in one process"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_sweeps_are_refused_before_a_job_starts(sweep, overrides: list[str], message: str):
    ended = sweep(*overrides)
    assert ended.code == 2 and ended.err.count("\n") == 1
    assert message in ended.err
    assert list(Path().rglob("starts")) == []


def test_torchrun_may_not_start_a_sweep(sweep, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    ended = sweep()
    assert ended.code == 2 and "The sweep runs under torchrun." in ended.err
    assert not Path("runs").exists()


def test_without_a_name_more_values_extend_the_same_sweep(sweep):
    def name(*overrides: str) -> set[str]:
        before = set(Path("runs").glob("*"))
        assert sweep(*overrides, folder=None).code == 0
        return {path.name for path in set(Path("runs").glob("*")) - before}

    (first,) = name()
    assert first.startswith("pretrain_demo-")
    assert name("seed=0,1,2") == set()
    (other,) = name(ONE_RATE, "optimizer.weight_decay=0.3")
    assert other != first
    ran = [
        json.loads((folder / "sweep.json").read_text())["jobs"] for folder in (Path("runs", first), Path("runs", other))
    ]
    assert [len(jobs) for jobs in ran] == [6, 2]


def test_a_path_with_signs_of_hydra_is_kept(sweep):
    folder = "runs/a, b=c's/mine"
    assert sweep("optimizer.lr=1e-3", "seed=0,1", folder="'" + folder.replace("'", "\\'") + "'").code == 0
    assert sorted(path.name for path in Path(folder).glob("mine-*")) == ["mine-seed_0", "mine-seed_1"]
