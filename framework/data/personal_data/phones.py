"""Finds phone numbers: with a country code anywhere, national ones of given regions.

The library phonenumbers, Google's libphonenumber, decides whether a number can exist. National numbers must also be
written as their country writes them, since years, dates and prices are numbers too.
"""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

from framework.data.personal_data.kinds import Find, privacy_library

_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_+/=&#$€£¥%@])(?<!\d[.,:\-])(?:\+ ?)?\(?\+?\d(?:[ .\-()/]{0,3}\d){6,17}(?![A-Za-z0-9_%@]|[.,:]\d)"
)
_PREFIX = re.compile(r"\+|00|011(?=[ \-])")
_NO_PHONE = re.compile(
    r"\D*(?:(?:1[5-9]|20)\d\d[ ./\-()]{1,3}(?:1[5-9]|20)\d\d(?!\d)"  # years
    r"|\d{1,2}[./\-]\d{1,2}[./\-](?:\d\d|\d{4})(?![./\-]?\d)|(?:19|20)\d\d[./\-]\d{1,2}[./\-]\d{1,2}(?!\d)"  # dates
    r"|\d{1,3}(?:\.\d{3})+$"  # thousands
    r"|\d\.\d(?!\d)"  # versions
    r"|(?:2147483647|4294967295)$"  # largest integers of 32 bits
    r"|.*(?: \.|\. ))"  # ends of sentences
)
_REFERENCE = re.compile(r"(?:isbn(?:-1[03])?|issn|doi|pmid|ean|arxiv)[ :.#]*$", re.IGNORECASE)
_FORMS = {
    "US": re.compile(r"(?:1[ .\-]?)?(?:\(\d{3}\)[ .\-]?|\d{3}[ .\-/]?)\d{3}[ .\-]?\d{4}"),
    "CN": re.compile(r"1\d{2}[ .\-]?\d{4}[ .\-]?\d{4}|\(?0\d{2,3}\)?[ \-]?\d{3,4}[ \-]?\d{4}"),
    "ES": re.compile(r"\d{3}([ .\-]?)(?:\d{3}\1\d{3}|\d{2}\1\d{2}\1\d{2})|\d{2}([ .\-])\d{3}\2\d{2}\2\d{2}"),
    "FR": re.compile(r"0\d([ .\-/]?)\d{2}\1\d{2}\1\d{2}\1\d{2}"),
    "CA": re.compile(r"(?:1[ .\-]?)?(?:\(\d{3}\)[ .\-]?|\d{3}[ .\-/]?)\d{3}[ .\-]?\d{4}"),
}
"""Written forms of the national numbers of a region; for others any grouping is accepted."""
_MAX_GROUPS = 8


class Phones:
    """Finder of phone numbers.

    Args:
        regions: Regions whose national numbers are found.
    """

    def __init__(self, regions: Sequence[str]) -> None:
        self._library = privacy_library("phonenumbers")
        self._regions = regions
        self._needs_zero = {
            region: self._library.PhoneMetadata.metadata_for_region(region).national_prefix == "0" for region in regions
        }
        self._is_phone = lru_cache(maxsize=4096)(self._check)

    def find(self, text: str, start: int, end: int) -> Iterator[Find]:
        """Yields the phone numbers between two offsets."""
        done = run_end = start
        while (match := _NUMBER.search(text, done, end)) is not None:
            is_rest, run_end, done = match.start() < run_end, match.end(), match.end()
            if _REFERENCE.search(text, max(0, match.start() - 12), match.start()):
                continue
            for first, stop in self._parts(match.group(), is_rest):
                yield Find(match.start() + first, match.start() + stop, "phone")
                done = match.start() + stop

    def _parts(self, written: str, is_rest: bool) -> list[tuple[int, int]]:
        """Returns the phone numbers in a run of digits: all of it, or the longest disjoint parts between spaces.

        "24/7 415-555-2671" has one. The rest of a run after a number has one only if it stands out.
        """
        if self._is_phone(written) and (not is_rest or _stands_out(written)):
            return [(0, len(written))]
        groups = [match.span() for match in re.finditer(r"[^ ]+", written)][:_MAX_GROUPS]
        parts = [
            (first[0], last[1])
            for index, first in enumerate(groups)
            for last in groups[index:]
            if (first, last) != (groups[0], groups[-1])
        ]
        found: list[tuple[int, int]] = []
        for begin, stop in sorted(parts, key=lambda part: part[0] - part[1]):
            is_free = all(stop <= start or end <= begin for start, end in found)
            if is_free and _stands_out(written[begin:stop]) and self._is_phone(written[begin:stop]):
                found.append((begin, stop))
        return sorted(found)

    def _check(self, written: str) -> bool:
        prefix = _PREFIX.match(written.lstrip(" ("))
        if prefix is not None:
            rest = written.lstrip(" (")[prefix.end() :]
            if self._exists("+" + rest, None):
                return True
        if written.startswith("+") or _NO_PHONE.match(written):
            return False
        return any(self._is_national(written, region) for region in self._regions)

    def _is_national(self, written: str, region: str) -> bool:
        form = _FORMS.get(region)
        if form is not None and not form.fullmatch(written):
            return False
        needs_zero = self._needs_zero[region] and not (region == "CN" and written.startswith("1"))
        if needs_zero and not written.lstrip("(").startswith("0"):
            return False
        return self._exists(written, region)

    def _exists(self, written: str, region: str | None) -> bool:
        try:
            number = self._library.parse(written, region)
        except self._library.NumberParseException:
            return False
        return bool(self._library.is_valid_number(number))


def _stands_out(part: str) -> bool:
    """Returns whether a part differs from the groups of digits around it; in a row of numbers none does."""
    digits = sum(map(str.isdigit, part))
    return digits >= 8 and (part[0] in "+(0" or "-" in part or (" " not in part and digits >= 10))
