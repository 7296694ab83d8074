"""Masks the personal data of examples with labels; spans of an example move with its text."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from framework.data.personal_data.finder import Finder
from framework.data.personal_data.kinds import Detection, Find
from framework.data.personal_data.masks import masked, masks_of
from framework.data.tokenization.tokenizer import Tokenizer

HIDDEN = "[...]"
"""Replacement of words of messages that may be a part of personal data."""
_SUSPECT = re.compile(r"\S*(?:[@＠]|://)\S*|\S*(?:\d[\W_]?){5}\S*")
_REMEMBERED = 64
"""Number of texts whose result is kept: several questions have the same context."""


class MaskedText(NamedTuple):
    """Text with masks.

    Attributes:
        text: Text with masks.
        finds: Finds of the original text, in order.
        lengths: (finds,) length of the mask of each find, in characters.
    """

    text: str
    finds: Sequence[Find]
    lengths: Sequence[int]

    def moved(self, start: int, end: int) -> tuple[int, int]:
        """Returns the span of the masked text that corresponds to a span of the original text.

        A span that begins or ends within personal data is extended over its whole mask.
        """
        return self._moved(start, is_end=False), self._moved(end, is_end=True)

    def _moved(self, offset: int, is_end: bool) -> int:
        added = 0
        for find, length in zip(self.finds, self.lengths, strict=True):
            if offset <= find.start:
                break
            if offset < find.end:
                return find.start + added + (length if is_end else 0)
            added += length - (find.end - find.start)
        return offset + added


class TextMasking:
    """Masks texts for a given vocabulary.

    Args:
        detection: Settings of the search.
        masks: Mask by kind.

    Attributes:
        counts: Number of finds that were masked, by kind.
    """

    def __init__(self, detection: Detection, masks: Mapping[str, str]) -> None:
        self._finder = Finder(detection)
        self._masks = masks
        self.counts: Counter[str] = Counter()
        self._remembered = lru_cache(_REMEMBERED)(self._masked)

    @classmethod
    def of(cls, detection: Detection, tokenizer: Tokenizer) -> "TextMasking":
        """Chooses the masks for a tokenizer.

        Raises:
            ConfigError: The vocabulary has no mask for a kind.
        """
        return cls(detection, masks_of(tokenizer, detection.all_kinds))

    def text(self, text: str) -> str:
        """Returns a text with masks."""
        return self.mask(text).text

    def value(self, value: Any) -> Any:
        """Returns a JSON value with masks in its texts; a number that is personal data becomes a text."""
        if isinstance(value, Mapping):
            return {key: self.value(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(each) for each in value]
        if value is None or isinstance(value, bool):
            return value
        masked = self.text(str(value))
        return value if masked == str(value) else masked

    def message(self, message: str) -> str:
        """Returns a message about a row, as "LOCATION: TEXT", that shows no personal data of the row.

        Messages quote the beginnings of texts, which may end within an address or a number. Therefore, words with an at
        sign, a scheme or five digits are hidden, too.
        """
        location, colon, text = message.partition(": ")
        return location + colon + _SUSPECT.sub(HIDDEN, self._remembered(text).text)

    def mask(self, text: str) -> MaskedText:
        """Returns a text with masks, from which spans can be moved; equal recent texts give the same object."""
        result = self._remembered(text)
        self.counts.update(find.kind for find in result.finds)
        return result

    def _masked(self, text: str) -> MaskedText:
        finds = self._finder.find(text)
        if not finds:
            return MaskedText(text, (), ())
        return MaskedText(masked(text, finds, self._masks), finds, [len(self._masks[find.kind]) for find in finds])
