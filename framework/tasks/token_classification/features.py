"""Token sequences for token classification: `[CLS] words [SEP]`. The first sub-word of each word carries its tag."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from framework import ragged
from framework.batch import IGNORE_INDEX
from framework.data.examples.answers import parse_list
from framework.data.examples.splits import same_text
from framework.data.facts import Cutting
from framework.data.flat_source import FlatSource, FlatTarget
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.written_text import join_words
from framework.errors import DataError
from framework.tasks.token_classification.text_units import TextUnit
from framework.tasks.token_classification.windows import split_windows

_WORDS_AT_ONCE = 100_000


@dataclass(frozen=True, slots=True)
class Example:
    """A sentence or text, split into words.

    Attributes:
        words: Words to tag.
        tags: (words,) in BIO. None if unknown.
        text: Text that contains the words. None if the input is a list of words.
        units: (words,) offsets of the words in the text. Empty if there is no text.
        location: File and sentence. Empty if the example is not from a file.
    """

    words: Sequence[str]
    tags: Sequence[str] | None = None
    text: str | None = None
    units: Sequence[TextUnit] = ()
    location: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """Record of a FlatSource: the example that a sequence belongs to.

    Attributes:
        row: Index of the example.
        example: Example whose words the sequence predicts, all of them or a contiguous range.
        first: Index of the first word in the sequence, which another sequence may predict.
    """

    row: int
    example: Example
    first: int = 0

    @property
    def location(self) -> str:
        """Returns the location of the example."""
        return self.example.location

    @property
    def identity(self) -> tuple[str, ...]:
        """Returns the normalized text of the whole example."""
        return (same_text(join_words(self.example.words) if self.example.text is None else self.example.text),)

    @property
    def answer(self) -> tuple[str, ...]:
        """Returns the tags of the whole example."""
        return tuple(self.example.tags or ())


def parse_words(location: str, cell: str) -> list[str]:
    """Reads the words of a JSON list.

    Raises:
        DataError: The cell is not a list of texts, or a text is blank.
    """
    words = parse_list(cell)
    if not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise DataError(
            f"{location}: 'tokens' is {cell[:60]!r}. It must be a list of words, at least one and none empty. Correct "
            "or remove the row."
        )
    return words


def tagging_source(
    examples: Sequence[Example], tags: Sequence[str], tokenizer: Tokenizer, max_length: int, stride: int
) -> FlatSource:
    """Builds the sequences of examples, with the count `tags` and two targets per token.

    The targets are `labels`, indices into the tag set, and `is_word`, 1 where a word is predicted. Both exclude special
    tokens, sub-words after the first, and words that another window of the sentence predicts.

    Args:
        examples: Examples, all with tags or all without.
        tags: Tag set in the order of scores.
        tokenizer: Tokenizer that supplies ids and special tokens.
        max_length: Maximum number of tokens of a sequence, special tokens included.
        stride: Stride of `split_windows`.
    """
    room = max_length - 2
    ids_of = encode_words((word for example in examples for word in example.words), tokenizer)
    index_of = {tag: index for index, tag in enumerate(tags)}
    ids: list[np.ndarray] = []
    lengths, labels, parts = [], [], []
    is_word: list[np.ndarray] = []
    cls_id, sep_id = (np.array([each], dtype=np.int32) for each in (tokenizer.cls_id, tokenizer.sep_id))
    for row, example in enumerate(examples):
        # A word that is longer than a sequence is truncated.
        pieces = [ids_of[word][:room] for word in example.words]
        sizes = np.array([len(piece) for piece in pieces], dtype=np.int64)
        word_labels = [index_of[tag] for tag in example.tags] if example.tags is not None else None
        for window in split_windows(sizes, room, stride):
            inside = sizes[window.words]
            ids += [cls_id, *pieces[window.words], sep_id]
            lengths.append(int(inside.sum()) + 2)
            firsts = 1 + ragged.starts(inside)
            offset = window.words.start
            predicted = firsts[window.predicted.start - offset : window.predicted.stop - offset]
            word_mask, targets = np.zeros(lengths[-1], dtype=np.int64), np.full(lengths[-1], IGNORE_INDEX)
            word_mask[predicted] = 1
            if word_labels is not None:
                targets[predicted] = word_labels[window.predicted]
            is_word.append(word_mask)
            labels.append(targets)
            parts.append(Part(row, example, offset))
    return FlatSource(
        np.concatenate(ids),
        np.array(lengths),
        {
            "labels": FlatTarget(np.concatenate(labels), "tokens"),
            "is_word": FlatTarget(np.concatenate(is_word), "tokens", filler=0),
        },
        {"tags": np.array([(each != IGNORE_INDEX).sum() for each in labels])},
        max_length,
        records=parts,
        cutting=_cut_words(examples, ids_of, max_length),
        notes=_notes(examples, ids_of, room),
    )


def _cut_words(examples: Sequence[Example], ids_of: Mapping[str, np.ndarray], max_length: int) -> Cutting:
    """Counts the tokens lost by truncating words that are longer than a sequence."""
    lost = [sum(max(len(ids_of[word]) - (max_length - 2), 0) for word in example.words) for example in examples]
    num_tokens = sum(len(ids_of[word]) for example in examples for word in example.words)
    return Cutting(max_length, len(examples), sum(each > 0 for each in lost), num_tokens, sum(lost))


def _notes(examples: Sequence[Example], ids_of: Mapping[str, np.ndarray], room: int) -> dict[str, str]:
    num_split = sum(sum(len(ids_of[word]) for word in example.words) > room for example in examples)
    notes = {"words": f"{sum(len(example.words) for example in examples):,}"}
    return notes | ({"sentences longer than a sequence": f"{num_split:,}"} if num_split else {})


def encode_words(words: Iterable[str], tokenizer: Tokenizer) -> Mapping[str, np.ndarray]:
    """Tokenizes each word separately, so that it has the same ids in a text and in a list.

    If the vocabulary marks the space before a word, each word gets that space. A word that the tokenizer reduces to
    nothing (control characters, stripped accents) becomes the unknown token, because its tag needs a token.
    """
    distinct = list(dict.fromkeys(words))
    unknown = np.array([tokenizer.unk_id], dtype=np.int32)
    encoded: dict[str, np.ndarray] = {}
    for first in range(0, len(distinct), _WORDS_AT_ONCE):
        some = distinct[first : first + _WORDS_AT_ONCE]
        texts = [f" {word}" for word in some] if tokenizer.space_marked else some
        for word, ids in zip(some, tokenizer.encode_batch(texts), strict=True):
            encoded[word] = ids if len(ids) else unknown
    return encoded
