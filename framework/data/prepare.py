"""Makes a token store from sources: clean, train or take a tokenizer, split into sentences, encode, write.

The order of the files, the text and the settings decide the store to the last byte. The command `framework.prepare`
composes the config, calls this and shows the counts.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from framework.data.documents import Cleaner, split_sentences
from framework.data.files import Reading
from framework.data.sentence_encoder import SentenceEncoder
from framework.data.sources import Source
from framework.data.store import COMPLETE_FILE, FORMAT, META_FILE, TOKENIZER_FOLDER, StoreWriter
from framework.data.tokenizer import Tokenizer
from framework.data.tokenizer_training import MAX_ALPHABET, train_wordpiece
from framework.errors import DataError

BATCH_CHARACTERS = 2_000_000
"""Text that is encoded at once and becomes one record batch of the store; bounds the memory."""

Progress = Callable[[str, int, int], None]
"""Is told (stage, bytes read, bytes in all); stages are "vocabulary" and "tokens"."""


@dataclass(frozen=True)
class WordPieceTraining:
    """Train a WordPiece vocabulary on the corpus itself.

    Attributes:
        vocab_size: Tokens in all, special tokens included.
        lowercase: Fold case and strip accents.
        alphabet: Most single characters in the vocabulary.
    """

    vocab_size: int = 8192
    lowercase: bool = True
    alphabet: int = MAX_ALPHABET


@dataclass(frozen=True)
class Prepared:
    """A store that is ready.

    Attributes:
        folder: Of the store; its tokenizer is in the folder `tokenizer` there.
        reused: True where the store was there already, made from the same files with the same settings.
        counts: files, bytes, documents (kept), duplicates, empty, skipped_rows, sentences, tokens, unknown_tokens,
            vocab_size.
        skipped: What was wrong with the first rows that were left out.
        fingerprint: Of the store.
    """

    folder: Path
    reused: bool
    counts: dict[str, int]
    skipped: list[str]
    fingerprint: str


@dataclass
class _Totals:
    documents: int = 0
    sentences: int = 0
    tokens: int = 0
    unknown_tokens: int = 0


def prepare_store(
    sources: Sequence[Source],
    tokenizer: WordPieceTraining | str | Path,
    folder: str | Path,
    strip_html: bool = False,
    deduplicate: bool = True,
    on_bad_row: Literal["error", "skip"] = "error",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Prepared:
    """Makes the store, or finds that it is there.

    The work is done in `<folder>.partial`, which gets its final name when it is complete; what a killed run left there
    is begun anew.

    Args:
        sources: Read in this order.
        tokenizer: How to train one, or the folder of a given one.
        folder: Of the store.
        strip_html: See `Cleaner`.
        deduplicate: See `Cleaner`.
        on_bad_row: See `framework.data.files.Reading`.
        overwrite: Replace a store that was made from other files or settings.
        progress: Is told how far it is.

    Raises:
        DataError: A source or the tokenizer cannot be used, there are no documents, `folder` holds something else, or
            it cannot be written.
    """
    folder = Path(folder)
    files = [path for source in sources for path in source.paths()]
    if not files:
        raise DataError("there are no sources, a store needs at least one; add one to the corpus.")
    given = None if isinstance(tokenizer, WordPieceTraining) else Tokenizer.from_folder(tokenizer)
    settings = {
        "format": FORMAT,
        "tokenizer": asdict(tokenizer) if isinstance(tokenizer, WordPieceTraining) else given and given.fingerprint,
        "strip_html": strip_html,
        "deduplicate": deduplicate,
        "on_bad_row": on_bad_row,
        "sources": [_source_settings(source) for source in sources],
    }
    settings = json.loads(json.dumps(settings, default=_plain))
    found = _existing(folder, settings, overwrite)
    if found is not None:
        return found
    corpus = _Corpus(sources, files, strip_html, deduplicate, on_bad_row, progress)
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_store(corpus, given or tokenizer, partial, settings)
        _put_in_place(partial, folder)
    except DataError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise DataError(f"{folder} cannot be written ({error}); free space or give another folder.") from error
    return _read_prepared(folder, reused=False)


class _Corpus:
    """The cleaned documents of all sources, as often as they are wanted."""

    def __init__(
        self,
        sources: Sequence[Source],
        files: Sequence[Path],
        strip_html: bool,
        deduplicate: bool,
        on_bad_row: Literal["error", "skip"],
        progress: Progress | None,
    ) -> None:
        self._sources = sources
        self._progress = progress
        self._settings = (strip_html, deduplicate)
        self.num_files = len(files)
        self.num_bytes = sum(path.stat().st_size for path in files)
        self._on_bad_row = on_bad_row
        self.reading = Reading(on_bad_row)
        self.cleaner = Cleaner(*self._settings)

    def stream(self, stage: str) -> Iterator[tuple[str, int]]:
        """(text, hash) of each document that is kept; `cleaner` and `reading` then tell what was dropped."""
        done = 0

        def advance(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            if self._progress is not None:
                self._progress(stage, done, self.num_bytes)

        self.reading = Reading(self._on_bad_row, advance)
        self.cleaner = Cleaner(*self._settings)
        yield from self.cleaner.clean(text for source in self._sources for text in source.read(self.reading))


def _write_store(
    corpus: _Corpus, tokenizer: Tokenizer | WordPieceTraining | str | Path, folder: Path, settings: dict[str, Any]
) -> None:
    if isinstance(tokenizer, WordPieceTraining):
        texts = (text for text, _ in corpus.stream("vocabulary"))
        options = (tokenizer.lowercase, tokenizer.alphabet)
        tokenizer = train_wordpiece(texts, tokenizer.vocab_size, folder / TOKENIZER_FOLDER, *options)
    assert isinstance(tokenizer, Tokenizer)
    writer = StoreWriter(folder, tokenizer.vocab_size)
    totals = _write_documents(corpus, tokenizer, writer)
    num_read, num_duplicates = corpus.cleaner.num_read, corpus.cleaner.num_duplicates
    if totals.documents == 0:
        raise DataError(f"none of the {num_read} documents holds text; check the sources and `strip_html`.")
    counts = {
        "files": corpus.num_files,
        "bytes": corpus.num_bytes,
        "documents": totals.documents,
        "duplicates": num_duplicates,
        "empty": num_read - num_duplicates - totals.documents,
        "skipped_rows": corpus.reading.num_skipped,
        "sentences": totals.sentences,
        "tokens": totals.tokens,
        "unknown_tokens": totals.unknown_tokens,
        "vocab_size": tokenizer.vocab_size,
    }
    writer.finish({"counts": counts, "skipped": corpus.reading.skipped, "settings": settings}, tokenizer)


def _write_documents(corpus: _Corpus, tokenizer: Tokenizer, writer: StoreWriter) -> _Totals:
    totals = _Totals()
    encoder = SentenceEncoder(tokenizer)
    documents: list[list[str]] = []
    hashes: list[int] = []
    characters = 0

    def flush() -> None:
        nonlocal characters
        _write_batch(encoder, writer, tokenizer.unk_id, documents, hashes, totals)
        documents.clear()
        hashes.clear()
        characters = 0

    for text, text_hash in corpus.stream("tokens"):
        documents.append(split_sentences(text))
        hashes.append(text_hash)
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            flush()
    flush()
    return totals


def _write_batch(
    encoder: SentenceEncoder,
    writer: StoreWriter,
    unk_id: int,
    documents: list[list[str]],
    hashes: list[int],
    totals: _Totals,
) -> None:
    input_ids, lengths = encoder.encode([sentence for sentences in documents for sentence in sentences])
    owners = np.repeat(np.arange(len(documents)), [len(sentences) for sentences in documents])
    # Sentences and documents of control characters alone have no tokens.
    kept_sentences = lengths > 0
    num_sentences = np.bincount(owners[kept_sentences], minlength=len(documents))
    kept_documents = num_sentences > 0
    if not kept_documents.any():
        return
    writer.add(
        input_ids,
        lengths[kept_sentences],
        num_sentences[kept_documents],
        np.array(hashes, dtype=np.uint64)[kept_documents],
    )
    totals.documents += int(kept_documents.sum())
    totals.sentences += int(kept_sentences.sum())
    totals.tokens += len(input_ids)
    totals.unknown_tokens += int((input_ids == unk_id).sum())


def _source_settings(source: Source) -> dict[str, object]:
    """What a source adds to the store's identity: kind, options and the content of its files, not their paths."""
    contents = hashlib.blake2b(digest_size=16)
    for path in source.paths():
        with path.open("rb") as file:
            contents.update(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest())
    options = {name: value for name, value in vars(source).items() if name not in ("files", "exclude")}
    return {"kind": type(source).__name__, "options": options, "contents": contents.hexdigest()}


def _plain(value: Mapping[str, object] | Sequence[object]) -> object:
    """What a config's own mapping and list types are in JSON."""
    return dict(value) if isinstance(value, Mapping) else list(value)


def _read_prepared(folder: Path, reused: bool) -> Prepared:
    meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
    return Prepared(folder, reused, meta["counts"], meta["skipped"], meta["fingerprint"])


def _existing(folder: Path, settings: dict[str, Any], overwrite: bool) -> Prepared | None:
    """The store that is there, where it was made from the same files and settings; None where the way is free."""
    if not folder.exists():
        return None
    if not (folder / COMPLETE_FILE).is_file():
        raise DataError(f"{folder} exists and is no complete store; give another folder, or delete it.")
    if json.loads((folder / META_FILE).read_text(encoding="utf-8")).get("settings") == settings:
        return _read_prepared(folder, reused=True)
    if overwrite:
        return None
    raise DataError(
        f"{folder} holds a store made from other files or settings; give another folder, or set overwrite=true to "
        "replace it."
    )


def _put_in_place(partial: Path, folder: Path) -> None:
    replaced = folder.with_name(folder.name + ".replaced")
    if folder.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        folder.rename(replaced)
    partial.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)
