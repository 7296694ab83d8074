"""Builds a token store from text: `python -m framework.prepare corpus=NAME store=FOLDER key=value`."""

if __name__ == "__main__":
    from framework.config.command import start
    from framework.tracking.console import make_console_dispensable

    make_console_dispensable()
    start("framework.prepare")  # imports this module, and so all of the below, when the config is composed

from pathlib import Path

from omegaconf import DictConfig
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

import framework.distributed.processes.early_check  # noqa: F401  must come before Lightning
from framework.config.command import command, resolve_config
from framework.config.command_schema import CorpusConfig, PrepareConfig
from framework.config.dry_check import print_check
from framework.config.nodes import check_arguments
from framework.data.preparation.card_files import CARD_PICTURE_FILE
from framework.data.preparation.personal_data import NameModel
from framework.data.preparation.prepare import Prepared, StoreSpec, describe_preparation, prepare_store
from framework.data.store_data import too_little_to_split
from framework.tracking.console import open_console, print_line


@command("prepare")
def prepare(composed: DictConfig) -> Path:
    """Trains or loads a tokenizer, encodes the corpus and prints the counts; returns the folder of the store."""
    settings = PrepareConfig(**check_arguments("", resolve_config(composed, PrepareConfig), PrepareConfig))
    corpus = settings.corpus
    spec = StoreSpec(
        {name: source.build() for name, source in corpus.sources.items()},
        settings.vocabulary.build(),
        settings.store,
        corpus,
        corpus.on_bad_row,
        settings.stream,
        settings.overwrite,
        corpus.canary_settings,
        _name_model(corpus),
    )
    if settings.check:
        print_check(describe_preparation(spec))
        return Path(settings.store)
    with PassBars() as bars:
        prepared = prepare_store(spec, settings.num_workers, bars.advance)
    console = open_console()
    console.print(
        f"[bold]{prepared.folder}[/bold] " + ("was there already, from the same texts" if prepared.reused else "made")
    )
    console.print(counts_table(prepared))
    print_line(f"its card: {prepared.folder / CARD_PICTURE_FILE}", console)
    for reason in prepared.skipped:
        print_line(f"skipped: {reason}", console)
    too_little = too_little_to_split(str(prepared.folder))
    if too_little is not None:
        print_line(f"warning: {too_little}", console)
    return Path(prepared.folder)


run = prepare.run


def _name_model(corpus: CorpusConfig) -> NameModel | None:
    if corpus.personal_data_model is None:
        return None
    from framework.config.name_model import TrainedNames  # other preparations need no model

    return TrainedNames.of(corpus.personal_data_model, corpus.personal_data_types)


class PassBars:
    """Progress bars, one for each pass over the corpus; without a terminal each pass prints one line instead."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description:>10}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(),
        )
        self._screen = open_console(stderr=True)
        self._bars = Progress(*columns, console=self._screen, transient=True, disable=not self._screen.is_terminal)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "PassBars":
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def advance(self, stage: str, done: int, total: int) -> None:
        """Updates the bar of a pass.

        Args:
            stage: Name of the pass.
            done: Bytes read so far.
            total: Bytes of the corpus.
        """
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total)
            if not self._screen.is_terminal:
                self._screen.print(f"{stage}: reading {total / 1e6:,.1f} MB", highlight=False)
        self._bars.update(self._tasks[stage], completed=done)


def counts_table(prepared: Prepared) -> Table:
    """Builds a table of a store's counts."""
    table = Table(show_header=False)
    table.add_column("what")
    table.add_column("count", justify="right")
    for name, count in prepared.counts.items():
        table.add_row(name.replace("_", " "), f"{count:,}")
    return table
