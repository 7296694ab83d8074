"""Planned stops in this process and on two ranks: the last step, the files, and the signal handlers."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch.distributed as dist

from framework.callbacks import preemption
from framework.callbacks.cadence import Cadence
from framework.callbacks.preemption import Preemption
from framework.callbacks.time_limit import TimeLimit, process_age_seconds
from framework.callbacks.timings import Timings
from framework.checkpoint.layout import newest_complete
from framework.distributed.processes.stop_signals import STOP_SIGNALS
from tests.support.training.toy_run import train

CADENCE = Cadence(max_steps=9, log_every_n_steps=2, validate_every_n_steps=4)
AT = {"training": "on_train_batch_start", "validation": "on_validation_start", "start": "on_train_start"}


class SendSignal(pl.Callback):
    """Sends this process a signal at a hook of a step, on some ranks."""

    def __init__(self, number: int, hook: str, step: int, ranks: Sequence[int] = (0,)) -> None:
        self.number, self.step, self.ranks = number, step, ranks
        setattr(self, hook, self._send)

    def _send(self, trainer: pl.Trainer, *unused: object) -> None:
        if trainer.global_step == self.step and trainer.global_rank in self.ranks:
            os.kill(os.getpid(), self.number)


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets ranks agree after each step, even after a short one."""
    agree_after_each_step(monkeypatch.setattr)


def agree_after_each_step(setattr_: Callable[..., object]) -> None:
    defaults = Preemption.__init__.__defaults__
    changed = tuple(0.0 if value == 0.1 else value for value in defaults)
    assert changed != defaults
    setattr_(Preemption.__init__, "__defaults__", changed)


def summary(run_folder: Path) -> dict:
    return json.loads((run_folder / "summary.json").read_text())


