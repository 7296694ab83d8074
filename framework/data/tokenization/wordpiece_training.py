"""Trains a WordPiece vocabulary; the same counts yield the same vocabulary on every machine.

`tokenizers` numbers the alphabet in the order of a hash map, which differs between processes. The ids and the merges of
equal count differ with it. The trainer therefore receives the alphabet in a fixed order.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.vocabulary import check_vocab_size, most_tokens, words_for_training, write_tokenizer
from framework.data.tokenization.word_counts import WordCounts, repeated
from framework.errors import ConfigError, check_at_least

_SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
_LONGEST_WORD = 100  # Characters. WordPiece encodes longer words as unknown tokens, so they are not counted.


@dataclass(frozen=True)
class WordPieceTraining:
    """Training of a WordPiece vocabulary, as BERT has, on the corpus itself.

    Attributes:
        vocab_size: Total number of tokens, special tokens included; a small corpus may yield fewer.
        lowercase: True folds case and strips accents.
        alphabet: Most single characters in the vocabulary; the most frequent ones are kept. Words with other characters
            become unknown tokens. Chinese text needs several thousand.
    """

    vocab_size: int = 8192
    lowercase: bool = True
    alphabet: int = 1000

    def __post_init__(self) -> None:
        check_vocab_size(self.vocab_size)
        check_at_least("the vocabulary's `alphabet`", self.alphabet, 1)
        if self.vocab_size <= len(_SPECIAL_TOKENS):
            raise ConfigError(
                f"the vocabulary's `vocab_size` is {self.vocab_size}, but the special tokens alone are "
                f"{len(_SPECIAL_TOKENS)}. It must be larger than that. Set it to several thousand."
            )

    def identity(self) -> dict[str, Any]:
        """Returns the settings as JSON values."""
        return dict(vars(self))

    def count(self, texts: Iterable[str]) -> Counter[str]:
        """Counts the words of a batch of texts as BERT splits them.

        Texts are split at white space, and each distinct part is split into words once.
        """
        normalizer, splitter = self._normalizer(), pre_tokenizers.BertPreTokenizer()
        words: Counter[str] = Counter()
        for part, count in Counter(part for text in texts for part in text.split()).items():
            for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(part)):
                if len(word) <= _LONGEST_WORD:
                    words[word] += count
        return words

    def train(self, counts: WordCounts, folder: str | Path, added_tokens: Sequence[str] = ()) -> Tokenizer:
        """Trains and writes tokenizer.json, vocab.txt, tokenizer_config.json and special_tokens_map.json.

        Args:
            counts: Word counts from `count`.
            folder: Folder for the files.
            added_tokens: Tokens that texts contain as they are; they follow the special tokens.

        Raises:
            ConfigError: `vocab_size` is too small for the special tokens and the alphabet.
            DataError: The counts are empty.
        """
        words = words_for_training(counts)
        kept = _most_frequent_characters(counts, self.alphabet)
        # WordPiece encodes a word with a character outside the alphabet as an unknown token, so it is not trained on.
        words = {word: count for word, count in words.items() if kept.issuperset(word)}
        inner = {character for word in words for character in word[1:]}
        characters = [*sorted(kept), *(f"##{character}" for character in sorted(inner))]
        fixed = [*_SPECIAL_TOKENS.values(), *added_tokens, *characters]
        if self.vocab_size < len(fixed):
            raise ConfigError(
                f"vocab_size is {self.vocab_size}, but special tokens and the characters of the text take "
                f"{len(fixed)}. It must be at least that. Set vocab_size above it."
            )
        return self._write(_learn(words, self.vocab_size, fixed), folder, added_tokens)

    def _normalizer(self) -> normalizers.Normalizer:
        return normalizers.BertNormalizer(lowercase=self.lowercase)

    def _write(self, vocabulary: dict[str, int], folder: str | Path, added_tokens: Sequence[str]) -> Tokenizer:
        backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        backend.normalizer = self._normalizer()
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece(prefix="##")
        backend.add_special_tokens(list(_SPECIAL_TOKENS.values()))
        backend.add_tokens([AddedToken(token, normalized=False) for token in added_tokens])
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0",
            pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
            special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
        )
        config = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": self.lowercase,
            "tokenize_chinese_chars": True,
            "strip_accents": None,
        }
        in_order = sorted(vocabulary, key=lambda token: vocabulary[token])
        files = {
            "tokenizer.json": backend.to_str(pretty=True),
            "vocab.txt": "".join(f"{token}\n" for token in in_order),
            "tokenizer_config.json": {**config, **_SPECIAL_TOKENS},
            "special_tokens_map.json": _SPECIAL_TOKENS,
        }
        return write_tokenizer(folder, files)


def _most_frequent_characters(counts: WordCounts, limit: int) -> set[str]:
    """Returns the most frequent characters. Among equally frequent ones, smaller code points take precedence."""
    characters: Counter[str] = Counter()
    for word, count in counts.items():
        for character in word:
            characters[character] += count
    return set(sorted(characters, key=lambda character: (-characters[character], character))[:limit])


def _learn(words: Mapping[str, int], vocab_size: int, fixed: list[str]) -> dict[str, int]:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    size = most_tokens(vocab_size, len(fixed), words)
    # Passed as special tokens, the alphabet gets its ids in our order. This has no other effect here.
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=fixed, show_progress=False)
    backend.train_from_iterator(repeated(words), trainer)
    return backend.get_vocab(with_added_tokens=True)
