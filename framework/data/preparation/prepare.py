"""Builds a token store from sources: cleans texts, trains or loads a tokenizer, splits into sentences, encodes, writes.

The order of the files, their text and the settings determine every byte of the store. The number of workers and any
number of kills and resumed starts do not matter. The command `framework.prepare` composes the config, calls this module
and shows the counts.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from framework.data.canaries import CANARIES, CanarySettings, as_record, canary_words, draw_canaries
from framework.data.preparation.card_files import stored_boundaries, write_card
from framework.data.preparation.card_packing import packing_efficiency
from framework.data.preparation.cleaning import screen
from framework.data.preparation.corpus import Cleaning, Corpus, Progress
from framework.data.preparation.exclusion import ExclusionIndex
from framework.data.preparation.folder import PartialFolder, exclusive_access, find_store, read_meta
from framework.data.preparation.personal_data import ClearedCounting, NameModel, PersonalDataStep, RememberedNames
from framework.data.preparation.pool import work_in_order
from framework.data.preparation.settings import check_streamable, store_settings
from framework.data.preparation.store_counts import canary_content, personal_data_content, source_counts, total_counts
from framework.data.preparation.tokens import write_tokens
from framework.data.reading.sources import Source
from framework.data.store.row_groups import save_row_groups
from framework.data.store.writer import COMPLETE_FILE, TOKENIZER_FOLDER, StoreWriter
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.vocabulary import GivenTokenizer, VocabularyTraining
from framework.data.tokenization.word_counts import WordCounts
from framework.errors import DataError, FrameworkError, counted

NAMES_FOLDER = "names"
"""Sub-folder of the partial folder with the spans of names that a model found."""


@dataclass(frozen=True)
class StoreSpec:
    """Specification of a token store: its texts, its vocabulary and its folder.

    Attributes:
        sources: Sources by name, read in this order.
        vocabulary: Given tokenizer, or training settings of a tokenizer.
        folder: Folder of the store.
        cleaning: Cleaning settings. By default, only empty documents and exact duplicates are dropped.
        on_bad_row: Handling of bad rows, as in `framework.data.reading.files.Reading`.
        streamed: True to store no ids: training reads the texts again from the sources.
        overwrite: True to replace a store that was made from other files or settings.
        canaries: Random documents to add; None: none.
        names: Search for names by the model `cleaning.personal_data_model`; None: no model.
    """

    sources: Mapping[str, Source]
    vocabulary: GivenTokenizer | VocabularyTraining
    folder: str | Path
    cleaning: Cleaning = field(default_factory=Cleaning)
    on_bad_row: Literal["error", "skip"] = "error"
    streamed: bool = False
    overwrite: bool = False
    canaries: CanarySettings | None = None
    names: NameModel | None = None

    def open_corpus(self, progress: Progress | None = None) -> Corpus:
        """Checks the sources and returns their documents.

        Raises:
            ConfigError: The store is streamed, but a source has no random access, personal data is to be masked, or
                canaries are to be added; or a source has the name of the canaries.
            DataError: There are no sources, or the files of a source do not exist.
        """
        if not self.sources:
            raise DataError("there are no sources. A store needs at least one. Add one to the corpus.")
        if self.streamed:
            check_streamable(self.sources, self.cleaning)
        if self.canaries is not None:
            self.canaries.check(self.sources, self.streamed)
        return Corpus(self.sources, self.cleaning, self.on_bad_row, self.streamed, progress)


@dataclass(frozen=True)
class Prepared:
    """A complete store.

    Attributes:
        folder: Folder of the store; its tokenizer is in the sub-folder `tokenizer`.
        reused: True if the store already existed, made from the same files and settings.
        counts: Numbers of files, bytes, documents (kept), duplicates, near_duplicates, excluded, empty, skipped_rows,
            sentences, tokens, unknown_tokens and vocab_size. If evaluation texts are excluded, also evaluation_texts,
            and evaluation_texts_too_short for those too short to be searched for. If personal data is handled, also
            personal_data_finds and personal_data_documents (documents with finds), and with "drop" personal_data
            (documents dropped). If canaries are added, also canary_documents.
        skipped: Messages about the first bad rows that were skipped.
        fingerprint: Fingerprint of the store.
    """

    folder: Path
    reused: bool
    counts: dict[str, int]
    skipped: list[str]
    fingerprint: str


def prepare_store(spec: StoreSpec, num_workers: int | None = 1, progress: Progress | None = None) -> Prepared:
    """Builds the store, unless it exists already.

    The store is built in `<folder>.partial` and gets its final name when it is complete. After a kill, a full disk or a
    lost worker, the next start with the same settings resumes there.

    Args:
        spec: Specification of the store.
        num_workers: Number of worker processes; None: one per core that this process may use; 0 or 1: this process does
            all work.
        progress: Callback for the progress of each pass; None: no callback.

    Raises:
        ConfigError: Ids are streamed from a source without random access, the size of the vocabulary has no room for
            the alphabet, no bands fit the settings of near-duplicates, or the settings of personal data cannot be used
            (`Detection.of`, `masks_of`).
        DataError: A source or the tokenizer cannot be used, there are no documents, the folder holds something else,
            cannot be written or is being written by another process, or a worker was killed.
    """
    folder = Path(spec.folder)
    work = Preparation.of(spec, spec.open_corpus(progress), num_workers)
    unfinished = PartialFolder(folder)
    meta = find_store(folder, work.settings, spec.overwrite)
    if meta is not None and not unfinished.has(work.settings):
        return _prepared(folder, meta, reused=True)
    with _resumable_failures(unfinished), exclusive_access(folder):
        # Another process may have built the store while this one read the files.
        meta = find_store(folder, work.settings, spec.overwrite)
        if meta is None:
            _make_store(work, unfinished)
        else:
            unfinished.clean_up()
    return _prepared(folder, meta or read_meta(folder), reused=meta is not None)


def describe_preparation(spec: StoreSpec) -> list[tuple[str, str]]:
    """Runs the checks of `prepare_store` that need no pass over the texts, and describes the result.

    Nothing is written.

    Returns:
        Rows of (name, text).

    Raises:
        FrameworkError: The specification cannot be used, as for `prepare_store`; errors in the texts are not found.
    """
    folder = Path(spec.folder)
    corpus = spec.open_corpus()
    work = Preparation.of(spec, corpus, None)
    if find_store(folder, work.settings, spec.overwrite) is not None:
        state = "exists already, from the same texts and settings"
    elif PartialFolder(folder).has(work.settings):
        state = "would resume where an earlier start stopped"
    else:
        state = "would replace an existing store" if folder.exists() else "would be made"
    is_given = isinstance(spec.vocabulary, GivenTokenizer)
    return [
        ("store", f"{folder}: {state}"),
        ("corpus", f"{counted(corpus.num_files, 'file')}, {counted(corpus.num_bytes, 'byte')}"),
        ("vocabulary", "given tokenizer" if is_given else type(spec.vocabulary).__name__),
        ("not checked", "rows and texts, which need a pass over the corpus"),
    ]


@contextmanager
def _resumable_failures(unfinished: PartialFolder) -> Iterator[None]:
    """Converts failures after which the preparation can resume to a DataError."""
    try:
        yield
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process was killed, probably because memory was short. The next start resumes from "
            f"{unfinished.path}. Start again with a smaller num_workers."
        ) from error
    except OSError as error:
        raise DataError(
            f"{unfinished.folder} cannot be written ({error}). The next start resumes from {unfinished.path}. Free "
            "space and start again, or choose another folder."
        ) from error


def _make_store(work: "Preparation", unfinished: PartialFolder) -> None:
    unfinished.open(work.settings)
    try:
        if not (unfinished.store / COMPLETE_FILE).is_file():
            fates = screen(work.corpus, work.exclusion, unfinished.path, work.num_workers)
            tokenizer = work.tokenizer(fates, unfinished.store / TOKENIZER_FOLDER)
            work.write(fates, tokenizer, unfinished)
    except FrameworkError:
        # The data or the settings are bad, so no later start would resume from this folder.
        unfinished.remove()
        raise
    unfinished.publish()


@dataclass(frozen=True)
class Preparation:
    """Inputs of the passes that build a store.

    Attributes:
        corpus: Documents of the store.
        vocabulary: Given tokenizer, or training settings of a tokenizer.
        exclusion: Index of evaluation texts; None: no texts are excluded.
        personal_data: Step that handles personal data; None: none.
        canaries: Random documents to add; None: none.
        num_workers: Number of processes as in `work_in_order`.
        settings: Settings that determine the store, as JSON values.
    """

    corpus: Corpus
    vocabulary: GivenTokenizer | VocabularyTraining
    exclusion: ExclusionIndex | None
    personal_data: PersonalDataStep | None
    canaries: CanarySettings | None
    num_workers: int | None
    settings: dict[str, Any]

    @classmethod
    def of(cls, spec: StoreSpec, corpus: Corpus, num_workers: int | None) -> "Preparation":
        """Reads the evaluation files, and reads all sources once for the hashes of their content."""
        cleaning, vocabulary = corpus.cleaning, spec.vocabulary
        assert (spec.names is None) == (cleaning.personal_data_model is None), "framework.prepare loads the model"
        personal_data = None
        given = vocabulary.load() if isinstance(vocabulary, GivenTokenizer) else None
        if spec.canaries is not None and given is not None:
            canary_words(given)
        if cleaning.personal_data is not None:
            personal_data = PersonalDataStep.of(cleaning.personal_data, cleaning.detection(), given)
        exclusion = (
            ExclusionIndex.from_files(cleaning.exclude, cleaning.exclude_ngram_bytes) if cleaning.exclude else None
        )
        settings = store_settings(corpus, vocabulary, exclusion, personal_data, spec.canaries, spec.names)
        if personal_data is not None and spec.names is not None:
            remembered = RememberedNames(spec.names, PartialFolder(Path(spec.folder)).path / NAMES_FOLDER)
            personal_data = replace(personal_data, names=remembered)
        return cls(corpus, vocabulary, exclusion, personal_data, spec.canaries, num_workers, settings)

    def tokenizer(self, fates: np.ndarray | None, folder: Path) -> Tokenizer:
        """Returns the given tokenizer, or a trained one; a tokenizer that an earlier start trained is loaded."""
        if isinstance(self.vocabulary, GivenTokenizer):
            return self.vocabulary.load()
        if not folder.is_dir():
            counts = WordCounts()
            batches = self.corpus.batches("vocabulary", fates)
            step = self.personal_data
            make_work = partial(ClearedCounting, step, self.vocabulary.count)
            for _, part in work_in_order(make_work, batches, self.num_workers):
                counts.add(part)
            fresh = folder.with_name(folder.name + ".new")
            self.vocabulary.train(counts, fresh, () if step is None else step.added_tokens)
            fresh.rename(folder)
        return Tokenizer.from_folder(folder)

    def write(self, fates: np.ndarray | None, tokenizer: Tokenizer, unfinished: PartialFolder) -> None:
        """Writes the store and its card; the file COMPLETE is written last."""
        corpus, folder = self.corpus, unfinished.store
        canaries = draw_canaries(self.canaries, tokenizer) if self.canaries is not None else []
        writer = StoreWriter(folder, tokenizer.vocab_size, corpus.streamed)
        try:
            totals = write_tokens(corpus, fates, tokenizer, writer, self.num_workers, self.personal_data, canaries)
            sources = source_counts(corpus, totals)
            counts = total_counts(corpus, totals, sources, tokenizer.vocab_size)
            if self.exclusion is not None:
                counts["evaluation_texts"] = self.exclusion.num_texts
                counts["evaluation_texts_too_short"] = self.exclusion.num_too_short
            efficiency = packing_efficiency(stored_boundaries(folder))
            content = totals.card.content(counts, sources, efficiency) | personal_data_content(corpus, totals)
            content |= canary_content(self.canaries, totals)
            write_card(content, folder, unfinished.folder.name)
            meta = {
                "counts": counts,
                "sources": [{name: source[name] for name in ("name", "documents")} for source in sources],
                "skipped": corpus.reading.skipped,
                "settings": self.settings,
                "streamed": corpus.streamed,
            }
            if canaries:
                meta[CANARIES] = as_record(canaries)
            if corpus.streamed:
                save_row_groups(folder, corpus.sources.values(), corpus.cleaning.strip_html, corpus.on_bad_row)
            writer.finish(meta, tokenizer)
        finally:
            writer.close()


def _prepared(folder: Path, meta: dict[str, Any], reused: bool) -> Prepared:
    return Prepared(folder, reused, meta["counts"], meta["skipped"], meta["fingerprint"])
