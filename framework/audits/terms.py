"""Groups that the words of a text name: finds the terms of groups in texts, and swaps those of one group for another's.

Terms are found as augmentations find words (`framework.data.augmentation.word_pairs`): in any case if they are in lower
case, and Chinese and Japanese terms anywhere in a text.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import permutations

from framework.data.augmentation.word_pairs import in_case_of, word_pattern
from framework.errors import ConfigError, counted


class GroupTerms:
    """Terms of groups.

    Args:
        terms: Terms by group. Lists of equal length are parallel: the n-th term of one group is swapped for the n-th
            of the other. A shorter list is repeated.
        source: Name of the file or key, for messages.

    Attributes:
        names: Names of the groups.

    Raises:
        ConfigError: There are fewer than two groups, a group has no terms, a term is empty, or terms of two groups
            overlap.
    """

    def __init__(self, terms: Mapping[str, Sequence[str]], source: str) -> None:
        self.names = tuple(terms)
        self._terms = {name: [" ".join(term.split()) for term in words] for name, words in terms.items()}
        if len(terms) < 2:
            raise ConfigError(
                f"{source} has terms of {counted(len(terms), 'group')}. A comparison needs at least 2. Add a group, "
                "for example {female: [she, her], male: [he, his]}."
            )
        for name, words in self._terms.items():
            if not words or "" in words:
                raise ConfigError(
                    f"{source}: the group {name!r} has {'an empty term' if words else 'no terms'}. Each group needs "
                    "terms that are words. Correct it."
                )
        self._patterns = {
            name: re.compile("|".join(map(word_pattern, sorted(set(words), key=lambda term: (-len(term), term)))))
            for name, words in self._terms.items()
        }
        self._check_overlaps(source)

    def _check_overlaps(self, source: str) -> None:
        for one, other in permutations(self.names, 2):
            for term in self._terms[other]:
                match = self._patterns[one].search(term)
                if match is not None:
                    raise ConfigError(
                        f"{source}: the term {match.group()!r} of the group {one!r} overlaps with {term!r} of "
                        f"{other!r}. A text must show which group it names. Remove one of the terms."
                    )

    def groups_of(self, text: str) -> tuple[str, ...]:
        """Returns the groups that have a term in the text."""
        return tuple(name for name in self.names if self._patterns[name].search(text) is not None)

    def swapped(self, text: str, group: str, other: str) -> str:
        """Replaces each term of a group by the corresponding term of another group, with its capital letters."""
        own, terms = self._terms[group], self._terms[other]

        def replacement(match: re.Match[str]) -> str:
            found = " ".join(match.group().split())
            return in_case_of(found, terms[own.index(found if found in own else found.lower()) % len(terms)])

        return self._patterns[group].sub(replacement, text)
