"""Process that prepares a store and is killed, or runs out of disk space, at a chosen moment.

test_prepare.py runs it by `python -c "from tests.support.data.prepare_process import main; main()" JSON`. With
`python -m`, its workers would import more than they need.
"""

import functools
import json
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from framework.data.preparation import card_files, tokens
from framework.data.preparation import corpus as corpora
from framework.data.preparation.corpus import Cleaning, Progress
from framework.data.preparation.prepare import StoreSpec, prepare_store
from framework.data.reading.sources import TextFiles
from framework.data.store.writer import StoreWriter
from framework.data.tokenization.wordpiece_training import WordPieceTraining
from framework.errors import DataError
from tests.support.data.capital_names import Capitals

CLEANING: dict[str, Any] = {}
"""Settings of cleaning for all preparations of this process."""
MODELS: list[Capitals] = []
"""Model that finds names, if any."""


def prepare(texts: str, store: str, num_workers: int, progress: Progress) -> None:
    """Builds a store in small batches."""
    corpora.BATCH_CHARACTERS, tokens.COMMIT_CHARACTERS = 300, 600
    card_files.draw_card = no_picture
    sources = {"texts": TextFiles(texts)}
    training = WordPieceTraining(vocab_size=200)
    spec = StoreSpec(sources, training, store, Cleaning(**CLEANING), names=next(iter(MODELS), None))
    prepare_store(spec, num_workers=num_workers, progress=progress)


def no_picture(content: Mapping[str, Any], path: Path, title: str) -> None:
    """Replaces the drawing of the card's picture, which takes time."""
    path.write_text("a picture")


def watch(event: Callable[[], None]) -> None:
    """Calls `event` before and after each operation that changes the disk."""

    def with_events(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def wrapped(*arguments: Any, **options: Any) -> Any:
            event()
            result = method(*arguments, **options)
            event()
            return result

        return wrapped

    for owner, names in ((StoreWriter, ("add", "commit", "finish")), (Path, ("replace", "rename", "write_text"))):
        for name in names:
            setattr(owner, name, with_events(getattr(owner, name)))


class Killer:
    """Kills its process at the n-th event."""

    def __init__(self, moment: int) -> None:
        self.remaining = moment

    def __call__(self) -> None:
        """Counts an event, and kills the process at the n-th."""
        if self.remaining == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.remaining -= 1

    def progress(self, stage: str, done: int, total: int) -> None:
        """Counts a progress report as an event."""
        self()


def killed_every_time(texts: str, folder: str, every: int) -> int:
    """Prepares one store per event: each preparation is killed at another event and then resumed.

    Returns:
        Number of stores. Their folders are called 0, 1, ...
    """
    for moment in range(10_000):
        child = os.fork()
        if child == 0:
            killer = Killer(moment * every)
            watch(killer)
            prepare(texts, f"{folder}/{moment}", 1, killer.progress)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return moment
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        child = os.fork()
        if child == 0:
            prepare(texts, f"{folder}/{moment}", 1, ignore)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert status == 0, (moment, status)
    raise AssertionError("killed 10,000 times, the preparation never finished")


def ignore(stage: str, done: int, total: int) -> None:
    """Ignores progress reports."""


def kill_with_workers(who: str) -> Progress:
    """Prints the workers' process ids, then kills this process or its workers, after half of the texts were read."""

    killed = False

    def kill(stage: str, done: int, total: int) -> None:
        nonlocal killed
        if stage == "tokens" and 2 * done > total and not killed:
            killed = True
            workers = [str(worker.pid) for worker in multiprocessing.active_children()]
            sys.stdout.write(f"{' '.join(workers)}\n")
            sys.stdout.flush()
            for pid in map(int, workers) if who == "workers" else [os.getpid()]:
                os.kill(pid, signal.SIGKILL)

    return kill


def main() -> None:
    """Runs the action that its JSON argument selects.

    {"texts", "folder", "every"}: `killed_every_time`. {"texts", "store", "num_workers"}: prepares, with "killed"
    `kill_with_workers`, with "file_bytes" without room for larger files; an error's message goes to standard output.
    All take "cleaning", settings of `Cleaning`, and "capitals", the log of a model that finds names.
    """
    options = json.loads(sys.argv[1])
    MODELS.extend(Capitals(Path(log)) for log in [options.get("capitals")] if log)
    CLEANING.update(options.get("cleaning", {}))
    if CLEANING:
        Cleaning(**CLEANING).detection()  # imports its libraries once, before the forks
    if "every" in options:
        sys.stdout.write(str(killed_every_time(options["texts"], options["folder"], options["every"])))
        return
    if "file_bytes" in options:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options["file_bytes"], resource.RLIM_INFINITY))
    progress = kill_with_workers(options["killed"]) if "killed" in options else ignore
    try:
        prepare(options["texts"], options["store"], options["num_workers"], progress)
    except DataError as error:
        sys.stdout.write(str(error))
