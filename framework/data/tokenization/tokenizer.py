"""Tokenizer loaded from a folder: ids, special tokens, and the ids that begin a word.

It reads the same files as Hugging Face transformers, without transformers: tokenizer.json, or vocab.txt of a BERT
vocabulary (`framework.data.tokenization.wordpiece_folder`).
"""

import hashlib
import json
import re
import shutil
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from framework.data.tokenization.wordpiece_folder import (
    EXTRA_TOKENS,
    normalizer_settings,
    read_vocabulary,
    wordpiece_backend,
)
from framework.data.tokenization.written_text import join_word_pieces
from framework.errors import DataError, reading_record
from framework.files import TOKENIZER_FILES, parse_json

SEPARATORS_KEY = "pair_separators"
"""Key of `Tokenizer.pair_separators` in the records of runs and exports."""

TOKENIZER_KEY = "tokenizer_fingerprint"
"""Key of `Tokenizer.fingerprint` in the records of exports."""

_USUAL_NAMES = {
    "cls": ("[CLS]", "<s>"),
    "sep": ("[SEP]", "</s>"),
    "mask": ("[MASK]", "<mask>"),
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
}
_BERT_CLASSES = {
    f"{family}Tokenizer{fast}" for family in ("Bert", "DistilBert", "Electra", "MPNet") for fast in ("", "Fast")
}
# Placeholders of published vocabularies, which encoding never produces.
_UNUSED = re.compile(r"\[unused\d+\]|<?madeupword\d+>?")


_UNKNOWN = "\U00010380"
"""Letter of Ugaritic, which vocabularies lack and normalisation keeps."""
_MAX_GAPS = 2**20
"""Largest number of ids without a token in a vocabulary; tables over all ids need memory for them."""


