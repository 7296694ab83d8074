"""Makes a token store from text: `python -m framework.prepare corpus=NAME store=FOLDER key=value`."""

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from framework.config.command import command, plain
from framework.config.nodes import check_arguments
from framework.config.schema import PrepareConfig
from framework.data.prepare import Prepared, WordPieceTraining, prepare_store


@command("prepare")
def prepare(composed: DictConfig) -> None:
    """Trains or takes a tokenizer, encodes the corpus, and tells what came of it."""
    settings = PrepareConfig(**check_arguments("", plain(composed), PrepareConfig))
    vocabulary = settings.vocabulary
    training = WordPieceTraining(vocabulary.size, vocabulary.lowercase, vocabulary.alphabet)
    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeRemainingColumn(),
    )
    screen = Console(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bars:
        stages = {stage: bars.add_task(stage, total=None, visible=False) for stage in ("vocabulary", "tokens")}
        prepared = prepare_store(
            [source.build() for source in settings.corpus.sources.values()],
            vocabulary.path or training,
            settings.store,
            settings.corpus.strip_html,
            settings.corpus.deduplicate,
            settings.corpus.on_bad_row,
            settings.overwrite,
            lambda stage, done, total: bars.update(stages[stage], completed=done, total=total, visible=True),
        )
    console = Console()
    console.print(
        f"[bold]{prepared.folder}[/bold] " + ("was there already, from the same texts" if prepared.reused else "made")
    )
    console.print(counts_table(prepared))
    for told in prepared.skipped:
        console.print(f"skipped: {told}", markup=False, highlight=False, soft_wrap=True)


def counts_table(prepared: Prepared) -> Table:
    """The counts of a store."""
    table = Table(show_header=False)
    table.add_column("what")
    table.add_column("count", justify="right")
    for name, count in prepared.counts.items():
        table.add_row(name.replace("_", " "), f"{count:,}")
    return table


if __name__ == "__main__":
    prepare()
