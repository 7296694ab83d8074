"""Schemes by which the tags of words say where entities are: IOB1, BIO (also called IOB2) and BIOES.

IOB1 is of Ramshaw and Marcus 1995, "Text Chunking using Transformation-Based Learning": B- stands only where an entity
follows another of its type. BIO begins every entity with B-. BIOES also ends it with E-, and one of a single word is
S-. All three are read by `framework.metrics.entity_f1.entity_spans`; here is what each of them forbids.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from framework.metrics.entity_f1 import entity_spans

Scheme = Literal["iob1", "bio", "bioes"]

_TAG = re.compile(r"O|[BIES]-.+", re.DOTALL)
_END = "O"


def is_tag(tag: str) -> bool:
    """Whether a tag is `O`, or B-, I-, E- or S- with a type."""
    return _TAG.fullmatch(tag) is not None


def first_violation(tags: Sequence[str], scheme: Scheme) -> int | None:
    """The first place where a scheme forbids what stands there, in view of the tag before it.

    Args:
        tags: (words,) of one sentence; each is one by `is_tag`.
        scheme: The scheme.

    Returns:
        None where the scheme allows all; the number of words where it forbids the end.
    """
    before = _END
    for place, tag in enumerate([*tags, _END]):
        if not _allows(scheme, before, tag):
            return place
        before = tag
    return None


def _allows(scheme: Scheme, before: str, tag: str) -> bool:
    """Whether a tag may follow another; O stands for what is around a sentence."""
    prefix = tag[0]
    is_open = before[0] in "BI"
    goes_on = is_open and before[2:] == tag[2:]
    if scheme == "bio":
        return prefix in "OB" or (prefix == "I" and goes_on)
    if scheme == "iob1":
        return prefix in "OI" or (prefix == "B" and goes_on)
    return prefix in "IE" and goes_on if is_open else prefix in "OBS"


def detect_scheme(sentences: Iterable[Sequence[str]]) -> Scheme:
    """The scheme of a file: BIOES where any tag is E- or S-, else the one of BIO and IOB1 that fewer sentences break.

    Args:
        sentences: The tags of each; each tag is one by `is_tag`.
    """
    broken: dict[Scheme, int] = {"bio": 0, "iob1": 0}
    for tags in sentences:
        if any(tag[0] in "ES" for tag in tags):
            return "bioes"
        for scheme in broken:
            broken[scheme] += first_violation(tags, scheme) is not None
    return "iob1" if broken["iob1"] < broken["bio"] else "bio"


def bio_tags(tags: Sequence[str]) -> tuple[str, ...]:
    """The same entities in BIO; tags that break their scheme are read as conlleval reads them."""
    converted = ["O"] * len(tags)
    for start, stop, label in entity_spans(tags):
        converted[start:stop] = [f"B-{label}", *[f"I-{label}"] * (stop - start - 1)]
    return tuple(converted)
