"""Prints and logs facts about the data at the start of a run."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module. These hooks are for EncoderModule.

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import lightning.pytorch as pl
from rich.console import Console
from typing_extensions import override

from framework.data.fact_warnings import warnings_of
from framework.data.facts import SplitFacts
from framework.modules.encoder_module import EncoderModule
from framework.tracking.console import print_line
from framework.tracking.data_facts import SKIPPED_ROWS_FILE

logger = logging.getLogger(__name__)

_SHOWN_LABELS = 6


class DataLines(pl.Callback):
    """Prints one line per split on rank 0 and logs the warnings about the data.

    Args:
        splits: Facts by split.
        run_folder: Run folder, which holds the list of skipped rows.
        console: Console for the lines; None: standard output.
    """

    def __init__(self, splits: Mapping[str, SplitFacts], run_folder: Path, console: Console | None = None) -> None:
        self.splits = splits
        self.run_folder = run_folder
        self.console = console

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: EncoderModule) -> None:
        """Prints the lines and logs the warnings at each start of the run."""
        if not trainer.is_global_zero:
            return
        for line in data_lines(self.splits):
            print_line(line, self.console)
        for warning in warnings_of(self.splits):
            logger.warning(warning)
        if any(facts.skipped for facts in self.splits.values()):
            logger.warning(f"All skipped rows are listed in {self.run_folder / SKIPPED_ROWS_FILE}.")


def data_lines(splits: Mapping[str, SplitFacts]) -> Iterator[str]:
    """Yields one line per split: rows used, skipped and omitted, labels, and truncated texts."""
    width = max(map(len, splits))
    for split, facts in splits.items():
        parts = [f"{facts.rows:,} {facts.unit}{_origin(split, splits)}"]
        if facts.labels:
            parts.append(_labels(facts.labels))
        parts += [f"{name} {value}" for name, value in facts.all_notes.items()]
        cutting = facts.cutting
        if cutting.cut:
            parts.append(
                f"{cutting.cut:,} of {cutting.texts:,} texts cut{cutting.limit} "
                f"({cutting.lost_share:.1%} of the tokens lost)"
            )
        yield f"data: {split:<{width}}  {'; '.join(parts)}"


def _origin(split: str, splits: Mapping[str, SplitFacts]) -> str:
    """Describes how many rows of the file are used, or states that the split is a share of `train`."""
    facts = splits[split]
    if not facts.file:
        return " (a share of train)" if splits["train"].file and facts.unit == splits["train"].unit else ""
    lost = {"skipped": facts.num_skipped, **facts.left_out, "repaired": facts.repaired}
    details = ", ".join(f"{number:,} {reason}" for reason, number in lost.items() if number)
    return f" of {facts.read:,} in {Path(facts.file).name}{f' ({details})' if details else ''}"


def _labels(labels: Mapping[str, int]) -> str:
    if len(labels) <= _SHOWN_LABELS:
        return ", ".join(f"{label}: {number:,}" for label, number in labels.items())
    return f"{len(labels):,} labels with {min(labels.values()):,} to {max(labels.values()):,} each"
