"""Explained scores of predictions, and the spans of tokens in the texts of their rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from framework.data.planning.plan import SequenceSource, StepSequences
from framework.data.tokenization.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Explained:
    """A score to explain.

    Attributes:
        item: Index of the item in the source. A row with several items (windows of a long text) has the one that
            decides its prediction.
        target: Value from which `Task.explained_scores` finds the score in the outputs of the item.
        name: Name of the score, such as a label.
        details: Further keys of the output row.
    """

    item: int
    target: Any
    name: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


class TextSpan(NamedTuple):
    """Part of a text that a token stands for.

    Attributes:
        field: Field of the row.
        start: Offset of its first character (code point), or of its word if the field is a list of words.
        end: Offset after it.
    """

    field: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class TokenSpans:
    """Spans of the tokens of an item.

    Attributes:
        texts: Texts or lists of words of the row in the order of the tokens, by field.
        spans: Span of each token, by its index in the item. Special tokens have none, and neither has a token that no
            character corresponds to, such as the mark of an entity.
        tokens: Range of the tokens that the explained score depends on. An item may have further sequences.
        cut: Parts of the texts that the model does not read, because they are longer than a sequence.
    """

    texts: Mapping[str, str | Sequence[str]]
    spans: Mapping[int, TextSpan]
    tokens: range
    cut: Sequence[TextSpan] = ()


@dataclass(frozen=True, slots=True)
class ExactExplanation:
    """A score that is a sum of terms of tokens, so that nothing has to be attributed.

    Attributes:
        input_ids: (tokens,) ids of the item.
        token_scores: (tokens,) float64.
        score: Score of the item.
        spans: Spans of the tokens.
        details: Further keys of the output row.
    """

    input_ids: np.ndarray
    token_scores: np.ndarray
    score: float
    spans: TokenSpans
    details: Mapping[str, Any]


@runtime_checkable
class ExactlyExplained(Protocol):
    """Additional method of a task whose scores are such sums."""

    def exact_explanation(
        self, source: Any, item: int, decoded: Any, values: Mapping[str, str], tokenizer: Tokenizer
    ) -> ExactExplanation:
        """Explains the score of an item.

        Args:
            source: Source from `build_source`.
            item: Index of the item.
            decoded: Object of `decode` for it.
            values: Values of its row by field.
            tokenizer: Tokenizer of the model.
        """


def one_item(source: SequenceSource, item: int) -> Any:
    """Builds the micro-batch of one item, on the host."""
    return source.build(StepSequences(np.zeros(1, np.int64), np.array([item]), np.zeros(1, np.int64)), 0)


def is_special(input_ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Returns True for special tokens. An unknown word is no special token.

    Args:
        input_ids: (tokens,) ids.
        tokenizer: Tokenizer of the model.

    Returns:
        (tokens,) bool.
    """
    return np.isin(input_ids, tokenizer.special_ids[tokenizer.special_ids != tokenizer.unk_id])


def locate_texts(input_ids: np.ndarray, texts: Mapping[str, str], tokenizer: Tokenizer, begin: int = 0) -> TokenSpans:
    """Locates the tokens of texts that special tokens separate, and that may be truncated at their ends.

    Args:
        input_ids: (tokens,) ids with special tokens, for example `[CLS] text [SEP] pair [SEP]`.
        texts: Texts in the order of the tokens, by field.
        tokenizer: Tokenizer of the model.
        begin: Index of the first of these tokens in the item.
    """
    real = np.flatnonzero(~is_special(input_ids, tokenizer))
    parts = iter(np.split(real, np.flatnonzero(np.diff(real) > 1) + 1) if len(texts) > 1 else [real])
    spans: dict[int, TextSpan] = {}
    cut: list[TextSpan] = []
    for name, (own, starts, ends) in zip(texts, tokenizer.encode_with_offsets(list(texts.values())), strict=True):
        if not len(own):
            continue
        indices = next(parts, real[:0])
        spans |= located(name, indices + begin, starts, ends)
        if len(indices) < len(own):
            cut.append(TextSpan(name, int(starts[len(indices)]), len(texts[name])))
    return TokenSpans(texts, spans, range(begin, begin + len(input_ids)), cut)


def located(
    name: str, indices: Sequence[int] | np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> dict[int, TextSpan]:
    """Returns the spans of tokens in one text.

    Args:
        name: Field of the text.
        indices: (tokens,) indices in the item.
        starts: Offset of the first character of each token; there may be more than tokens.
        ends: Offset after the last character of each token.
    """
    offsets = zip(starts.tolist(), ends.tolist(), strict=True)
    return {int(index): TextSpan(name, *offset) for index, offset in zip(indices, offsets, strict=False)}
