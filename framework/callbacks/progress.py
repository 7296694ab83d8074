"""Shows the progress of a run in one line: a live bar in a terminal, a plain line every few seconds in a log file."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module. These hooks are for EncoderModule.

import time
from collections.abc import Mapping, Sequence

import lightning.pytorch as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text
from typing_extensions import override

from framework.batch import StepBatch
from framework.callbacks.run_log import RunLog
from framework.modules.encoder_module import EncoderModule
from framework.tracking.console import open_console, print_line
from framework.tracking.metric_names import describe, label_in_run

_FORMATS = {"perf/tokens_per_second": "{value:,.0f} tokens/s"}


class ProgressLine(pl.Callback):
    """Shows step, loss, tokens per second, time left and the validation metric on rank 0.

    Its position is after the run log.
    """

    def __init__(
        self,
        run_log: RunLog,
        description: str,
        val_metric: str,
        console: Console | None = None,
        plain_every_n_seconds: float = 15.0,
        further_keys: Sequence[str] = (),
    ) -> None:
        """Creates the callback.

        Args:
            run_log: Run log, which has the newest values.
            description: Name of the run.
            val_metric: Validation metric without the `val/` prefix.
            console: Console for the line; None: standard output.
            plain_every_n_seconds: Seconds between lines if the console is not a terminal.
            further_keys: Keys of metrics that are shown after the validation metric.
        """
        self.run_log = run_log
        self.description = description
        self.last_keys = [f"val/{val_metric}", *further_keys]
        self.console = console or open_console()
        self.plain_every_n_seconds = plain_every_n_seconds
        self._bar: Progress | None = None
        self._start_step = 0
        self._start_time = self._last_plain = time.monotonic()

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Draws the bar if the console is a terminal."""
        self._start_step = trainer.global_step
        self._start_time = self._last_plain = time.monotonic()
        if trainer.is_global_zero and self.console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(
                    bar_width=min(max(self.console.width - 90, 6), 30),
                    style="grey37",
                    complete_style="blue",
                    finished_style="green",
                ),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
                _Values(),
                console=self.console,
                refresh_per_second=2,
            )
            self._bar.add_task(self.description, total=trainer.max_steps, completed=trainer.global_step, values="")
            self._bar.start()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: EncoderModule, outputs: None, batch: StepBatch, batch_idx: int
    ) -> None:
        """Advances the bar by a step. A log file gets a line if enough time has passed."""
        self._update_bar(trainer, self.description)
        if time.monotonic() - self._last_plain >= self.plain_every_n_seconds:
            self._print_plain(trainer)

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Shows that validation runs."""
        self._update_bar(trainer, f"{self.description} (validating)")

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Shows the new validation metric. A log file gets a line at once."""
        self._update_bar(trainer, self.description)
        if trainer.global_step < trainer.max_steps and not trainer.should_stop:
            self._print_plain(trainer)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Stops the bar, which keeps its last state on the screen."""
        self._stop()
        self._print_plain(trainer)

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: EncoderModule, exception: BaseException) -> None:
        """Stops the bar before an error is shown."""
        self._stop()

    def _text(self, trainer: pl.Trainer) -> str:
        latest = self.run_log.latest
        parts = format_values(latest, ["train/loss", "perf/tokens_per_second"])
        last_step = trainer.global_step if trainer.should_stop else trainer.max_steps
        parts += [self._time_left(trainer.global_step, last_step), *format_values(latest, self.last_keys)]
        return ", ".join(parts)

    def _update_bar(self, trainer: pl.Trainer, description: str) -> None:
        if self._bar is not None:
            task = self._bar.task_ids[0]
            self._bar.update(task, completed=trainer.global_step, description=description, values=self._text(trainer))

    def _print_plain(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero and not self.console.is_terminal:
            self._last_plain = time.monotonic()
            progress = f"{self.description}: step {trainer.global_step:,}/{trainer.max_steps:,}"
            print_line(f"{progress}, {self._text(trainer)}", self.console)

    def _time_left(self, step: int, max_steps: int) -> str:
        done, seconds = step - self._start_step, time.monotonic() - self._start_time
        if not done or step >= max_steps:
            return f"took {clock(seconds)}"
        return f"{clock(seconds / done * (max_steps - step))} left"

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class _Values(ProgressColumn):
    """Column with the newest values as text that never wraps."""

    def render(self, task: Task) -> Text:
        """Draws the column."""
        return Text(task.fields["values"], no_wrap=True, overflow="ellipsis")


def format_values(latest: Mapping[str, float], keys: Sequence[str]) -> list[str]:
    """Returns the known values as text, each with its label."""
    known = [key for key in keys if key in latest]
    return [_FORMATS.get(key, "{label} {value:.3f}").format(label=_label(key), value=latest[key]) for key in known]


def _label(key: str) -> str:
    return describe(key).label if key.startswith("train/") else label_in_run(key)


def clock(seconds: float) -> str:
    """Returns seconds as minutes:seconds, or as hours:minutes:seconds from one hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
