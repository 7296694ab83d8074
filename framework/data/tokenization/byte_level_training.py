"""Trains a byte-level BPE vocabulary, as in GPT-2 (Radford et al. 2019, section 2.2) and RoBERTa (arXiv:1907.11692).

The alphabet is the 256 bytes, so no text has unknown tokens. The 4 special tokens before `<mask>` have RoBERTa's ids.
`<mask>` follows them, whereas it is the last token of the published vocabulary.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors, trainers

from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.vocabulary import check_vocab_size, most_tokens, words_for_training, write_tokenizer
from framework.data.tokenization.word_counts import WordCounts, repeated
from framework.errors import ConfigError
from framework.files import parse_json

_SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
_NUM_BYTES = 256
_LONGEST_WORD = 256  # Bytes. Longer words are counted in pieces, so that no binary blob outweighs the text.


@dataclass(frozen=True)
class ByteLevelBpeTraining:
    """Training of a byte-level BPE vocabulary, as RoBERTa has, on the corpus itself.

    Attributes:
        vocab_size: Total number of tokens, including 5 special tokens and 256 bytes; a small corpus may yield fewer.
    """

    vocab_size: int = 32768

    def __post_init__(self) -> None:
        check_vocab_size(self.vocab_size)
        smallest = len(_SPECIAL_TOKENS) + _NUM_BYTES
        if self.vocab_size < smallest:
            raise ConfigError(
                f"the vocabulary's `vocab_size` is {self.vocab_size}, but special tokens and bytes take {smallest}. "
                "It must be at least that. Set it to tens of thousands."
            )

    def identity(self) -> dict[str, Any]:
        """Returns the settings as JSON values."""
        return dict(vars(self))

    def count(self, texts: Iterable[str]) -> Counter[str]:
        """Counts the words of a batch of texts as GPT-2 splits them, with one character per byte.

        Texts are split at white space, and each distinct part is split into words once. Every part gets a space before
        it, including the first one of a text, as in the encoding of sentences.
        """
        splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
        words: Counter[str] = Counter()
        for part, count in Counter(part for text in texts for part in text.split()).items():
            for word, _ in splitter.pre_tokenize_str(f" {part}"):
                for first in range(0, len(word), _LONGEST_WORD):
                    words[word[first : first + _LONGEST_WORD]] += count
        return words

    def train(self, counts: WordCounts, folder: str | Path, added_tokens: Sequence[str] = ()) -> Tokenizer:
        """Trains and writes tokenizer.json, vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json.

        Args:
            counts: Word counts from `count`.
            folder: Folder for the files.
            added_tokens: Tokens that texts contain as they are; they follow the special tokens.

        Raises:
            DataError: The counts are empty.
        """
        words = words_for_training(counts)
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        fixed = [*_SPECIAL_TOKENS, *added_tokens]
        trainer = trainers.BpeTrainer(
            vocab_size=most_tokens(self.vocab_size, len(fixed) + _NUM_BYTES, words),
            special_tokens=fixed,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(repeated(words), trainer)
        return _write(backend, folder, added_tokens)


def _write(backend: tokenizers.Tokenizer, folder: str | Path, added_tokens: Sequence[str]) -> Tokenizer:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    # The mask token includes the space before it, so that " <mask>" replaces a word with its space.
    mask = AddedToken("<mask>", lstrip=True, normalized=False, special=True)
    backend.add_special_tokens([*_SPECIAL_TOKENS[:-1], mask])
    backend.add_tokens([AddedToken(token, lstrip=True, normalized=False) for token in added_tokens])
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    content = backend.to_str(pretty=True)
    model = parse_json(content)["model"]
    names = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "cls_token": "<s>",
        "pad_token": "<pad>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    described_mask = {"content": "<mask>", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False}
    files = {
        "tokenizer.json": content,
        "vocab.json": model["vocab"],
        "merges.txt": "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in model["merges"]),
        "tokenizer_config.json": {"tokenizer_class": "RobertaTokenizer", "add_prefix_space": False, **names},
        "special_tokens_map.json": {**names, "mask_token": described_mask},
    }
    return write_tokenizer(folder, files)
