"""Token sequences of queries and documents: their markers, their lengths, and the tokens that count in a score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from framework import ragged
from framework.data.facts import Cutting
from framework.data.layout import SHORTEST, Layout, lay_out
from framework.data.tokenization.markers import is_punctuation, marker_id
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError
from framework.tasks.explanation import TextSpan

IS_SCORED = "is_scored"
"""Name of the (tokens,) target that is 1 for tokens whose vectors count in a score."""


@dataclass(frozen=True)
class Side:
    """Layout of the queries, or of the documents.

    Attributes:
        name: "query" or "document", for messages.
        marker: Marker after the first special token; "": none.
        max_length: Maximum number of tokens of a sequence, marker and special tokens included.
        is_expanded: True appends [MASK] tokens up to the maximum length.
    """

    name: str
    marker: str
    max_length: int
    is_expanded: bool = False

    def lay_out(self, texts: Sequence[str], tokenizer: Tokenizer) -> Layout:
        """Tokenizes texts of this side: `[CLS] marker text [SEP]`, then the [MASK] tokens.

        Raises:
            ConfigError: The marker leaves no room for a token of the text.
        """
        inserted = marker_id(self.marker, tokenizer)
        size = 1 if inserted is not None else len(tokenizer.encode_batch([self.marker])[0])
        if size + SHORTEST > self.max_length:
            raise ConfigError(
                f"task.{self.name}_marker is {self.marker!r}, which has {size} tokens, but task.{self.name}_length is "
                f"{self.max_length}. Two special tokens and a token of the text must fit too. Raise "
                f"task.{self.name}_length to at least {size + SHORTEST}, or choose a shorter marker."
            )
        if inserted is None:
            layout = lay_out([self.marker + text for text in texts], None, tokenizer, self.max_length)
        else:
            layout = lay_out(texts, None, tokenizer, self.max_length - 1)
        ids, lengths = layout.input_ids, layout.lengths
        if inserted is not None:
            ids = np.insert(ids, ragged.starts(lengths) + 1, inserted)
            lengths = lengths + 1
        if self.is_expanded:
            ids = np.insert(ids, np.repeat(np.cumsum(lengths), self.max_length - lengths), tokenizer.mask_id)
            lengths = np.full_like(lengths, self.max_length)
        return Layout(ids, lengths, None, layout.cutting)

    def locate(self, field: str, text: str, tokenizer: Tokenizer) -> tuple[dict[int, TextSpan], list[TextSpan]]:
        """Returns the spans of the tokens of a text by their index in its sequence, and the part that is cut off.

        Args:
            field: Field of the text.
            text: Text without its marker.
            tokenizer: Tokenizer of the model.
        """
        is_inserted = marker_id(self.marker, tokenizer) is not None
        marker = "" if is_inserted else self.marker
        ((_, starts, ends),) = tokenizer.encode_with_offsets([marker + text])
        first, room = 1 + is_inserted, self.max_length - 2 - is_inserted
        spans = {
            first + place: TextSpan(field, max(start - len(marker), 0), end - len(marker))
            for place, (start, end) in enumerate(zip(starts[:room].tolist(), ends[:room].tolist(), strict=True))
            if end > len(marker)
        }
        cut = [] if len(starts) <= room else [TextSpan(field, int(starts[room]) - len(marker), len(text))]
        return spans, cut


@dataclass(frozen=True)
class SidedLayout:
    """Layout of texts of both sides (`framework.tasks.embedding.features.LayOut`).

    Attributes:
        query: Layout of the queries.
        document: Layout of the documents.
        skips_punctuation: True leaves the punctuation marks of documents out of scores.
    """

    query: Side
    document: Side
    skips_punctuation: bool

    def __call__(
        self,
        texts: Sequence[str],
        is_document: np.ndarray,
        tokenizer: Tokenizer,
        max_length: int,  # noqa: ARG002  each side has its own
    ) -> tuple[Layout, Mapping[str, np.ndarray]]:
        """Returns the layout of the texts in their order, and the target `is_scored`."""
        lengths = np.zeros(len(texts), dtype=np.int64)
        starts = np.zeros(len(texts), dtype=np.int64)
        parts: list[Layout] = []
        for side, is_own in ((self.query, ~is_document), (self.document, is_document)):
            own = side.lay_out([text for text, is_chosen in zip(texts, is_own, strict=True) if is_chosen], tokenizer)
            starts[is_own] = ragged.starts(own.lengths) + sum(len(part.input_ids) for part in parts)
            lengths[is_own] = own.lengths
            parts.append(own)
        input_ids = np.concatenate([part.input_ids for part in parts])[ragged.ranges(starts, lengths)]
        cuttings = [part.cutting for part in parts]
        counts = {name: sum(getattr(each, name) for each in cuttings) for name in ("texts", "cut", "tokens", "lost")}
        is_scored = np.ones(len(input_ids), dtype=np.int64)
        if self.skips_punctuation:
            is_scored[np.repeat(is_document, lengths) & is_punctuation(input_ids, tokenizer)] = 0
        return Layout(input_ids, lengths, None, Cutting(0, **counts)), {IS_SCORED: is_scored}
