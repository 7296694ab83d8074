"""Groups that the words of a text name: finds the terms of groups in texts, and swaps those of one group for another's.

Terms are matched without regard to case. A term of an alphabet is a whole word; a term with Chinese, Japanese or
Korean characters, whose texts have no spaces, matches anywhere.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations

from framework.data.augmentation.word_pairs import in_case_of
from framework.errors import ConfigError

_WITHOUT_SPACES = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]")


class GroupTerms:
    """Terms of groups.

    Args:
        terms: Terms by group. Lists of equal length are parallel: the n-th term of one group is swapped for the n-th
            of the other. A shorter list is repeated.
        source: Name of the file or key, for messages.

    Attributes:
        names: Names of the groups.

    Raises:
        ConfigError: There are fewer than two groups, a group has no terms, a term is empty or repeated, or terms of
            two groups overlap.
    """

    def __init__(self, terms: Mapping[str, Sequence[str]], source: str) -> None:
        self.names = tuple(terms)
        self._terms = {name: [str(term).strip() for term in words] for name, words in terms.items()}
        if len(terms) < 2:
            raise ConfigError(
                f"{source} has {len(terms)} groups of terms. A comparison needs at least 2. Add a group, for example "
                "{female: [she, her], male: [he, his]}."
            )
        for name, words in self._terms.items():
            if not words or "" in words:
                raise ConfigError(
                    f"{source}: the group {name!r} has {'an empty term' if words else 'no terms'}. Each group needs "
                    "terms that are words. Correct it."
                )
        self._patterns = {name: _pattern(words) for name, words in self._terms.items()}
        self._places = {
            name: {term.casefold(): index for index, term in reversed([*enumerate(words)])}
            for name, words in self._terms.items()
        }
        self._check_overlaps(source)

    def _check_overlaps(self, source: str) -> None:
        for one, other in combinations(self.names, 2):
            for first, second in ((one, other), (other, one)):
                for term in self._terms[second]:
                    match = self._patterns[first].search(term)
                    if match is not None:
                        raise ConfigError(
                            f"{source}: the term {match.group()!r} of the group {first!r} overlaps with {term!r} of "
                            f"{second!r}. A text must show which group it names. Remove one of the terms."
                        )

    def groups_of(self, text: str) -> tuple[str, ...]:
        """Returns the groups that have a term in the text."""
        return tuple(name for name in self.names if self._patterns[name].search(text) is not None)

    def swapped(self, text: str, group: str, other: str) -> str:
        """Replaces each term of a group by the corresponding term of another group, with its capital letters."""
        places, terms = self._places[group], self._terms[other]

        def replacement(match: re.Match[str]) -> str:
            found = match.group()
            return in_case_of(found, terms[places[found.casefold()] % len(terms)])

        return self._patterns[group].sub(replacement, text)


def _pattern(terms: Sequence[str]) -> re.Pattern[str]:
    """Returns a pattern that matches the longest term at each offset."""
    ordered = sorted(set(terms), key=len, reverse=True)
    return re.compile("|".join(_bounded(term) for term in ordered), re.IGNORECASE)


def _bounded(term: str) -> str:
    escaped = re.escape(term)
    return escaped if _WITHOUT_SPACES.search(term) else rf"(?<!\w){escaped}(?!\w)"
