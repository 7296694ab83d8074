"""Extends an existing vocabulary by frequent words of the corpus that it splits into pieces.

All tokens keep their ids, and the new ones follow. `framework.data.tokenization.extension` finds the rows from which
training starts them.
"""

import functools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, models

from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.vocabulary import check_vocab_size, words_for_training, write_tokenizer
from framework.data.tokenization.word_counts import WordCounts
from framework.errors import ConfigError, check_at_least
from framework.files import parse_json

_LONGEST_WORD = 100  # Characters. WordPiece encodes longer words as unknown tokens.
_SPACE_MARKS = "Ġ▁"
_CONFIG = "tokenizer_config.json"
_COPIED = (_CONFIG, "special_tokens_map.json")


@dataclass(frozen=True)
class VocabularyExtension:
    """Extension of a WordPiece or BPE vocabulary by whole words.

    Attributes:
        path: Folder of the tokenizer to extend.
        new_tokens: Most new tokens: the words that save the most pieces, which is their count times (pieces - 1). A
            small corpus may yield fewer.
        min_count: Least occurrences of a new token, because a row that training rarely sees stays as it starts.
    """

    path: str
    new_tokens: int = 1000
    min_count: int = 20

    def __post_init__(self) -> None:
        check_vocab_size(self.new_tokens)
        check_at_least("the vocabulary's `new_tokens`", self.new_tokens, 1)
        check_at_least("the vocabulary's `min_count`", self.min_count, 1)

    def load(self) -> Tokenizer:
        """Loads the tokenizer to extend.

        Raises:
            ConfigError: Its vocabulary is neither WordPiece nor BPE.
            DataError: See `Tokenizer.from_folder`.
        """
        tokenizer = _loaded(self.path)
        model = tokenizer.backend.model
        if not isinstance(model, models.WordPiece | models.BPE):
            raise ConfigError(
                f"the tokenizer in {self.path} is {type(model).__name__}. Only WordPiece and BPE vocabularies can be "
                "extended by words. Use vocabulary=given."
            )
        return tokenizer

    def identity(self) -> dict[str, Any]:
        """Returns the settings as JSON values, with the fingerprint of the tokenizer instead of its path."""
        return {**vars(self), "path": self.load().fingerprint}

    def count(self, texts: Iterable[str]) -> Counter[str]:
        """Counts the words of a batch of texts as the tokenizer splits them, each distinct part between spaces once."""
        backend = self.load().backend
        before = "" if isinstance(backend.model, models.WordPiece) else " "
        words: Counter[str] = Counter()
        for part, count in Counter(part for text in texts for part in text.split()).items():
            text = before + part
            text = backend.normalizer.normalize_str(text) if backend.normalizer is not None else text
            for word, _ in backend.pre_tokenizer.pre_tokenize_str(text):
                if len(word) <= _LONGEST_WORD and any(character.isalpha() for character in word.lstrip(_SPACE_MARKS)):
                    words[word] += count
        return words

    def train(self, counts: WordCounts, folder: str | Path, added_tokens: Sequence[str] = ()) -> Tokenizer:
        """Chooses the new tokens and writes tokenizer.json, with the settings of the old folder.

        Args:
            counts: Word counts from `count`.
            folder: Folder for the files.
            added_tokens: Tokens that texts contain as they are; those that the vocabulary lacks follow the new words.

        Raises:
            DataError: The counts are empty.
        """
        old = self.load()
        known = old.backend.get_vocab(with_added_tokens=True)
        words = self._most_useful(old, words_for_training(counts))
        content = parse_json(old.backend.to_str())
        first = old.vocab_size
        content["model"]["vocab"] |= {word: first + index for index, word in enumerate(words)}
        if content["model"]["type"] == "BPE":  # A new word has no merges, so it is looked up before they are applied.
            content["model"]["ignore_merges"] = True
        backend = tokenizers.Tokenizer.from_str(json.dumps(content))
        backend.add_tokens(
            [
                AddedToken(token, lstrip=old.space_marked, normalized=False)
                for token in added_tokens
                if token not in known
            ]
        )
        return write_tokenizer(folder, _files(backend, old.folder))

    def _most_useful(self, old: Tokenizer, counts: dict[str, int]) -> list[str]:
        """Returns the words that save the most pieces; among equals, the smaller one comes first."""
        model, known = old.backend.model, old.backend.get_vocab(with_added_tokens=True)
        saved: dict[str, int] = {}
        for word, count in counts.items():
            if count >= self.min_count and word not in known:
                ids = [piece.id for piece in model.tokenize(word)]
                num_pieces = len(word) if old.unk_id in ids else len(ids)
                saved[word] = count * (num_pieces - 1)
        useful = [word for word, pieces in saved.items() if pieces > 0]
        return sorted(useful, key=lambda word: (-saved[word], word))[: self.new_tokens]


def _files(backend: tokenizers.Tokenizer, old: Path) -> dict[str, object]:
    """Returns the files of an extended tokenizer; the settings of the old folder are kept."""
    files: dict[str, Any] = {"tokenizer.json": backend.to_str(pretty=True)}
    for name in _COPIED:
        if (old / name).is_file():
            files[name] = parse_json((old / name).read_text(encoding="utf-8"))
    if isinstance(backend.model, models.BPE):
        # transformers builds the classes of BPE models from merges; this one reads tokenizer.json as it is.
        config = files.get(_CONFIG) or {}
        usual = {"model_input_names": ["input_ids", "attention_mask"], **config}
        files[_CONFIG] = {**usual, "tokenizer_class": "PreTrainedTokenizerFast"}
        return files
    ordered = sorted(backend.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
    if [token_id for _, token_id in ordered] == [*range(len(ordered))]:
        files["vocab.txt"] = "".join(f"{token}\n" for token, _ in ordered)
    return files


@functools.lru_cache(maxsize=2)
def _loaded(path: str) -> Tokenizer:
    return Tokenizer.from_folder(path)
