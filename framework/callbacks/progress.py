"""One line that shows where a run stands: a live bar in a terminal, a plain line every few seconds in a log file."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module; ours are for one.

import time
from collections.abc import Mapping

import lightning.pytorch as pl
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text
from typing_extensions import override

from framework.batch import StepBatch
from framework.callbacks.run_log import RunLog
from framework.modules.encoder_module import EncoderModule
from framework.tracking.metric_names import describe


class ProgressLine(pl.Callback):
    """Shows step, loss, tokens a second, time left and the validation metric on rank 0. Stands after what logs."""

    def __init__(
        self,
        run_log: RunLog,
        description: str,
        val_metric: str,
        console: Console | None = None,
        plain_every_n_seconds: float = 15.0,
    ) -> None:
        """Takes what is shown.

        Args:
            run_log: Has the newest values.
            description: Name of the run.
            val_metric: Validation metric without the `val/` prefix.
            console: Where to write; None: standard output.
            plain_every_n_seconds: Between lines where the console is no terminal.
        """
        self.run_log = run_log
        self.description = description
        self.val_key = f"val/{val_metric}"
        self.console = console or Console()
        self.plain_every_n_seconds = plain_every_n_seconds
        self._bar: Progress | None = None
        self._start_step = 0
        self._start_time = self._last_plain = time.monotonic()

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Draws the line for the first time."""
        self._start_step = trainer.global_step
        self._start_time = self._last_plain = time.monotonic()
        if trainer.is_global_zero and self.console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=None, style="grey37", complete_style="blue", finished_style="green"),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
                _Values(),
                console=self.console,
                refresh_per_second=2,
                expand=True,
            )
            self._bar.add_task(self.description, total=trainer.max_steps, completed=trainer.global_step, values="")
            self._bar.start()

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: EncoderModule, outputs: None, batch: StepBatch, batch_idx: int
    ) -> None:
        """Moves on by a step."""
        if trainer.is_global_zero:
            self._show(trainer, self.description)

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Says that validation runs."""
        if self._bar is not None:
            self._show(trainer, f"{self.description} (validating)")

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Shows the new validation metric; a log file gets a line for it at once."""
        if trainer.is_global_zero:
            self._last_plain = -self.plain_every_n_seconds
            self._show(trainer, self.description)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Leaves the last state standing."""
        self._stop()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: EncoderModule, exception: BaseException) -> None:
        """Gives the terminal back before an error is shown."""
        self._stop()

    def _show(self, trainer: pl.Trainer, description: str) -> None:
        step, now = trainer.global_step, time.monotonic()
        values = shown_values(self.run_log.latest, self.val_key)
        text = ", ".join([*values, self._time_left(step, trainer.max_steps, now)])
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, description=description, values=text)
        elif now - self._last_plain >= self.plain_every_n_seconds or step == trainer.max_steps:
            self._last_plain = now
            self.console.print(
                f"{description}: step {step:,}/{trainer.max_steps:,}, {text}", highlight=False, soft_wrap=True
            )

    def _time_left(self, step: int, max_steps: int, now: float) -> str:
        done = step - self._start_step
        if not done or step >= max_steps:
            return f"took {clock(now - self._start_time)}"
        return f"{clock((now - self._start_time) / done * (max_steps - step))} left"

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class _Values(ProgressColumn):
    """The newest values, as text that never wraps."""

    def render(self, task: Task) -> Text:
        """Draws the column."""
        return Text(task.fields["values"], no_wrap=True, overflow="ellipsis")


def shown_values(latest: Mapping[str, float], val_key: str) -> list[str]:
    """Loss, validation metric and tokens a second in words, as far as they are known."""
    shown = []
    if "train/loss" in latest:
        shown.append(f"loss {latest['train/loss']:.3f}")
    if val_key in latest:
        shown.append(f"val {describe(val_key).label} {latest[val_key]:.3f}")
    if "perf/tokens_per_second" in latest:
        shown.append(f"{latest['perf/tokens_per_second']:,.0f} tokens/s")
    return shown


def clock(seconds: float) -> str:
    """Seconds as minutes:seconds, with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
