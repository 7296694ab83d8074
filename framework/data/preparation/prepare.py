"""Makes a token store from sources: clean, train or take a tokenizer, split into sentences, encode, write.

The order of the files, the text and the settings decide the store to the last byte; the number of workers, and how
often the work was killed and gone on with, do not. The command `framework.prepare` composes the config, calls this and
shows the counts.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from framework.data.preparation.card_files import stored_boundaries, write_card
from framework.data.preparation.card_packing import packing_efficiency
from framework.data.preparation.cleaning import screen
from framework.data.preparation.corpus import Cleaning, Corpus, Progress
from framework.data.preparation.exclusion import ExclusionIndex
from framework.data.preparation.folder import PartialFolder, alone_at, find_store, read_meta
from framework.data.preparation.pool import work_in_order
from framework.data.preparation.settings import check_streamable, store_settings
from framework.data.preparation.tokens import Totals, write_tokens
from framework.data.reading.sources import Source
from framework.data.store.row_groups import save_row_groups
from framework.data.store.writer import COMPLETE_FILE, TOKENIZER_FOLDER, StoreWriter
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.vocabulary import GivenTokenizer, VocabularyTraining
from framework.data.tokenization.word_counts import WordCounts
from framework.errors import DataError, FrameworkError

PLAIN = Cleaning()
"""Nothing but empty documents and exact repetitions is dropped."""


@dataclass(frozen=True)
class Prepared:
    """A store that is ready.

    Attributes:
        folder: Of the store; its tokenizer is in the folder `tokenizer` there.
        reused: True where the store was there already, made from the same files with the same settings.
        counts: files, bytes, documents (kept), duplicates, near_duplicates, excluded, empty, skipped_rows, sentences,
            tokens, unknown_tokens, vocab_size; where evaluation texts are excluded, evaluation_texts and those that
            are too short to be searched for, evaluation_texts_too_short.
        skipped: What was wrong with the first rows that were left out.
        fingerprint: Of the store.
    """

    folder: Path
    reused: bool
    counts: dict[str, int]
    skipped: list[str]
    fingerprint: str


def prepare_store(
    sources: Mapping[str, Source],
    vocabulary: GivenTokenizer | VocabularyTraining,
    folder: str | Path,
    cleaning: Cleaning = PLAIN,
    on_bad_row: Literal["error", "skip"] = "error",
    num_workers: int | None = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
    streamed: bool = False,
) -> Prepared:
    """Makes the store, or finds that it is there.

    The work is done in `<folder>.partial`. After a kill, a full disk or a lost worker the next start with the same
    settings goes on there; when the store is complete it gets its final name.

    Args:
        sources: By name, read in this order.
        vocabulary: A tokenizer, or how to train one.
        folder: Of the store.
        cleaning: What is done about texts.
        on_bad_row: See `framework.data.reading.files.Reading`.
        num_workers: Processes; None: one for each core that this process may use; 0 or 1: all is done here.
        overwrite: Replace a store that was made from other files or settings.
        progress: Is told how far it is.
        streamed: Keep no ids: training reads the texts again from where they are.

    Raises:
        ConfigError: Ids are to be streamed from a source that cannot be read from the middle, the vocabulary's size
            leaves no room for the alphabet, or near-duplicates cannot be told by the settings.
        DataError: A source or the tokenizer cannot be used, there are no documents, `folder` holds something else,
            cannot be written or is being written by another process, or a worker was killed.
    """
    folder = Path(folder)
    corpus = _open_corpus(sources, cleaning, on_bad_row, streamed, progress)
    work = Preparation.of(corpus, vocabulary, num_workers)
    unfinished = PartialFolder(folder)
    found = find_store(folder, work.settings, overwrite)
    if found is not None and not unfinished.has(work.settings):
        return _prepared(folder, found, reused=True)
    with _failures_told(unfinished), alone_at(folder):
        # Another process may have made it while this one read the files.
        found = find_store(folder, work.settings, overwrite)
        if found is None:
            _make_store(work, unfinished)
        else:
            unfinished.tidy()
    return _prepared(folder, found or read_meta(folder), reused=found is not None)


def describe_preparation(
    sources: Mapping[str, Source],
    vocabulary: GivenTokenizer | VocabularyTraining,
    folder: str | Path,
    cleaning: Cleaning = PLAIN,
    on_bad_row: Literal["error", "skip"] = "error",
    overwrite: bool = False,
    streamed: bool = False,
) -> list[tuple[str, str]]:
    """Runs the checks of `prepare_store` that need no pass over the texts, and describes the result.

    Nothing is written.

    Returns:
        Rows of (name, text).

    Raises:
        FrameworkError: As `prepare_store`, except for errors in the texts.
    """
    folder = Path(folder)
    corpus = _open_corpus(sources, cleaning, on_bad_row, streamed, None)
    work = Preparation.of(corpus, vocabulary, None)
    if find_store(folder, work.settings, overwrite) is not None:
        state = "exists already, from the same texts and settings"
    elif PartialFolder(folder).has(work.settings):
        state = "would resume where an earlier start stopped"
    else:
        state = "would replace an existing store" if folder.exists() else "would be made"
    kind = "given tokenizer" if isinstance(vocabulary, GivenTokenizer) else f"{type(vocabulary).__name__}"
    return [
        ("store", f"{folder}: {state}"),
        ("corpus", f"{corpus.num_files:,} files, {corpus.num_bytes:,} bytes"),
        ("vocabulary", kind),
        ("not checked", "rows and texts, which need a pass over the corpus"),
    ]


def _open_corpus(
    sources: Mapping[str, Source],
    cleaning: Cleaning,
    on_bad_row: Literal["error", "skip"],
    streamed: bool,
    progress: Progress | None,
) -> Corpus:
    if not sources:
        raise DataError("there are no sources. A store needs at least one. Add one to the corpus.")
    if streamed:
        check_streamable(sources)
    return Corpus(sources, cleaning, on_bad_row, streamed, progress)


@contextmanager
def _failures_told(unfinished: PartialFolder) -> Iterator[None]:
    """Tells failures that leave the work where it can be gone on with."""
    try:
        yield
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process was killed, probably for want of memory; start again with a smaller num_workers (it "
            f"goes on from {unfinished.path})."
        ) from error
    except OSError as error:
        raise DataError(
            f"{unfinished.folder} cannot be written ({error}); free space and start again (it goes on from where it "
            "was), or give another folder."
        ) from error


def _make_store(work: "Preparation", unfinished: PartialFolder) -> None:
    unfinished.open(work.settings)
    try:
        if not (unfinished.store / COMPLETE_FILE).is_file():
            fates = screen(work.corpus, work.exclusion, unfinished.path, work.num_workers)
            tokenizer = work.tokenizer(fates, unfinished.store / TOKENIZER_FOLDER)
            work.write(fates, tokenizer, unfinished)
    except FrameworkError:
        # Bad data or settings: what is there would never be gone on with.
        unfinished.remove()
        raise
    unfinished.put_in_place()


@dataclass(frozen=True)
class Preparation:
    """A store to be made.

    Attributes:
        corpus: Its documents.
        vocabulary: A tokenizer, or how to train one.
        exclusion: What must not be in the corpus; None: nothing.
        num_workers: See `work_in_order`.
        settings: What decides the store.
    """

    corpus: Corpus
    vocabulary: GivenTokenizer | VocabularyTraining
    exclusion: ExclusionIndex | None
    num_workers: int | None
    settings: dict[str, Any]

    @classmethod
    def of(
        cls, corpus: Corpus, vocabulary: GivenTokenizer | VocabularyTraining, num_workers: int | None
    ) -> "Preparation":
        """Reads the evaluation files, and all sources once for what tells their content."""
        cleaning = corpus.cleaning
        exclusion = (
            ExclusionIndex.from_files(cleaning.exclude, cleaning.exclude_ngram_bytes) if cleaning.exclude else None
        )
        return cls(corpus, vocabulary, exclusion, num_workers, store_settings(corpus, vocabulary, exclusion))

    def tokenizer(self, fates: np.ndarray | None, folder: Path) -> Tokenizer:
        """The given tokenizer, or one that is trained, unless an earlier start has done so."""
        if isinstance(self.vocabulary, GivenTokenizer):
            return self.vocabulary.load()
        if not folder.is_dir():
            counts = WordCounts()
            batches = self.corpus.batches("vocabulary", fates)
            for _, found in work_in_order(partial(getattr, self.vocabulary, "count"), batches, self.num_workers):
                counts.add(found)
            fresh = folder.with_name(folder.name + ".new")
            self.vocabulary.train(counts, fresh)
            fresh.rename(folder)
        return Tokenizer.from_folder(folder)

    def write(self, fates: np.ndarray | None, tokenizer: Tokenizer, unfinished: PartialFolder) -> None:
        """Writes the store and its card, COMPLETE last."""
        corpus, folder = self.corpus, unfinished.store
        writer = StoreWriter(folder, tokenizer.vocab_size, corpus.streamed)
        try:
            totals = write_tokens(corpus, fates, tokenizer, writer, self.num_workers)
            sources = _sources(corpus, totals)
            counts = _counts(corpus, totals, sources, tokenizer)
            if self.exclusion is not None:
                counts["evaluation_texts"] = self.exclusion.num_texts
                counts["evaluation_texts_too_short"] = self.exclusion.num_too_short
            efficiency = packing_efficiency(stored_boundaries(folder))
            write_card(totals.card.content(counts, sources, efficiency), folder, unfinished.folder.name)
            meta = {
                "counts": counts,
                "sources": [{name: source[name] for name in ("name", "documents")} for source in sources],
                "skipped": corpus.reading.skipped,
                "settings": self.settings,
                "streamed": corpus.streamed,
            }
            if corpus.streamed:
                save_row_groups(folder, corpus.sources.values(), corpus.cleaning.strip_html, corpus.on_bad_row)
            writer.finish(meta, tokenizer)
        finally:
            writer.close()


def _sources(corpus: Corpus, totals: Totals) -> list[dict[str, Any]]:
    """What became of the documents of each source."""
    sources = []
    for name, documents, tally in zip(corpus.sources, totals.documents, corpus.tallies, strict=True):
        dropped = tally.duplicates + tally.near_duplicates + tally.excluded
        # Documents without a token are empty too.
        empty = tally.read - documents - dropped
        sources.append({"name": name, "documents": documents, **vars(tally), "empty": empty})
    return sources


def _counts(
    corpus: Corpus, totals: Totals, sources: Sequence[Mapping[str, Any]], tokenizer: Tokenizer
) -> dict[str, int]:
    summed = {
        name: sum(source[name] for source in sources)
        for name in ("documents", "duplicates", "near_duplicates", "excluded", "empty")
    }
    if summed["documents"] == 0:
        num_read = sum(source["read"] for source in sources)
        raise DataError(f"no document holds text that is kept ({num_read:,} read); check the sources and `strip_html`.")
    return {
        "files": corpus.num_files,
        "bytes": corpus.num_bytes,
        **summed,
        "skipped_rows": corpus.reading.num_skipped,
        "sentences": totals.sentences,
        "tokens": totals.tokens,
        "unknown_tokens": totals.unknown_tokens,
        "vocab_size": tokenizer.vocab_size,
    }


def _prepared(folder: Path, meta: dict[str, Any], reused: bool) -> Prepared:
    return Prepared(folder, reused, meta["counts"], meta["skipped"], meta["fingerprint"])