def check_left(run_folder: Path, step: int, why: str) -> None:
    written = summary(run_folder)
    assert (written["ended"], written["why"], written["steps"]) == ("preempted", why, step)
    assert [path.name for path in (run_folder / "checkpoints").iterdir()] == [f"step_{step:08d}"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Returns the rows of an uninterrupted run."""
    run_folder = tmp_path_factory.mktemp("whole")
    train(run_folder, cadence=CADENCE)
    return (run_folder / "metrics.jsonl").read_bytes()


@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize(
    ("number", "where", "sent_at", "ends_at"),
    [
        (signal.SIGTERM, "training", 2, 3),  # neither a row nor a validation is due after step 3
        (signal.SIGINT, "training", 3, 4),  # validation is due
        (signal.SIGUSR1, "validation", 4, 4),
        (signal.SIGUSR1, "start", 0, 1),
    ],
)
def test_a_signal_ends_the_run_after_its_step_and_the_run_resumes_exactly(
    number: signal.Signals, where: str, sent_at: int, ends_at: int, whole: bytes, tmp_path: Path
):
    before = [signal.getsignal(stop) for stop in STOP_SIGNALS]
    train(tmp_path, cadence=CADENCE, extra_callbacks=(SendSignal(number, AT[where], sent_at),))
    check_left(tmp_path, ends_at, f"{number.name} on rank 0")
    assert [signal.getsignal(stop) for stop in STOP_SIGNALS] == before
    train(tmp_path, cadence=CADENCE, checkpoint=newest_complete(tmp_path / "checkpoints"))
    assert summary(tmp_path)["ended"] == "finished"
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def test_a_signal_in_the_last_step_changes_nothing(whole: bytes, tmp_path: Path):
    train(tmp_path, cadence=CADENCE, extra_callbacks=(SendSignal(signal.SIGTERM, AT["training"], 8),))
    assert (summary(tmp_path)["ended"], summary(tmp_path)["why"]) == ("finished", None)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole


def test_handlers_are_restored_after_a_failure(tmp_path: Path):
    class Fail(pl.Callback):
        def on_train_batch_end(self, *unused: object) -> None:
            assert signal.getsignal(signal.SIGTERM) not in before
            raise ValueError("no room")

    before = [signal.getsignal(stop) for stop in STOP_SIGNALS]
    with pytest.raises(ValueError, match="no room"):
        train(tmp_path, cadence=CADENCE, extra_callbacks=(Fail(),))
    assert [signal.getsignal(stop) for stop in STOP_SIGNALS] == before


def whole_and_signalled(folder: str, number: int, ranks: Sequence[int]) -> int:
    """Runs one rank of two: an uninterrupted run, and one that gets a signal in its third step on some ranks.

    Returns:
        Number of tensor broadcasts in the second run; Lightning would make one per step.
    """
    train(Path(folder) / "whole", "fsdp2", CADENCE)
    broadcasts = []
    broadcast, defaults = dist.broadcast, Preemption.__init__.__defaults__
    agree_after_each_step(setattr)
    dist.broadcast = lambda *args, **kwargs: broadcasts.append(args) or broadcast(*args, **kwargs)
    try:
        train(Path(folder) / "left", "fsdp2", CADENCE, extra_callbacks=(SendSignal(number, AT["training"], 2, ranks),))
    finally:
        dist.broadcast, Preemption.__init__.__defaults__ = broadcast, defaults
    return len(broadcasts)


def go_on(run_folder: str) -> None:
    train(Path(run_folder), "fsdp2", CADENCE, checkpoint=newest_complete(Path(run_folder) / "checkpoints"))


@pytest.mark.parametrize(
    ("number", "ranks", "why"),
    [
        (signal.SIGTERM, (1,), "SIGTERM on rank 1"),
        (signal.SIGUSR1, (0, 1), "SIGUSR1 on rank 0"),
        (signal.SIGINT, (0,), "SIGINT on rank 0"),
    ],
)
def test_two_ranks_stop_at_the_same_step_whichever_got_the_signal(
    number: signal.Signals, ranks: tuple[int, ...], why: str, tmp_path: Path, workers
):
    assert workers.run(whole_and_signalled, 2, str(tmp_path), number, ranks) == [0, 0]
    check_left(tmp_path / "left", 3, why)
    workers.run(go_on, 2, str(tmp_path / "left"))
    assert (tmp_path / "left" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_lightning_registers_no_handler_and_sends_no_flag(tmp_path: Path):
    seen = []

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *unused: object) -> None:
            seen.append(type(signal.getsignal(signal.SIGTERM).__self__).__name__)  # type: ignore[union-attr]
            assert trainer._signal_connector._original_handlers == {}

    train(tmp_path, cadence=Cadence(max_steps=2), extra_callbacks=(Look(),))
    assert seen == ["StopSignals"] * 2


def test_a_second_interrupt_ends_the_process_immediately():
    program = (
        "import os, signal\n"
        "from framework.distributed.processes.stop_signals import StopSignals\n"
        "StopSignals().install()\n"
        "for _ in range(2):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os.write(1, b'alive ')\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGINT
    assert ended.stdout == "alive "
    assert ended.stderr.startswith("interrupted: ")


class Clock:
    """Fake age of the process, set by the test."""

    age = 0.0

    def __call__(self) -> float:
        return self.age


class FakeTrainer:
    """Attributes that the callback reads and sets."""

    global_step = 0
    should_stop = False
    limit_val_batches: int | None = None


def leaves_at(
    age: float, step: int, longest: dict[str, float], agree_every_seconds: float = 0.0, writing: float = 0.0
) -> str | None:
    """Returns why a run with a limit of 100 seconds stops after a step at a given age of its process."""
    clock, timings, trainer = Clock(), Timings(), FakeTrainer()
    cadence = Cadence(max_steps=50, validate_every_n_steps=10, checkpoint_every_n_steps=5)
    callback = Preemption(cadence, timings, TimeLimit(100), 60.0, agree_every_seconds, clock)
    callback.on_train_start(trainer, None)  # type: ignore[arg-type]
    timings.longest.update(longest)
    timings.total.update({name: seconds * step for name, seconds in longest.items()})
    timings.running = lambda name: writing if name == "checkpoint" else 0.0  # type: ignore[method-assign]
    clock.age, trainer.global_step = age, step
    if cadence.validates(step):
        callback.on_validation_end(trainer, None)  # type: ignore[arg-type]
    else:
        callback.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]
    assert trainer.should_stop == (callback.why is not None)
    return callback.why


MARGIN = preemption._MARGIN_SECONDS


@pytest.mark.parametrize(
    ("step", "agree_every_seconds", "needed"),
    [
        (1, 0.0, 4 + 3),  # one step and the checkpoint of the stop
        (4, 0.0, 4 + 3),  # the step is saved anyway, and not twice
        (9, 0.0, 4 + 3 + 7),  # the next step validates
        (10, 0.0, 4 + 3),
        (1, 8.5, 2 * 4 + 3),  # the next agreement is two steps away
        (4, 8.5, 2 * 4 + 3 + 3),  # a checkpoint is due on the way
    ],
)
def test_the_run_stops_before_the_next_step_would_exceed_the_limit(
    step: int, agree_every_seconds: float, needed: float
):
    longest = {"data_wait": 1.0, "train": 3.0, "checkpoint": 3.0, "validation": 7.0}
    latest = 100 - needed - MARGIN
    assert leaves_at(latest - 0.001, step, longest, agree_every_seconds) is None
    assert leaves_at(latest + 0.001, step, longest, agree_every_seconds) == "max_time 00:01:40 reached"


@pytest.mark.parametrize(
    ("writing", "needed"),
    [
        (1.0, 4 + 3 + 3),  # the save of the stop waits for the current one
        (5.0, 4 + 5 + 5),  # and the current one takes longer than all before
    ],
)
def test_a_checkpoint_in_progress_is_written_before_that_of_the_stop(writing: float, needed: float):
    longest = {"data_wait": 1.0, "train": 3.0, "checkpoint": 3.0}
    latest = 100 - needed - MARGIN
    assert leaves_at(latest - 0.001, 1, longest, writing=writing) is None
    assert leaves_at(latest + 0.001, 1, longest, writing=writing) == "max_time 00:01:40 reached"


def agreement_steps(step_seconds: Sequence[float], others: Sequence[float] = (0.0,)) -> list[int]:
    """Returns the steps after which a rank agrees, given the seconds of its steps and of another rank's."""
    timings, trainer, agreed_after = Timings(), FakeTrainer(), []
    callback = Preemption(Cadence(max_steps=50), timings)

    def greatest(values: list[int]) -> list[int]:
        agreed_after.append(trainer.global_step)
        other = round(others[min(trainer.global_step, len(others)) - 1] * 1_000_000)
        return [values[0], max(values[1], other), *values[2:]]

    callback._greatest = greatest  # type: ignore[method-assign]
    callback.on_train_start(trainer, None)  # type: ignore[arg-type]
    for trainer.global_step, seconds in enumerate(step_seconds, start=1):
        timings.total["train"] += seconds
        timings.longest["train"] = max(timings.longest["train"], seconds)
        callback.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]
    return agreed_after


