"""Tag schemes that mark entities in tagged words: IOB1, BIO (also called IOB2) and BIOES.

IOB1 is from Ramshaw and Marcus 1995, "Text Chunking using Transformation-Based Learning". It uses B- only for an entity
that directly follows another of its type. BIO begins every entity with B-. BIOES also ends it with E-, and marks an
entity of a single word with S-. `framework.metrics.entity_f1.entity_spans` reads all three. This module has the rules
of each scheme.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from framework.metrics.entity_f1 import entity_spans

Scheme = Literal["iob1", "bio", "bioes"]

_TAG = re.compile(r"O|[BIES]-.+", re.DOTALL)
_END = "O"


def is_tag(tag: str) -> bool:
    """Returns True if the tag is `O`, or B-, I-, E- or S- with a type."""
    return _TAG.fullmatch(tag) is not None


def first_violation(tags: Sequence[str], scheme: Scheme) -> int | None:
    """Returns the index of the first tag that may not follow the tag before it.

    Args:
        tags: (words,) tags of one sentence, each valid by `is_tag`.
        scheme: Tag scheme.

    Returns:
        The index. None if the scheme allows all tags. The number of words if the sentence may not end there.
    """
    previous = _END
    for index, tag in enumerate([*tags, _END]):
        if not _allows(scheme, previous, tag):
            return index
        previous = tag
    return None


def _allows(scheme: Scheme, previous: str, tag: str) -> bool:
    """Returns True if `tag` may follow `previous`. O stands for the start and the end of a sentence."""
    prefix = tag[0]
    is_open = previous[0] in "BI"
    has_same_type = is_open and previous[2:] == tag[2:]
    if scheme == "bio":
        return prefix in "OB" or (prefix == "I" and has_same_type)
    if scheme == "iob1":
        return prefix in "OI" or (prefix == "B" and has_same_type)
    return prefix in "IE" and has_same_type if is_open else prefix in "OBS"


def detect_scheme(sentences: Iterable[Sequence[str]]) -> Scheme:
    """Detects the scheme: BIOES if any tag is E- or S-, else BIO or IOB1, whichever fewer sentences violate.

    Args:
        sentences: Tags of each sentence, each valid by `is_tag`.
    """
    num_violations: dict[Scheme, int] = {"bio": 0, "iob1": 0}
    for tags in sentences:
        if any(tag[0] in "ES" for tag in tags):
            return "bioes"
        for scheme in num_violations:
            num_violations[scheme] += first_violation(tags, scheme) is not None
    return "iob1" if num_violations["iob1"] < num_violations["bio"] else "bio"


def bio_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """Converts tags to BIO with the same entities. Tags that violate their scheme are read as conlleval reads them."""
    converted = ["O"] * len(tags)
    for start, stop, label in entity_spans(tags):
        converted[start:stop] = [f"B-{label}", *[f"I-{label}"] * (stop - start - 1)]
    return tuple(converted)
