"""Settings that determine a token store, as JSON values; stores with the same settings are identical byte by byte."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from framework.data.canaries import CANARIES, CanarySettings
from framework.data.preparation.corpus import Cleaning, Corpus
from framework.data.preparation.exclusion import ExclusionIndex
from framework.data.preparation.personal_data import NameModel, PersonalDataStep
from framework.data.reading.credentials import without_credentials
from framework.data.reading.shards import ParquetShards
from framework.data.reading.sources import Source
from framework.data.reading.table_format import TableFormat
from framework.data.store.writer import FORMAT
from framework.data.tokenization.vocabulary import GivenTokenizer, VocabularyTraining
from framework.errors import ConfigError


def store_settings(
    corpus: Corpus,
    vocabulary: GivenTokenizer | VocabularyTraining,
    exclusion: ExclusionIndex | None,
    personal_data: PersonalDataStep | None = None,
    canaries: CanarySettings | None = None,
    names: NameModel | None = None,
) -> dict[str, Any]:
    """Returns the settings of a store: kinds, options, and hashes of the content of files, but not their paths.

    Args:
        corpus: Documents of the store.
        vocabulary: Given tokenizer, or training settings of a tokenizer.
        exclusion: Index of evaluation texts; None: no texts are excluded.
        personal_data: Step that handles personal data; None: none.
        canaries: Canaries of the store; None: none.
        names: Search for names by a model; None: none.

    Raises:
        DataError: A source or the tokenizer cannot be read.
    """
    tokenizer: object
    if isinstance(vocabulary, GivenTokenizer):
        tokenizer = vocabulary.load().fingerprint
    else:
        tokenizer = {"kind": type(vocabulary).__name__, **vocabulary.identity()}
    cleaning = corpus.cleaning
    settings = {
        "format": FORMAT,
        "tokenizer": tokenizer,
        "strip_html": cleaning.strip_html,
        "deduplicate": cleaning.deduplicate,
        "exclude": exclusion and exclusion.fingerprint,
        "near_duplicates": cleaning.near_duplicates and [cleaning.near_duplicates, cleaning.num_permutations],
        "on_bad_row": corpus.on_bad_row,
        "streamed": corpus.streamed,
        "sources": [{"name": name, **_identity(source)} for name, source in corpus.sources.items()],
    }
    if personal_data is not None:  # without it, older stores remain valid
        # A vocabulary determines the masks.
        model = {} if names is None else {"model": names.identity()}
        settings["personal_data"] = {"action": personal_data.action, **personal_data.detection.identity(), **model}
    if canaries is not None:
        settings[CANARIES] = canaries.identity()
    values: dict[str, Any] = json.loads(json.dumps(settings, default=_as_builtin))
    return values


def check_streamable(sources: Mapping[str, Source], cleaning: Cleaning) -> None:
    """Checks that the texts of all sources can be streamed while training.

    Raises:
        ConfigError: A source has no random access, or has a secret in its URL, or personal data is to be masked.
    """
    if cleaning.personal_data == "mask":
        raise ConfigError(
            "personal_data is mask and stream is true. A streamed store reads the original texts again while training, "
            "so nothing would stay masked. Use personal_data=drop, or store the tokens (stream=false)."
        )
    for name, source in sources.items():
        if not isinstance(source, ParquetShards):
            raise ConfigError(
                f"the source `{name}` is {type(source).__name__}, which has no index to seek in. Streaming while "
                "training needs random access to the texts. Convert it to Parquet and configure it as ParquetShards "
                "(corpus=shards), or store the tokens (stream=false)."
            )
        for file in source.paths():
            if without_credentials(file) != file:
                raise ConfigError(
                    f"the source `{name}` reads {without_credentials(file)}, which has credentials. A streamed store "
                    "saves its URLs. Pass the credentials as storage_options, or store the tokens (stream=false)."
                )


_ADDED_DEFAULTS: dict[str, tuple[object, ...]] = {"encoding": ("utf-8",), "format": (None, TableFormat())}


def _identity(source: Source) -> dict[str, object]:
    kind = type(source).__name__
    if isinstance(source, ParquetShards):
        options = {"text_column": source.text_column, "where": source.where}
        return {"kind": kind, "options": options, "contents": source.fingerprint()}
    contents = hashlib.blake2b(digest_size=16)
    for path in source.paths():
        with path.open("rb") as file:
            contents.update(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest())
    options = {name: value for name, value in vars(source).items() if name not in ("files", "exclude")}
    # Leave out default values of settings that were added later, so that older stores remain valid.
    options = {name: value for name, value in options.items() if value not in _ADDED_DEFAULTS.get(name, ())}
    if "format" in options:
        options["format"] = asdict(options["format"])
    return {"kind": kind, "options": options, "contents": contents.hexdigest()}


def _as_builtin(value: Mapping[str, object] | Sequence[object]) -> object:
    """Converts the mapping and list types of a config to dict and list, for JSON."""
    return dict(value) if isinstance(value, Mapping) else list(value)
