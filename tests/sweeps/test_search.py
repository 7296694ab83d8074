"""Tests of searches by the command line's own `main`, with small stand-ins for the training jobs."""

import json
import math
import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

from framework.sweeps.plan import Job
from framework.tracking.study import JOURNAL_FILE, StudyTrial, import_optuna
from tests.support.sweeps.sweeping import Ended, Sweeping, results, starts

RATE = "optimizer.lr=tag(log, interval(1e-4, 1e-2))"
SEARCH = ("hydra/sweeper=optuna", RATE, "seed=0", "hydra.sweeper.startup_trials=4")


def loss_of(job: Job) -> float:
    """Returns a loss with its minimum, 2.0, at a learning rate of 1e-3."""
    return 2.5 + (math.log10(job.config["optimizer"]["lr"]) + 3) ** 2


@pytest.fixture
def search(sweep: Sweeping, monkeypatch: pytest.MonkeyPatch):
    """Returns a function that runs searches. `roles` sets the behaviour of jobs by the order of their first start."""
    kept: dict[str, int] = {}
    original = sweep.command

    def command(launcher: object, job: Job, flags: object) -> list[str]:
        number = kept.setdefault(job.id, len(kept))
        sweep.losses[job.id] = loss_of(job)
        sweep.roles[job.id] = by_number.get(number, "finish")
        return original(launcher, job, flags)

    by_number: dict[int, str] = {}
    monkeypatch.setattr(sweep, "command", command)

    def run(*overrides: str, roles: dict[int, str] | None = None) -> Ended:
        by_number.clear()
        by_number.update(roles or {})
        return sweep(*SEARCH, *overrides)

    return run


def study():
    optuna = import_optuna()
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(f"runs/mine/{JOURNAL_FILE}"))
    return optuna.load_study(study_name="mine", storage=storage)


def states() -> list[str]:
    return [trial.state.name for trial in study().trials]


def test_it_comes_near_the_best_value_and_goes_on_where_it_ended(search):
    ended = search("hydra.sweeper.trials=20")
    assert (ended.code, ended.err) == (0, "")
    values = [trial.value for trial in study().trials]
    assert len(values) == 20 and study().direction.name == "MINIMIZE"
    # For uniform draws from two decades, the mean squared distance from their middle is 1 / 3.
    assert sum(values[-10:]) / 10 < 2.0 + 1 / 5
    assert [job["best"] for job in results()["jobs"]] == pytest.approx(values)
    best = study().best_trial
    assert (
        f"best is trial {best.number} with val/loss {best.value:.4f}: optimizer.lr={best.params['optimizer.lr']}"
        in ended.out
    )

    assert "best is trial" in search("hydra.sweeper.trials=20").out
    assert [len(starts(job["run"])) for job in results()["jobs"]] == [1] * 20
    search("hydra.sweeper.trials=24", "hydra.sweeper.sampler=random")
    assert len(results()["jobs"]) == len({job["run"] for job in results()["jobs"]}) == 24


def test_trials_that_failed_are_named_once_and_tried_again_by_the_next_start(search):
    ended = search("hydra.sweeper.trials=5", "hydra.sweeper.trials_at_once=2", roles={1: "die", 3: "refuse"})
    assert ended.code == 2 and ended.err.startswith("SweepError: 2 of 5 jobs failed: optimizer.lr=")
    assert states() == ["COMPLETE", "FAIL", "COMPLETE", "FAIL", "COMPLETE"]
    failed = [study().trials[number].params for number in (1, 3)]
    ended = search("hydra.sweeper.trials=5")
    assert (ended.code, ended.err) == (0, "")
    assert [trial.params for trial in study().trials[5:]] == failed
    assert states()[5:] == ["COMPLETE", "COMPLETE"]
    assert sorted(len(starts(job["run"])) for job in results()["jobs"]) == [1, 1, 1, 2, 2]
    assert search("hydra.sweeper.trials=5").code == 0 and len(states()) == 7


def test_a_pruned_trial_is_no_failure_and_does_not_run_again(search):
    for _ in range(2):
        ended = search("hydra.sweeper.trials=3", roles={1: "prune"})
        assert (ended.code, ended.err) == (0, "")
        assert states() == ["COMPLETE", "PRUNED", "COMPLETE"]
        assert [job["state"] for job in results()["jobs"]] == ["finished", "pruned", "finished"]
        assert [len(starts(job["run"])) for job in results()["jobs"]] == [1, 1, 1]


