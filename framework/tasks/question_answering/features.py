"""Token sequences for question answering: `[CLS] question [SEP] window [SEP]`, with sliding windows over the context.

Two separators follow the question if the tokenizer uses two, as in RoBERTa.

Follows Devlin et al. 2019 (arXiv:1810.04805, section 4.2 and their run_squad.py). A window begins every `stride` tokens
until one reaches the end of the context. A window without the whole answer has [CLS] as start and end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from framework import ragged
from framework.batch import IGNORE_INDEX
from framework.data.facts import Cutting
from framework.data.flat_source import FlatSource, FlatTarget
from framework.data.layout import window_firsts
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError, DataError
from framework.tasks.question_answering.data import Question

_TEXTS_AT_ONCE = 100
"""Number of contexts tokenized at once.

Encodings with offsets take some hundred bytes per token before they become arrays, and a context may be a whole book.
"""


@dataclass(frozen=True, slots=True)
class WindowSizes:
    """Sizes of the windows over a context, in tokens.

    Attributes:
        max_length: Maximum length of a sequence, special tokens included.
        stride: Distance from the start of a window to the start of the next.
        max_question_length: Maximum length of a question. Longer questions are truncated.
    """

    max_length: int
    stride: int
    max_question_length: int

    def check(self, pair_separators: int = 1) -> None:
        """Checks that windows cover every token of a context.

        Raises:
            ConfigError: A sequence has room for fewer context tokens than `stride`.
        """
        num_specials = 2 + pair_separators
        room = self.max_length - self.max_question_length - num_specials
        if room < self.stride:
            raise ConfigError(
                f"max_length={self.max_length} has room for {room} tokens of the context beside a question of "
                f"max_question_length={self.max_question_length} and {num_specials} special tokens, so "
                f"stride={self.stride} would skip tokens. The room must be at least the stride. Raise max_length or "
                "lower the others."
            )


@dataclass(frozen=True, slots=True)
class Passage:
    """A tokenized context, shared by all questions on it.

    Attributes:
        ids: (tokens,) int32.
        starts: (tokens,) int32, start offset of each token in the context, in characters.
        ends: (tokens,) int32, exclusive end offset of each token.
    """

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True, slots=True)
class Window:
    """Record of an item: a window over the context of a question.

    Attributes:
        row: Index of the question in the source.
        question: Question of the window.
        passage: Tokenized context of the question.
        first: Index of the first passage token in the window.
    """

    row: int
    question: Question
    passage: Passage
    first: int

    @property
    def location(self) -> str:
        """Returns the location of the question."""
        return self.question.location

    @property
    def identity(self) -> tuple[str, ...]:
        """Returns the normalized context and question."""
        return self.question.identity

    @property
    def answer(self) -> tuple[()]:
        """Returns an empty tuple, as the question does."""
        return self.question.answer


def window_source(
    questions: Sequence[Question], tokenizer: Tokenizer, sizes: WindowSizes, labelled: bool = True
) -> FlatSource:
    """Builds one item per window, in the order of the questions. The record of an item is a Window.

    Targets: start_positions and end_positions (sequences,), first and last token of the answer, IGNORE_INDEX if only
    its text is known; window_starts (sequences,), first token of the context. Count: `answer`, one per window with
    known targets.

    Args:
        questions: Questions. The target of a question without answers is [CLS].
        tokenizer: Tokenizer that supplies ids, special tokens and offsets.
        sizes: Window sizes. `max_length` needs room for `stride` tokens and a question of `max_question_length`.
        labelled: True if answers are known. False: targets are IGNORE_INDEX and counts are 0.

    Raises:
        DataError: An answer has no token, because the tokenizer drops all of its characters.
        ConfigError: Windows would skip tokens of a context.
    """
    sizes.check(tokenizer.pair_separators)
    passages = _passages(questions, tokenizer)
    question_ids = tokenizer.encode_batch([question.question for question in questions])
    before, after = np.array([tokenizer.cls_id], dtype=np.int32), np.array([tokenizer.sep_id], dtype=np.int32)
    between = after.repeat(tokenizer.pair_separators)
    pieces: list[np.ndarray] = []
    lengths, window_starts, positions = [], [], []
    records: list[Window] = []
    for row, question in enumerate(questions):
        passage, ids = passages[question.context], question_ids[row][: sizes.max_question_length]
        head = 1 + len(ids) + len(between)
        room = sizes.max_length - head - 1
        span = answer_tokens(question, passage) if labelled else None
        is_known = labelled and (span is not None or not question.answers)
        for first in window_firsts(len(passage.ids), room, sizes.stride):
            part = passage.ids[first : first + room]
            pieces += [before, ids, between, part, after]
            lengths.append(head + len(part) + 1)
            window_starts.append(head)
            within = span is not None and first <= span[0] and span[1] < first + len(part)
            inside = [head + index - first for index in span] if span is not None and within else [0, 0]
            positions.append(inside if is_known else [IGNORE_INDEX] * 2)
            records.append(Window(row, question, passage, first))
    num_tokens = np.array(lengths, dtype=np.int64)
    starts = np.array(window_starts, dtype=np.int64)
    spans = np.array(positions, dtype=np.int64)
    return FlatSource(
        np.concatenate(pieces),
        num_tokens,
        {
            "start_positions": FlatTarget(spans[:, 0], "sequences", is_position=True),
            "end_positions": FlatTarget(spans[:, 1], "sequences", is_position=True),
            "window_starts": FlatTarget(starts, "sequences", is_position=True),
        },
        {"answer": (spans[:, 0] != IGNORE_INDEX).astype(np.float64)},
        sizes.max_length,
        ragged.offsets_within(num_tokens) >= np.repeat(starts, num_tokens),
        records=records,
        cutting=_cut_questions(question_ids, sizes.max_question_length),
        notes={"contexts": f"{len(passages):,}", "windows": f"{len(records):,}"},
    )


def _cut_questions(question_ids: Sequence[np.ndarray], max_length: int) -> Cutting:
    """Counts the truncated tokens of questions. Contexts are never truncated."""
    lengths = np.array([len(ids) for ids in question_ids], dtype=np.int64)
    lost = np.maximum(lengths - max_length, 0)
    return Cutting(max_length, len(question_ids), int((lost > 0).sum()), int(lengths.sum()), int(lost.sum()))


def answer_tokens(question: Question, passage: Passage) -> tuple[int, int] | None:
    """Returns the first and last token of the first answer with tokens. Returns None if no answer has an offset.

    Raises:
        DataError: Answers have offsets, but none has a token.
    """
    with_offset = [(answer.text, answer.start) for answer in question.answers if answer.start is not None]
    if not with_offset:
        return None
    for text, start in with_offset:
        first = int(np.searchsorted(passage.ends, start, side="right"))
        last = int(np.searchsorted(passage.starts, start + len(text), side="left")) - 1
        if first <= last:
            return first, last
    raise DataError(
        f"{question.location}: the answer {with_offset[0][0]!r} has no token, because the tokenizer drops all of its "
        "characters. Training needs a token. Remove the question, or choose another tokenizer."
    )


def _passages(questions: Sequence[Question], tokenizer: Tokenizer) -> dict[str, Passage]:
    texts = list(dict.fromkeys(question.context for question in questions))
    passages: dict[str, Passage] = {}
    for begin in range(0, len(texts), _TEXTS_AT_ONCE):
        some = texts[begin : begin + _TEXTS_AT_ONCE]
        passages.update(zip(some, (Passage(*each) for each in tokenizer.encode_with_offsets(some)), strict=True))
    return passages
