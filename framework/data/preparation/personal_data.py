"""Step of a preparation that counts, masks or drops personal data in the documents that cleaning keeps.

The result for a document depends on its text and the settings alone, so every pass and every resumed start repeats it.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from framework.data.personal_data.finder import Finder
from framework.data.personal_data.kinds import Detection
from framework.data.personal_data.masks import mask_tokens, masked, masks_of
from framework.data.reading.documents import text_hash
from framework.data.tokenization.document_encoder import DocumentEncoder, EncodedDocuments
from framework.data.tokenization.tokenizer import Tokenizer
from framework.files import write_atomic

Action = Literal["report", "mask", "drop"]
Span = tuple[int, int]
"""Offset of the first character of a name, and offset after its last character."""
FindNames = Callable[[Sequence[str]], list[list[Span]]]
"""Returns the spans of the names of each text; they depend on this list of texts alone."""
DOCUMENTS = "documents"
"""Key of the number of documents with personal data, beside the numbers of finds by kind."""


class NameModel(Protocol):
    """Search for names by a model; must be picklable. `framework.prepare` supplies one that a run has trained."""

    def identity(self) -> dict[str, Any]:
        """Returns what determines the finds, as JSON values."""

    def __call__(self) -> FindNames:
        """Loads the model into this process."""


@dataclass(frozen=True)
class RememberedNames:
    """Search for names that keeps the spans of each list of texts in a folder, and reads them there the next time.

    So each text is predicted once, although the training of a vocabulary and the encoding both need its names, and a
    preparation that was killed.

    Attributes:
        model: The search.
        folder: Folder for the spans; it is created.
    """

    model: NameModel
    folder: Path

    def __call__(self) -> FindNames:
        """Returns the search, which loads its model when it meets the first new list of texts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        loaded: list[FindNames] = []

        def find(texts: Sequence[str]) -> list[list[Span]]:
            digest = hashlib.blake2b(json.dumps(list(texts)).encode(), digest_size=16).hexdigest()
            file = self.folder / f"{digest}.json"
            if not file.is_file():
                if not loaded:
                    loaded.append(self.model())
                write_atomic(file, json.dumps(loaded[0](texts)))
            return [[(start, end) for start, end in spans] for spans in json.loads(file.read_bytes())]

        return find


@dataclass(frozen=True)
class Cleared:
    """Texts after the step.

    Attributes:
        texts: Texts: unchanged, masked, or empty if dropped.
        hashes: {index: `text_hash`} of the masked texts, since the hash of a short text would give it away.
        counts: Number of finds by kind, and of documents with finds (`DOCUMENTS`).
    """

    texts: list[str]
    hashes: dict[int, int]
    counts: Counter[str]


@dataclass(frozen=True)
class PersonalDataStep:
    """Settings of the step, which can be pickled.

    Attributes:
        action: "report" counts, "mask" replaces each find, "drop" empties documents with finds.
        detection: Settings of the search.
        masks: Mask by kind; used by the action "mask".
        names: Search for names by a model, built once per process; None: none.
    """

    action: Action
    detection: Detection
    masks: Mapping[str, str]
    names: Callable[[], FindNames] | None = None

    @classmethod
    def of(cls, action: Action, detection: Detection, given: Tokenizer | None) -> "PersonalDataStep":
        """Chooses the masks.

        Args:
            action: Action of the step.
            detection: Settings of the search.
            given: Given tokenizer; None: a vocabulary is trained, and gets the tokens of the masks.

        Raises:
            ConfigError: The given vocabulary has no mask for a kind.
        """
        kinds = detection.all_kinds
        masks = mask_tokens(kinds) if given is None or action != "mask" else masks_of(given, kinds)
        return cls(action, detection, masks)

    @property
    def added_tokens(self) -> tuple[str, ...]:
        """Returns the tokens that a trained vocabulary needs."""
        return tuple(self.masks.values()) if self.action == "mask" else ()

    def finder(self) -> Callable[[Sequence[str]], Cleared]:
        """Builds the step, once per process."""
        finder = Finder(self.detection)
        find_names = None if self.names is None else self.names()

        def clear(texts: Sequence[str]) -> Cleared:
            cleared = Cleared(list(texts), {}, Counter())
            names = [()] * len(texts) if find_names is None else find_names(texts)
            for index, (text, spans) in enumerate(zip(texts, names, strict=True)):
                finds = finder.find(text, spans)
                if not finds:
                    continue
                cleared.counts.update(find.kind for find in finds)
                cleared.counts[DOCUMENTS] += 1
                if self.action == "mask":
                    cleared.texts[index] = masked(text, finds, self.masks)
                    cleared.hashes[index] = text_hash(cleared.texts[index])
                elif self.action == "drop":
                    cleared.texts[index] = ""
            return cleared

        return clear


class ClearedCounting:
    """Counts the words of texts without their personal data, for the training of a vocabulary.

    Args:
        step: Step before counting; None: none.
        count: Counter of words.
    """

    def __init__(self, step: PersonalDataStep | None, count: Callable[[Iterable[str]], Counter[str]]) -> None:
        changes = step is not None and step.action != "report"
        # A space instead of each mask: the masks are tokens already.
        self._clear = replace(step, masks=dict.fromkeys(step.masks, " ")).finder() if step and changes else None
        self._count = count

    def __call__(self, texts: Sequence[str]) -> Counter[str]:
        """Counts the words of a batch of texts."""
        return self._count(texts if self._clear is None else self._clear(texts).texts)


class ClearedEncoding:
    """Encodes texts after the step.

    Args:
        step: Step before encoding; None: none.
        tokenizer_folder: Folder of the tokenizer.
    """

    def __init__(self, step: PersonalDataStep | None, tokenizer_folder: Path) -> None:
        self._clear = None if step is None else step.finder()
        self._encode = DocumentEncoder(tokenizer_folder)

    def __call__(self, texts: Sequence[str]) -> tuple[EncodedDocuments, Cleared | None]:
        """Encodes a batch of texts.

        Returns:
            The documents, and the result of the step without its texts; None without a step.
        """
        if self._clear is None:
            return self._encode(texts), None
        cleared = self._clear(texts)
        return self._encode(cleared.texts), replace(cleared, texts=[])
