"""Finds all configured kinds of personal data in a text."""

import bisect
from collections.abc import Iterator, Sequence

from framework.data.personal_data import addresses
from framework.data.personal_data.kinds import NAME, Detection, Find
from framework.data.personal_data.names import Names
from framework.data.personal_data.numbers import Numbers, windows
from framework.data.personal_data.phones import Phones
from framework.data.personal_data.prefilter import Traces, plain, traces


class Finder:
    """Search for personal data; the finds are a pure function of the text and the settings.

    Args:
        detection: Settings of the search.
    """

    def __init__(self, detection: Detection) -> None:
        self._kinds = frozenset(detection.kinds)
        self._numbers = Numbers(detection.kinds, detection.regions)
        self._phones = Phones(detection.regions) if "phone" in self._kinds else None
        self._names = Names(detection.names) if detection.names else None

    def find(self, text: str, names: Sequence[tuple[int, int]] = ()) -> list[Find]:
        """Returns the finds in the order of the text; they do not overlap.

        Of overlapping finds, the first of these kinds is kept: URL, email, IBAN, identity number, card, IP, phone,
        handle, name of the list. Of names by a model, the parts outside of other finds are kept.

        Args:
            text: Text.
            names: (start, end) of the names that a model found, in order and disjoint.
        """
        seen = traces(text)
        if seen is None and self._names is None and not names:
            return []
        finds = [] if seen is None else list(self._by_format(plain(text), seen))
        if self._names is not None:
            finds += self._names.find(text)
        kept = _without_overlaps(finds)
        return kept if not names else sorted([*kept, *_outside(text, names, kept)])

    def _by_format(self, text: str, seen: Traces) -> Iterator[Find]:
        # "https://jane:secret@example.com" looks like an email address, too.
        if seen.url and "url_user" in self._kinds:
            yield from addresses.find_user_urls(text)
        if seen.at and "email" in self._kinds:
            yield from addresses.find_emails(text)
        parts = windows(text) if seen.number else []
        for start, end in parts:
            yield from self._numbers.find(text, start, end)
        if "ip" in self._kinds and (seen.number or seen.colons):
            yield from addresses.find_ips(text)
        if self._phones is not None:
            for start, end in parts:
                yield from self._phones.find(text, start, end)
        if seen.at and "handle" in self._kinds:
            yield from addresses.find_handles(text)


def _outside(text: str, names: Sequence[tuple[int, int]], finds: Sequence[Find]) -> Iterator[Find]:
    """Yields the parts of names outside of finds that have a letter, without white space at their ends."""
    for start, end in names:
        borders = [start]
        for find in finds:
            if find.start < end and start < find.end:
                borders += [min(max(find.start, start), end), min(max(find.end, start), end)]
        borders.append(end)
        for first, stop in zip(borders[::2], borders[1::2], strict=True):
            part = text[first:stop]
            if any(map(str.isalpha, part)):
                first += len(part) - len(part.lstrip())
                yield Find(first, first + len(part.strip()), NAME)


def _without_overlaps(finds: list[Find]) -> list[Find]:
    """Keeps each find that overlaps no earlier one of the list, and sorts them by offset."""
    kept: list[Find] = []
    for find in finds:
        index = bisect.bisect_left(kept, find)
        is_free = (index == 0 or kept[index - 1].end <= find.start) and (
            index == len(kept) or find.end <= kept[index].start
        )
        if is_free:
            kept.insert(index, find)
    return kept
