"""Writes summary.json: how a run ended, and its metrics."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module. These hooks are for EncoderModule.

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from typing_extensions import override

from framework.callbacks.early_stopping import EarlyStopping
from framework.callbacks.finite_guard import FiniteGuard
from framework.callbacks.preemption import Preemption
from framework.callbacks.rank_lines import failure_text
from framework.callbacks.run_log import RunLog
from framework.errors import CheckpointError
from framework.modules.encoder_module import EncoderModule
from framework.tracking.console import print_line
from framework.tracking.data_facts import read_data_facts
from framework.tracking.metric_names import depends_on_clock
from framework.tracking.metrics_jsonl import read_rows
from framework.tracking.privacy_file import privacy_spent
from framework.tracking.run_files import BEST_METRIC
from framework.tracking.summary_file import write_summary


class Summary(pl.Callback):
    """Writes summary.json on rank 0 at the end of a run and after a failure. The file is replaced atomically."""

    def __init__(
        self,
        run_folder: Path,
        run_log: RunLog,
        preemption: Preemption,
        early_stopping: EarlyStopping,
        guard: FiniteGuard,
        best_metric: str,
        best_mode: str,
        console: Console | None = None,
    ) -> None:
        """Creates the callback.

        Args:
            run_folder: Run folder; metrics.jsonl is read from it and summary.json is written into it.
            run_log: Run log, whose throughput has the seconds and tokens per second.
            preemption: Preemption callback, which has the reason of a planned stop.
            early_stopping: Early-stopping callback, which has the reason of an early end.
            guard: Finite guard, which has the number of skipped steps.
            best_metric: Validation metric without the `val/` prefix.
            best_mode: "min" or "max", for the better values of the metric.
            console: Console for an error while the summary of a failed run is written; None: standard output.
        """
        self.run_folder = run_folder
        self.run_log = run_log
        self.preemption = preemption
        self.early_stopping = early_stopping
        self.guard = guard
        self.best_key = f"val/{best_metric}"
        self.best_mode = best_mode
        self.console = console

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Writes `finished`, `pruned`, `preempted` or `stopped`. A run that early stopping ended is `finished`.

        Nothing is written at the end of a phase that others follow. This hook also runs if no step is left to train,
        after a kill that followed the last checkpoint.
        """
        if trainer.global_step >= trainer.max_steps:
            if self.run_log.cadence.ends_run:
                self._write(trainer, pl_module, "finished", None)
        elif self.early_stopping.is_pruned:
            self._write(trainer, pl_module, "pruned", self.early_stopping.why)
        elif self.early_stopping.why is not None:
            self._write(trainer, pl_module, "finished", self.early_stopping.why)
        elif self.preemption.why is not None:
            self._write(trainer, pl_module, "preempted", self.preemption.why)
        else:
            self._write(trainer, pl_module, "stopped", "a stop was requested before the last step")

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: EncoderModule, exception: BaseException) -> None:
        """Writes `stopped` after a keyboard interrupt, else `failed` with the first failure of all ranks."""
        ended, why = "failed", failure_text(exception)
        if isinstance(exception, KeyboardInterrupt):
            ended, why = "stopped", "interrupted from the keyboard"
        try:
            self._write(trainer, pl_module, ended, why)
        except CheckpointError as error:  # must not hide the error that ended the run
            print_line(str(error), self.console)

    def _write(self, trainer: pl.Trainer, pl_module: EncoderModule, ended: str, why: str | None) -> None:
        if not trainer.is_global_zero:
            return
        throughput = self.run_log.throughput
        rows = read_rows(self.run_folder / "metrics.jsonl")
        summary = {
            "ended": ended,
            "why": why,
            "steps": trainer.global_step,
            "max_steps": self.run_log.cadence.total_steps,
            **({"skipped_steps": self.guard.num_skipped_steps} if self.guard.skipped else {}),
            "tokens": pl_module.runner.num_tokens,
            "wall_seconds": throughput.wall_seconds(),
            "tokens_per_second": throughput.tokens_per_second(),
            # A start without a remaining step measures nothing, so the speed comes from the rows of earlier starts.
            "last": last_values(rows)
            | last_values(read_rows(self.run_folder / "perf.jsonl"))
            | {key: value for key, value in self.run_log.latest.items() if depends_on_clock(key)},
            BEST_METRIC: self.best_key,
            "best": best_row(rows, self.best_key, self.best_mode),
            "data": read_data_facts(self.run_folder),
        }
        if (privacy := privacy_spent(self.run_folder, trainer.global_step)) is not None:
            summary["privacy"] = privacy
        write_summary(self.run_folder, summary)


def last_values(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the newest value of each key."""
    values: dict[str, Any] = {}
    for row in rows:
        values |= row
    values.pop("step", None)
    return values


def best_row(rows: Sequence[Mapping[str, Any]], key: str, mode: str) -> dict[str, Any] | None:
    """Returns step and validation metrics of the first row with the best value of a key; None if no row has the key."""
    candidates = [row for row in rows if row.get(key) is not None]
    if not candidates:
        return None
    choose = min if mode == "min" else max
    best = choose(candidates, key=lambda row: row[key])
    return {name: value for name, value in best.items() if name == "step" or name.startswith("val/")}
