"""Early stopping: the step at which a run ends, its message, and the same result after a kill or on two ranks."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
from rich.console import Console
from typing_extensions import override

from framework.callbacks.cadence import Cadence
from framework.callbacks.early_stopping import EarlyStopping, Patience
from framework.checkpoint.layout import complete_checkpoints, newest_complete, step_of
from framework.checkpoint.retention import Retention
from framework.errors import ConfigError
from framework.modules.encoder_module import EncoderModule
from framework.runs.folder import RunFolder
from framework.runs.session import is_finished
from framework.tracking.analysis.closing_table import print_closing_table
from framework.tracking.study import StudyTrial, create_study
from tests.support.processes.workers import WorkerPool
from tests.support.training.cuts import CutAt, CutError
from tests.support.training.toy_run import build_module, train

CADENCE = Cadence(max_steps=12, log_every_n_steps=1, validate_every_n_steps=2, checkpoint_every_n_steps=1)
LOSSES = {2: 1.0, 4: 0.8, 6: 0.9, 8: 0.85, 10: 0.7, 12: 0.9}
TWO = Patience(2)
WHY = "early stopping: val/loss did not improve on 0.8 of step 4 in 2 validations"


class Scripted(EncoderModule):
    """Toy task whose validations return the losses of the script."""

    @override
    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.validation_metrics |= {"val/loss": LOSSES[self.global_step]}


def run(
    folder: Path,
    patience: Patience | None = TWO,
    strategy: str = "single",
    callbacks: tuple[pl.Callback, ...] = (),
    trial: StudyTrial | None = None,
) -> None:
    """Makes a run, or the missing rest of one."""
    module = build_module()
    module.__class__ = Scripted
    train(
        folder,
        strategy,
        CADENCE,
        checkpoint=newest_complete(folder / "checkpoints"),
        module=module,
        patience=patience,
        extra_callbacks=callbacks,
        retention=Retention(keep_last=1, keep_best=1),
        trial=trial,
    )


def run_on_rank(folder: str) -> None:
    run(Path(folder), strategy="ddp")


def run_trial_on_rank(folder: str, study: str, number: int) -> None:
    run(Path(folder), None, "ddp", trial=StudyTrial(Path(study), number))


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def steps_of_rows(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(folder)
    return folder


@pytest.mark.parametrize(
    ("mode", "patience", "values", "stops_after"),
    [
        ("max", Patience(1), [0.5, 0.6, 0.6], 3),  # an equal value does not count as worse
        ("max", Patience(2), [0.5, 0.6, 0.5, 0.7, 0.6, 0.7], 6),  # an improvement resets the count
        ("min", Patience(2), [0.5, 0.4, 0.45, 0.41], 4),
        ("min", Patience(2), [0.5, 0.4, 0.3, 0.2], None),
        ("max", Patience(2, min_delta=0.1), [0.5, 0.58, 0.59], 3),
        ("max", Patience(2, min_delta=0.1), [0.5, 0.58, 0.61], None),  # compared with the best value, not with the last
        ("min", Patience(2, min_delta=0.1), [0.5, 0.42, 0.39, 0.3], None),
        ("max", Patience(2), [math.nan, 0.1, math.inf, math.nan], 4),
        ("max", Patience(2), [math.nan, math.nan], 2),
    ],
)
def test_the_step_at_which_it_stops(mode: str, patience: Patience, values: list[float], stops_after: int | None):
    callback, trainer = EarlyStopping(patience, "f1", mode), SimpleNamespace(global_step=0, should_stop=False)
    stopped = []
    for step, value in enumerate(values, start=1):
        trainer.global_step = step
        callback.on_validation_end(trainer, SimpleNamespace(validation_metrics={"val/f1": value}))
        stopped.append(trainer.should_stop)
    assert stopped == [stops_after is not None and step >= stops_after for step in range(1, len(values) + 1)]


def test_the_message():
    callback = EarlyStopping(Patience(3, min_delta=0.01), "accuracy", "max")
    assert callback.why is None
    callback.load_state_dict({"best": 0.83, "best_step": 120, "validations_without_improvement": 3})
    assert callback.why == (
        "early stopping: val/accuracy did not improve on 0.83 of step 120 by more than 0.01 in 3 validations"
    )


def test_the_run_ends_as_finished_and_keeps_its_best_and_last_checkpoint(uninterrupted: Path, tmp_path: Path):
    assert steps_of_rows(uninterrupted) == list(range(1, 9))
    written = summary(uninterrupted)
    assert (written["ended"], written["why"], written["steps"]) == ("finished", WHY, 8)
    assert written["best"]["step"] == 4
    assert [step_of(folder) for folder in complete_checkpoints(uninterrupted / "checkpoints")] == [4, 8]
    console = Console(width=200, record=True, file=(tmp_path / "out").open("w"))
    print_closing_table(uninterrupted, console)
    assert WHY in console.export_text()


@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_train_batch_start", 5),
        ("on_train_batch_end", 7),
        ("on_validation_start", 8),
        ("on_validation_end", 6),
        ("on_validation_end", 8),  # the last checkpoint exists, the summary does not
    ],
)
def test_a_killed_and_resumed_run_ends_at_the_same_step(hook: str, step: int, uninterrupted: Path, tmp_path: Path):
    with pytest.raises(CutError):
        run(tmp_path, callbacks=(CutAt(hook, step),))
    run(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (uninterrupted / "metrics.jsonl").read_bytes()
    ours, theirs = summary(tmp_path), summary(uninterrupted)
    assert [ours[name] for name in ("ended", "why", "steps", "tokens", "best")] == [
        theirs[name] for name in ("ended", "why", "steps", "tokens", "best")
    ]


def test_two_processes_end_at_the_same_step(workers: WorkerPool, uninterrupted: Path, tmp_path: Path):
    workers.run(run_on_rank, 2, str(tmp_path))
    assert steps_of_rows(tmp_path) == steps_of_rows(uninterrupted)
    assert summary(tmp_path)["why"] == WHY


def test_a_trial_is_pruned_if_others_of_its_search_were_better(workers: WorkerPool, tmp_path: Path):
    folder = tmp_path / "search"
    folder.mkdir()
    study = create_study(folder, "minimize", {"name": "median", "startup_trials": 1, "warmup_steps": 0})
    for _ in range(2):
        better = study.ask()
        for step, loss in ((2, 1.2), (4, 0.85), (6, 0.7)):
            better.report(loss, step)
        study.tell(better, 0.7)
    trials = [study.ask().number for _ in range(2)]
    run(tmp_path / "one", None, trial=StudyTrial(folder, trials[0]))
    workers.run(run_trial_on_rank, 2, str(tmp_path / "two"), str(folder), trials[1])
    for name in ("one", "two"):
        written = summary(tmp_path / name)
        assert (written["ended"], written["steps"]) == ("pruned", 6)
        assert written["why"].startswith("pruned by the search: val/loss 0.9 at step 6 is worse")
        assert step_of(newest_complete(tmp_path / name / "checkpoints")) == 6
    assert [study.trials[number].intermediate_values for number in trials] == [{2: 1.0, 4: 0.8, 6: 0.9}] * 2
    with pytest.raises(ConfigError, match=r"`trial\.number` is 4, but the study in .* has 4 trials"):
        StudyTrial(folder, 4)
    with pytest.raises(ConfigError, match=r"there is no study\.journal"):
        StudyTrial(tmp_path, 0)


def test_a_stopped_run_stays_finished_unless_the_patience_grows(uninterrupted: Path, tmp_path: Path):
    newest = newest_complete(uninterrupted / "checkpoints")
    folder = RunFolder(uninterrupted, uninterrupted / "checkpoints", newest, is_new=False)
    parts = SimpleNamespace(max_steps=12)
    assert is_finished(folder, parts, TWO)
    assert is_finished(folder, parts, Patience(1))
    assert not is_finished(folder, parts, Patience(3))
    assert not is_finished(folder, parts, None)
    older = RunFolder(uninterrupted, uninterrupted / "checkpoints", newest.with_name("step_00000004"), is_new=False)
    assert not is_finished(older, parts, TWO)


def test_patience_that_is_set_later_counts_from_the_start(tmp_path: Path):
    with pytest.raises(CutError):
        run(tmp_path, None, callbacks=(CutAt("on_train_batch_start", 7),))
    run(tmp_path)
    assert (summary(tmp_path)["why"], summary(tmp_path)["steps"]) == (WHY, 8)


def test_with_more_patience_the_run_continues_to_its_last_step(tmp_path: Path):
    run(tmp_path)
    run(tmp_path, Patience(3))
    assert steps_of_rows(tmp_path) == list(range(1, 13))
    written = summary(tmp_path)
    assert (written["ended"], written["why"], written["best"]["step"]) == ("finished", None, 10)