def test_short_steps_agree_about_every_tenth_of_a_second_also_after_a_slow_first_step():
    assert agreement_steps([30.0] + [0.03] * 10) == [1, 2, 5, 8, 11]
    # A pause of one second shortens the next interval only.
    assert agreement_steps([30.0, 0.03, 0.03, 1.0] + [0.03] * 8) == [1, 2, 5, 6, 9, 12]


def test_the_slowest_rank_sets_the_interval():
    assert agreement_steps([30.0] + [0.01] * 10, others=[0.03]) == [1, 2, 5, 8, 11]


def test_a_run_past_its_limit_makes_one_step_per_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("framework.callbacks.standard.Preemption", limited)
    train(tmp_path, cadence=CADENCE)
    check_left(tmp_path, 1, "max_time 00:00:01 reached")
    train(tmp_path, cadence=CADENCE, checkpoint=newest_complete(tmp_path / "checkpoints"))
    assert summary(tmp_path)["steps"] == 2


def limited(cadence: Cadence, timings: Timings, *unused: object) -> Preemption:
    return Preemption(cadence, timings, TimeLimit(1))


@pytest.mark.parametrize(
    ("text", "seconds", "shown"),
    [
        ("00:10:00", 600, "00:10:00"),
        ("30:00:05", 108_005, "1-06:00:05"),
        ("2-03:04:05", 183_845, "2-03:04:05"),
        ("90", 90, "00:01:30"),
        (36_000, 36_000, "10:00:00"),
    ],
)
def test_a_time_limit_is_read_in_the_format_of_slurm(text: str | int, seconds: int, shown: str):
    limit = TimeLimit.parse(text)
    assert limit.seconds == seconds
    assert str(limit) == shown


@pytest.mark.parametrize("text", ["", "10:00", "00:60:00", "00:00:61", "1-00", "1.5", "-5", "0", "00:00:00", "soon"])
def test_an_invalid_time_limit_is_rejected(text: str):
    with pytest.raises(ValueError, match="is no"):
        TimeLimit.parse(text)


def test_the_age_of_a_process_counts_from_its_start():
    program = (
        "import time; time.sleep(0.5)\n"
        "from framework.callbacks.time_limit import process_age_seconds\n"
        "print(process_age_seconds())"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert 0.4 < float(output) < 60
    assert process_age_seconds() > float(output) - 60
