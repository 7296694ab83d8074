"""The progress line, in a terminal and in a log file."""

import io
import re
from pathlib import Path

from rich.console import Console

from framework.callbacks.cadence import Cadence
from framework.callbacks.progress import ProgressLine, clock, format_values
from framework.callbacks.run_log import RunLog
from framework.callbacks.throughput import Throughput
from framework.callbacks.timings import Timings
from tests.support.training.toy_run import build_module


class Trainer:
    """Attributes of the trainer that the line reads."""

    is_global_zero = True
    global_step = 0
    max_steps = 2000
    should_stop = False


def drive(console: Console, plain_every_n_seconds: float = 1e9, stops: bool = False) -> None:
    run_log = RunLog(Path("unused"), Cadence(2000), Throughput(Timings()))
    line, trainer, module = (
        ProgressLine(run_log, "demo", "accuracy", console, plain_every_n_seconds),
        Trainer(),
        build_module(),
    )
    line.on_train_start(trainer, module)
    trainer.global_step = 1000
    run_log.latest |= {"train/loss": 2.3456, "perf/tokens_per_second": 5012.4}
    line.on_train_batch_end(trainer, module, None, None, 0)
    run_log.latest |= {"val/accuracy": 0.75}
    line.on_validation_start(trainer, module)
    trainer.should_stop = stops
    line.on_validation_end(trainer, module)
    line.on_train_end(trainer, module)


def test_a_log_file_gets_lines_for_validation_and_the_end_only():
    stream = io.StringIO()
    drive(Console(file=stream, width=60))
    lines = stream.getvalue().splitlines()
    shown = "demo: step 1,000/2,000, loss 2.346, 5,012 tokens/s, 0:00 left, val accuracy 0.750"
    assert lines == [shown, shown]


def test_a_run_that_ends_early_shows_no_remaining_time():
    stream = io.StringIO()
    drive(Console(file=stream, width=60), stops=True)
    shown = "demo: step 1,000/2,000, loss 2.346, 5,012 tokens/s, took 0:00, val accuracy 0.750"
    assert stream.getvalue().splitlines() == [shown]


def test_a_log_file_gets_a_line_after_each_interval():
    stream = io.StringIO()
    drive(Console(file=stream, width=60), plain_every_n_seconds=0.0)
    assert stream.getvalue().splitlines()[0] == "demo: step 1,000/2,000, loss 2.346, 5,012 tokens/s, 0:00 left"


def test_a_terminal_gets_one_line_that_is_redrawn():
    stream = io.StringIO()
    drive(Console(file=stream, width=110, force_terminal=True, color_system=None))
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).replace("\r", "\n").rstrip().splitlines()[-1]
    assert re.fullmatch(r"demo [━╸╺ ]+ 1,000/2,000 loss 2.346, 5,012 tokens/s, 0:00 left, val accuracy 0.750 *", last)


def test_unknown_values_are_omitted():
    assert format_values({}, ["train/loss", "val/loss"]) == []
    assert format_values({"val/loss": 3.0}, ["train/loss", "val/loss"]) == ["val loss 3.000"]


def test_seconds_as_a_clock():
    assert [clock(0.4), clock(59.6), clock(3725)] == ["0:00", "1:00", "1:02:05"]
