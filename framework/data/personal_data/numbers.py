"""Finds numbers of persons and accounts: bank cards, IBANs, national identity numbers.

Each has a checksum: Luhn's (ISO/IEC 7812-1) for cards, modulo 97 (ISO 7064) for IBANs, its own for identity numbers;
the library python-stdnum verifies them. US social security and UK national insurance numbers have none, so their
written form decides.
"""

import re
from collections.abc import Callable, Iterator, Sequence

from framework.data.personal_data.kinds import Find, privacy_library

_RUN = re.compile(r"\d(?:[ .\-()/]{0,3}\d){5,}", re.ASCII)
_MARGIN = 24
"""Characters around a run of digits that belong to its window: the country and the bank of an IBAN."""

_CARD = re.compile(
    r"(?<![A-Za-z0-9_+])(?<!\d[.\-])"
    r"(?:\d{13,19}|\d{4}([ .\-])\d{4}\1\d{4}\1\d{4}(?:\1\d{1,3})?|\d{4}([ .\-])\d{6}\2\d{4,5}|\d{6}[ \-]\d{10,13})"
    r"(?![A-Za-z0-9_]|[.\-]\d)"
)
# First digits, and lengths, of the issuers in this order: Visa, Mastercard, American Express, Diners, Discover, JCB,
# UnionPay, Maestro, Mir.
_ISSUER = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"
    r"|(?:5[1-5]\d{2}|222[1-9]|22[3-9]\d|2[3-6]\d{2}|27[01]\d|2720)\d{12}"
    r"|3[47]\d{13}"
    r"|3(?:0[0-59]\d|[689]\d{2})\d{10}(?:\d{2})?"
    r"|(?:6011|64[4-9]\d|65\d{2})\d{12}(?:\d{3})?"
    r"|35(?:2[89]|[3-8]\d)\d{12}(?:\d{3})?"
    r"|(?:62|81)\d{14,17}"
    r"|(?:50|5[6-9]|6[37])\d{12,17}"
    r"|220[0-4]\d{12,15}"
)
_IBAN = re.compile(r"(?<![A-Za-z0-9_])[A-Za-z]{2}\d{2}(?:[ \-]?[A-Za-z0-9]){11,30}(?![A-Za-z0-9_])")
_NOT_BEFORE, _NOT_AFTER = r"(?<![A-Za-z0-9_+])(?<!\d[.\-])", r"(?![A-Za-z0-9_]|[.\-]\d)"
_SSN = r"\d{3}([ \-])\d{2}\1\d{4}|(?<=SSN )\d{9}|(?<=SSN: )\d{9}|(?<=SSN:)\d{9}"
_PROVINCE = r"(?:1[1-5]|2[1-3]|3[1-7]|4[1-6]|5[0-4]|6[1-5]|71|8[1-3])"
_BIRTH_DATE = r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])"
_THREE_FOURS = r"(?<!\d{4} )\d{4}([ \-]?)\d{4}\1\d{4}(?! \d{4})"  # a card has four fours
_IDENTITY_NUMBERS: dict[str, tuple[tuple[str, str], ...]] = {
    "US": ((_SSN, "us.ssn"),),
    "CN": ((rf"{_PROVINCE}\d{{4}}([ \-]?){_BIRTH_DATE}\1\d{{3}}[\dXx]", "cn.ric"),),
    "GB": ((r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]([ \-]?)\d{2}\1\d{2}\1\d{2}\1[A-D]", ""),),
    "DE": ((r"\d{11}|\d{2}([ .\-/])\d{3}\1\d{3}\1\d{3}", "de.idnr"),),
    "FR": ((r"[12]([ .\-]?)\d{2}\1\d{2}\1(?:\d{2}|2[ABab])\1\d{3}\1\d{3}[ .\-]?\d{2}", "fr.nir"),),
    "ES": (
        (r"\d{8}[ \-]?[A-Za-z]|\d{2}\.\d{3}\.\d{3}[ \-]?[A-Za-z]", "es.dni"),
        (r"[XYZxyz][ \-]?\d{7}[ \-]?[A-Za-z]", "es.nie"),
    ),
    "BR": ((r"\d{3}\.\d{3}\.\d{3}-\d{2}|\d{11}", "br.cpf"),),
    "IN": ((_THREE_FOURS, "in_.aadhaar"),),
    "JP": ((_THREE_FOURS, "jp.in_"),),
    "KR": ((r"\d{6}-?\d{7}", "kr.rrn"),),
    "PL": ((r"\d{11}", "pl.pesel"),),
}
"""By region: pattern of an identity number, and the module of stdnum that verifies it; "": the pattern is all."""


def windows(text: str) -> list[tuple[int, int]]:
    """Returns (start, end) of the parts of a text around long numbers, in order and disjoint."""
    found: list[tuple[int, int]] = []
    for match in _RUN.finditer(text):
        start, end = max(0, match.start() - _MARGIN), min(len(text), match.end() + _MARGIN)
        if found and start <= found[-1][1]:
            start = found.pop()[0]
        found.append((start, end))
    return found


class Numbers:
    """Finder of cards, IBANs and national identity numbers in a window of a text.

    Args:
        kinds: Kinds to find; others than these three are ignored.
        regions: Regions whose identity numbers are found; regions without a known one have none.
    """

    def __init__(self, kinds: Sequence[str], regions: Sequence[str]) -> None:
        self._luhn = privacy_library("stdnum.luhn").is_valid
        self._iban = privacy_library("stdnum.iban").is_valid
        self._kinds = kinds
        self._identities: list[tuple[re.Pattern[str], Callable[[str], bool]]] = []
        for region in regions:
            for pattern, module in _IDENTITY_NUMBERS.get(region, ()):
                self._identities.append((re.compile(f"{_NOT_BEFORE}(?:{pattern}){_NOT_AFTER}"), _verifier(module)))

    def find(self, text: str, start: int, end: int) -> Iterator[Find]:
        """Yields the finds between two offsets, the surest kind first."""
        if "iban" in self._kinds:
            yield from self._ibans(text, start, end)
        if "national_id" in self._kinds:
            for pattern, verify in self._identities:
                for match in pattern.finditer(text, start, end):
                    if verify(re.sub(r"[ .\-/]", "", match.group())):
                        yield Find(match.start(), match.end(), "national_id")
        if "card" in self._kinds:
            for match in _CARD.finditer(text, start, end):
                digits = re.sub(r"\D", "", match.group())
                if _ISSUER.fullmatch(digits) and self._luhn(digits):
                    yield Find(match.start(), match.end(), "card")

    def _ibans(self, text: str, start: int, end: int) -> Iterator[Find]:
        for match in _IBAN.finditer(text, start, end):
            # Words after the number may look like more of it.
            written = match.group()
            for stop in range(len(written), 14, -1):
                if written[stop : stop + 1].isalnum() or not written[stop - 1].isalnum():
                    continue
                if self._iban(re.sub(r"[ \-]", "", written[:stop])):
                    yield Find(match.start(), match.start() + stop, "iban")
                    break


def _verifier(module: str) -> Callable[[str], bool]:
    """Returns the check of an identity number without separators; `module` as in `_IDENTITY_NUMBERS`."""
    if not module:
        return bool
    rules = privacy_library(f"stdnum.{module}")
    if module == "cn.ric":
        # Its is_valid also requires that the county existed at birth, but people are registered later, too.
        return lambda number: bool(rules.calc_check_digit(number) == number[-1].upper())
    return lambda number: bool(rules.is_valid(number))