def test_a_trial_that_left_goes_on_before_others_are_chosen(search):
    def interrupt() -> None:
        while not list(Path("runs").rglob("waits")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    ended = search("hydra.sweeper.trials=3", roles={1: "wait"})
    assert ended.code == 0 and "The sweep stopped before its end" in ended.out
    assert states() == ["COMPLETE", "RUNNING"]
    params = study().trials[1].params
    assert search("hydra.sweeper.trials=3").code == 0
    assert states() == ["COMPLETE"] * 3 and study().trials[1].params == params


def test_choices_and_whole_numbers_are_searched_and_equal_trials_share_a_job(search):
    ended = search("optimizer.lr=choice(1e-3, 2e-3)", "hydra.sweeper.trials=6", "hydra.sweeper.trials_at_once=3")
    assert ended.code == 0
    assert len(states()) == 6 and len(results()["jobs"]) == 2
    assert [len(starts(job["run"])) for job in results()["jobs"]] == [1, 1]
    finished = search(
        "optimizer.lr=1e-3",
        "trainer.val_every_n_steps=int(interval(1, 6))",
        "hydra.sweep.dir=runs/whole",
        "hydra.sweeper.trials=2",
    )
    assert finished.code == 0 and re.search(r"trainer.val_every_n_steps=\d(,|$)", finished.out, re.M)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lr=1e-3"], "No key is searched. hydra/sweeper=optuna needs"),
        (["optimizer.lr=tag(log, interval(0, 1))"], "is no valid interval"),
        (
            ["hydra.sweeper.sampler=best"],
            "hydra.sweeper.sampler is 'best', which is unknown. Choose one of tpe, random.",
        ),
        (["hydra.sweeper.pruner=true"], "hydra.sweeper.pruner is True"),
        (["hydra.sweeper.trials=0"], "`hydra.sweeper.trials` is 0"),
        (["hydra/launcher=basic"], "is combined with a launcher that does not wait"),
        (["trainer.keep_last=0"], "cannot run: `trainer.keep_last` is 0"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_searches_are_refused_before_a_job_starts(search, overrides: list[str], message: str):
    ended = search(*overrides)
    assert ended.code == 2 and ended.err.count("\n") == 1
    assert message in ended.err
    assert list(Path().rglob("starts")) == []


def test_another_search_does_not_go_on_in_the_same_folder(search):
    assert search("hydra.sweeper.trials=1").code == 0
    ended = search("optimizer.weight_decay=0.1,0.2")
    assert (
        ended.code == 2
        and "searches optimizer.lr, but this command searches optimizer.lr, optimizer.weight_decay" in ended.err
    )
    ended = search("optimizer.lr=1e-3,2e-3")
    assert ended.code == 2 and "searches other values of optimizer.lr" in ended.err


def test_a_metric_that_is_not_reached_is_a_failure(search, monkeypatch):
    monkeypatch.setattr("tests.sweeps.test_search.loss_of", lambda job: math.nan)
    ended = search("hydra.sweeper.trials=2")
    assert ended.code == 2 and "it has no finite val/loss, which a search needs; set data.validation" in ended.err
    assert states() == ["FAIL", "FAIL"]


def test_a_trial_hears_whether_it_is_worth_going_on(search, tmp_path):
    search("hydra.sweeper.trials=3", "hydra.sweeper.startup_trials=1")
    folder = Path("runs/mine")
    for number in range(2):
        _, other = StudyTrial(folder, number), study()
        assert other.trials[number].state.name == "COMPLETE"
    begun = study()
    for losses in ((3.0, 2.0), (3.2, 2.1)):
        trial = begun.ask()
        for step, loss in enumerate(losses, start=1):
            trial.report(loss, step)
        begun.tell(trial, losses[-1])
    number = begun.ask().number
    mine = StudyTrial(folder, number)
    assert not mine.should_prune(3.05, 1)
    assert mine.should_prune(2.5, 2)
    assert json.loads(json.dumps(study().trials[number].intermediate_values)) == {"1": 3.05, "2": 2.5}
