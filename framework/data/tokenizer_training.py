"""Trains a WordPiece vocabulary, the same one from the same text on every machine.

`tokenizers` numbers the alphabet in the order of a hash map, which changes with every process, and with it the ids and
the merges of equal count. So the words are counted here, and the alphabet is handed to its trainer in a fixed order.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from framework.data.tokenizer import Tokenizer
from framework.errors import ConfigError, DataError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_ALPHABET = 1000
"""Characters that become tokens, the most frequent ones; Chinese text wants several thousand."""

_FLUSH_AT = 500_000


def train_wordpiece(
    texts: Iterable[str], vocab_size: int, folder: str | Path, lowercase: bool = True, alphabet: int = MAX_ALPHABET
) -> Tokenizer:
    """Trains BERT's kind of tokenizer and writes it in files that transformers loads.

    Args:
        texts: Streamed once.
        vocab_size: Tokens in all, special tokens included; a small corpus may give fewer.
        folder: Where the tokenizer's files go.
        lowercase: Fold case and strip accents.
        alphabet: Most single characters in the vocabulary; others become unknown tokens.

    Raises:
        ConfigError: `vocab_size` leaves no room for the alphabet.
        DataError: The texts hold no words.
    """
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    words = _count_words(texts, normalizer)
    if not words:
        raise DataError("the texts hold no words, so no vocabulary can be trained; check the sources.")
    kept = _alphabet(words, alphabet)
    # WordPiece gives a word with a character that it does not know the unknown token, so such a word teaches nothing.
    words = Counter({word: count for word, count in words.items() if kept.issuperset(word)})
    inner = {character for word in words for character in word[1:]}
    fixed = [*SPECIAL_TOKENS, *sorted(kept), *(f"##{character}" for character in sorted(inner))]
    if vocab_size < len(fixed):
        raise ConfigError(
            f"vocab_size is {vocab_size}, but special tokens and the characters of the text take {len(fixed)}; set "
            "vocab_size above that."
        )
    vocabulary = _train(words, vocab_size, fixed)
    return _write(vocabulary, normalizer, lowercase, Path(folder))


def _count_words(texts: Iterable[str], normalizer: normalizers.Normalizer) -> Counter[str]:
    """Words as BERT splits them; each distinct stretch between spaces is normalised and split once."""
    splitter = pre_tokenizers.BertPreTokenizer()
    stretches: Counter[str] = Counter()
    words: Counter[str] = Counter()

    def flush() -> None:
        for stretch, count in stretches.items():
            for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(stretch)):
                words[word] += count
        stretches.clear()

    for text in texts:
        stretches.update(text.split())
        if len(stretches) > _FLUSH_AT:
            flush()
    flush()
    return words


def _alphabet(words: Counter[str], limit: int) -> set[str]:
    """The most frequent characters; of equally frequent ones those with the smaller code points."""
    characters: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            characters[character] += count
    return set(sorted(characters, key=lambda character: (-characters[character], character))[:limit])


def _train(words: Counter[str], vocab_size: int, fixed: list[str]) -> dict[str, int]:
    def repeated() -> Iterator[str]:
        for word, count in sorted(words.items()):
            for first in range(0, count, 10_000):
                yield f"{word} " * min(10_000, count - first)

    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # Named as special, the alphabet gets its ids in our order; here that has no other effect.
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=fixed, show_progress=False)
    backend.train_from_iterator(repeated(), trainer)
    return backend.get_vocab(with_added_tokens=True)


def _write(vocabulary: dict[str, int], normalizer: normalizers.Normalizer, lowercase: bool, folder: Path) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    names = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    config = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": lowercase,
        "tokenize_chinese_chars": True,
        "strip_accents": None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    in_order = sorted(vocabulary, key=lambda token: vocabulary[token])
    contents = {
        "tokenizer.json": backend.to_str(pretty=True),
        "vocab.txt": "".join(f"{token}\n" for token in in_order),
        "tokenizer_config.json": json.dumps({**config, **names}, indent=2),
        "special_tokens_map.json": json.dumps(names, indent=2),
    }
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")
    return Tokenizer.from_folder(folder)
