"""Builds a token store from text: `python -m framework.prepare corpus=NAME store=FOLDER key=value`."""

if __name__ == "__main__":
    from framework.config.command import start
    from framework.tracking.console import make_console_dispensable

    make_console_dispensable()
    start("framework.prepare")  # imports this module, and so all of the below, when the config is composed

from pathlib import Path

from omegaconf import DictConfig
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
from framework.tracking.pass_bars import pass_bars


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
    with pass_bars("MB of text", 1e6) as advance:
        prepared = prepare_store(spec, settings.num_workers, advance)
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
    from framework.inference.name_model import TrainedNames  # other preparations need no model

    return TrainedNames.of(corpus.personal_data_model, corpus.personal_data_types)


def counts_table(prepared: Prepared) -> Table:
    """Builds a table of a store's counts."""
    table = Table(show_header=False)
    table.add_column("what")
    table.add_column("count", justify="right")
    for name, count in prepared.counts.items():
        table.add_row(name.replace("_", " "), f"{count:,}")
    return table