class Tokenizer:
    """Encoder of text to ids, with the properties of ids that masking needs; always backed by a folder.

    Text that spells a special token ("[MASK]" in a review) is encoded as ordinary text.

    Args:
        backend: `tokenizers` object; its padding and truncation are switched off.
        special_tokens: Token of each of cls, sep, mask, pad, unk.
        folder: Folder of the tokenizer's files.
        pair_separators: Number of separators between the texts of a pair; None uses the backend's template for pairs.
        unhashed_settings: Settings that affect ids but are not in the hashed files (`_fingerprint`).

    Attributes:
        vocab_size: Largest id + 1.
        cls_id: Id of the cls token; `sep_id`, `mask_id`, `pad_id` and `unk_id` are single ids too.
        special_ids: Ascending ids of all special tokens; encoded text never contains these, except `unk_id`.
        ordinary_ids: Ascending ids of words and word pieces, without special tokens and placeholders such as
            `[unused7]`.
        placeholder_ids: Ascending ids of those placeholders.
        starts_word: (vocab_size,) True if a token begins a word: a WordPiece without `##`, or a byte-level or
            sentence-piece token with its space mark (a punctuation mark without one belongs to the word before it, as
            in fairseq). True for special tokens too.
        space_marked: True for vocabularies that mark the space before a word (byte-level BPE).
        special_tokens: Token of each of cls, sep, mask, pad, unk.
        pair_separators: Number of `sep_id` between the texts of a pair: 1 in BERT, 2 in RoBERTa.
        fingerprint: Hash of the files and settings that decide the ids.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_tokens: Mapping[str, str],
        folder: Path,
        pair_separators: int | None = None,
        unhashed_settings: Mapping[str, Any] | None = None,
    ) -> None:
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True
        self.backend = backend
        self.folder = folder
        self.special_tokens = special_tokens
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        if self.vocab_size > _MAX_GAPS + len(vocabulary):
            raise ValueError(f"{len(vocabulary)} tokens have ids up to {self.vocab_size - 1}")
        self.cls_id, self.sep_id, self.mask_id, self.pad_id, self.unk_id = (
            vocabulary[special_tokens[name]] for name in ("cls", "sep", "mask", "pad", "unk")
        )
        added = backend.get_added_tokens_decoder()
        special = {token_id for token_id, token in added.items() if token.special}
        special |= {vocabulary[token] for token in special_tokens.values()}
        # These include the space before them, as `<mask>` does.
        whole_words = special | {token_id for token_id, token in added.items() if token.lstrip}
        self.special_ids = np.array(sorted(special), dtype=np.int64)
        placeholders = {token_id for token, token_id in vocabulary.items() if _UNUSED.fullmatch(token)} - special
        self.placeholder_ids = np.array(sorted(placeholders), dtype=np.int64)
        self.ordinary_ids = np.array(sorted(set(vocabulary.values()) - special - placeholders), dtype=np.int64)
        prefix = getattr(backend.model, "continuing_subword_prefix", None)
        self.space_marked = not isinstance(backend.model, tokenizers.models.WordPiece)
        self.starts_word = np.ones(self.vocab_size, dtype=bool)
        for token, token_id in vocabulary.items():
            begins = token.startswith(("Ġ", "▁")) if self.space_marked else not (prefix and token.startswith(prefix))
            self.starts_word[token_id] = begins or token_id in whole_words
        self.pair_separators = pair_separators or _pair_separators(backend, self.cls_id, self.sep_id)
        self._file_hash = _file_hash(folder)
        self.fingerprint = _fingerprint(self._file_hash, unhashed_settings or {})

    @classmethod
    def from_folder(cls, folder: str | Path, pair_separators: int | None = None) -> "Tokenizer":
        """Loads a tokenizer folder.

        Args:
            folder: Folder with tokenizer.json or vocab.txt (BERT's WordPiece). For a `BertTokenizer`,
                tokenizer_config.json determines the normalisation, as in transformers.
            pair_separators: Number of separators between the texts of a pair; see `Tokenizer`.

        Raises:
            DataError: The folder or its files are missing or broken, or one of the five special tokens is missing.
        """
        folder = Path(folder)
        with reading_record(f"the tokenizer in {folder}", "Restore its files", DataError):
            return cls._read(folder, pair_separators)

    @classmethod
    def _read(cls, folder: Path, pair_separators: int | None) -> "Tokenizer":
        config = _read_json(folder / "tokenizer_config.json")
        special_map = _read_json(folder / "special_tokens_map.json")
        named = {**config, **special_map}
        unhashed: dict[str, Any] = {}
        if (folder / "tokenizer.json").is_file():
            backend = _load_backend(folder / "tokenizer.json")
            if str(config.get("tokenizer_class")) in _BERT_CLASSES:
                unhashed["normalizer"] = _set_normalizer(backend, config)
            vocabulary: Container[str] = backend.get_vocab(with_added_tokens=True)
            special_tokens = _find_special_tokens(folder, named, vocabulary)
            hashed: Mapping[str, Any] = {}
        elif (folder / "vocab.txt").is_file():
            vocabulary = words = read_vocabulary(folder / "vocab.txt")
            special_tokens = _find_special_tokens(folder, named, vocabulary)
            added = _read_json(folder / "added_tokens.json")
            backend = wordpiece_backend(words, special_tokens, named, added)
            hashed = config
            unhashed |= {"added": added, "extra": [special_map[name] for name in EXTRA_TOKENS if name in special_map]}
        else:
            _raise_if_sentencepiece(folder)
            raise DataError(
                f"{folder} holds no tokenizer.json and no vocab.txt. A tokenizer folder requires one of them. Name "
                "another folder, or build a tokenizer with framework.prepare."
            )
        unhashed["special_tokens"] = {
            name: token for name, token in special_tokens.items() if token != _named_token(name, hashed, vocabulary)
        }
        backend.encode(_UNKNOWN, add_special_tokens=False)  # Raises an error if the unknown token is missing.
        return cls(backend, special_tokens, folder, pair_separators, unhashed)

    def same_ids(self, other: "Tokenizer") -> bool:
        """Returns whether both tokenizers produce the same ids, regardless of their files."""
        return _ids_of_text(self) == _ids_of_text(other)

    def is_recorded_as(self, fingerprint: str | None) -> bool:
        """Returns whether a recorded fingerprint is that of this tokenizer.

        Earlier versions hashed the files only, and their records stay valid.
        """
        return fingerprint in (self.fingerprint, self._file_hash)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encodes each text to an int32 array of ids, without special tokens."""
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Encodes each text as `encode_batch` does, and returns the offsets of each token in the original text.

        Offsets are those of `tokenizers`, which reverses the normalisation: they count the characters (code points) of
        the text before it. Characters without a token lie between tokens. Several tokens of one character have the same
        offsets. The offsets of a byte-level token may include the space before it.

        Returns:
            For each text: ids (tokens,) int32, start (tokens,) int32 of the first character of each token, and end
            (tokens,) int32, one after its last character.
        """
        encoded = []
        for encoding in self.backend.encode_batch(list(texts), add_special_tokens=False):
            offsets = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
            encoded.append((np.array(encoding.ids, dtype=np.int32), offsets[:, 0], offsets[:, 1]))
        return encoded

    def decode_batch(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Returns the normalised texts of ids, without special tokens.

        A WordPiece vocabulary keeps no spaces, so they are restored by rules
        (`framework.data.tokenization.written_text`).
        """
        if self.space_marked:
            return list(self.backend.decode_batch([list(each) for each in ids], skip_special_tokens=True))
        special = set(self.special_ids.tolist())
        return [
            join_word_pieces(
                [
                    token
                    for token_id in each
                    if token_id not in special and (token := self.backend.id_to_token(token_id)) is not None
                ],
                self.backend.model.continuing_subword_prefix,
            )
            for each in ids
        ]

    def save(self, folder: str | Path) -> None:
        """Copies the tokenizer's files, byte for byte; transformers' AutoTokenizer loads them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name in TOKENIZER_FILES:
            source = self.folder / name
            if source.is_file() and source.resolve() != (folder / name).resolve():
                shutil.copyfile(source, folder / name)


def _file_hash(folder: Path) -> str:
    """Hashes the files that hold the vocabulary."""
    digest = hashlib.blake2b(digest_size=16)
    names = ["tokenizer.json"] if (folder / "tokenizer.json").is_file() else ["vocab.txt", "tokenizer_config.json"]
    for name in names:
        if (folder / name).is_file():
            digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    return digest.hexdigest()


def _fingerprint(file_hash: str, unhashed_settings: Mapping[str, Any]) -> str:
    """Extends the hash of the files with settings outside them; without any, it returns the hash of earlier versions.

    tokenizer_config.json and special_tokens_map.json change often without changing ids, so their bytes cannot be
    hashed. The serialised backend cannot be hashed either, because it depends on the version of `tokenizers`.
    """
    changed = {name: value for name, value in unhashed_settings.items() if value}
    if not changed:
        return file_hash
    text = json.dumps([file_hash, changed], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _read_json(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}). It must be valid JSON. Restore the file.") from error
    return content if isinstance(content, dict) else {}


def _load_backend(path: Path) -> tokenizers.Tokenizer:
    model = _read_json(path).get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise DataError(f"{path} holds no model with a vocabulary. A tokenizer.json must hold one. Restore the file.")
    return tokenizers.Tokenizer.from_file(str(path))


def _raise_if_sentencepiece(folder: Path) -> None:
    models = sorted(path.name for path in folder.glob("*.model"))
    if models:
        raise DataError(
            f"{folder} holds {models[0]} and no tokenizer.json. SentencePiece files are not read. Convert the folder "
            "once: transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes tokenizer.json."
        )


def _set_normalizer(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> dict[str, bool]:
    """Overrides the normalisation of tokenizer.json with that of tokenizer_config.json, as transformers does.

    Returns:
        The properties that have changed.
    """
    normalizer, changed = backend.normalizer, {}
    if isinstance(normalizer, tokenizers.normalizers.BertNormalizer):
        for name, value in normalizer_settings(config).items():
            if getattr(normalizer, name) != value:
                changed[name] = value
                setattr(normalizer, name, value)
        backend.normalizer = normalizer
    return changed


def _pair_separators(backend: tokenizers.Tokenizer, cls_id: int, sep_id: int) -> int:
    """Returns the number of separators between two texts, read from two encoded empty texts; 1 without a template."""
    ids = backend.encode("", "").ids
    return len(ids) - 2 if len(ids) > 2 and ids == [cls_id] + [sep_id] * (len(ids) - 1) else 1


def _ids_of_text(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns the parts of a tokenizer that determine the ids, without the template and the leading space."""
    content = parse_json(tokenizer.backend.to_str())
    return {name: content[name] for name in ("added_tokens", "normalizer", "model")}


def _find_special_tokens(folder: Path, named: Mapping[str, Any], vocabulary: Container[str]) -> dict[str, str]:
    """Finds the five special tokens in the vocabulary, by the names in the folder or by their usual names."""
    special_tokens: dict[str, str] = {}
    for name, usual in _USUAL_NAMES.items():
        token = _named_token(name, named, vocabulary)
        if token is None:
            raise DataError(
                f"the tokenizer in {folder} has no {name} token ({' or '.join(usual)}). An encoder requires it. Name "
                "it in special_tokens_map.json."
            )
        special_tokens[name] = token
    return special_tokens


def _named_token(name: str, named: Mapping[str, Any], vocabulary: Container[str]) -> str | None:
    given = named.get(f"{name}_token")
    given = given.get("content") if isinstance(given, dict) else given
    candidates = (given, *_USUAL_NAMES[name]) if isinstance(given, str) else _USUAL_NAMES[name]
    return next((token for token in candidates if token in vocabulary), None)
