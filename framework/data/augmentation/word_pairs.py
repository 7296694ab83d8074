"""Files of word pairs, and the swap of these words in a text.

A file is a YAML mapping with these keys (`conf/augmentation/pairs/gender_en.yaml` is an example):

    pairs: [[he, she], [man, woman]]      each word becomes the other one
    one_way: {him: her}                   one direction only, for words with several counterparts
    by_next_word:                         words whose counterpart depends on the next word
      her: {before_word: his, otherwise: him}
    not_before: [to, and]                 next words that count as `otherwise`
    keep: [his or her]                    phrases that stay as they are

Words in lower case are found in any case, and their counterparts get this case. Words with capitals are found only as
they are written. Words of scripts without spaces (Chinese characters, kana) are found anywhere; of several words that
begin at one character, the longest is swapped. Other words are found between characters that are no letters or digits.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from framework.errors import ConfigError

_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD_START, _WORD_END = rf"(?<![^\W{_UNSPACED}])", rf"(?![^\W{_UNSPACED}])"
_NEXT_WORD = re.compile(r"\s+([^\W\d_]+)")
_KEYS = ("pairs", "one_way", "by_next_word", "not_before", "keep")
_BEFORE_WORD, _OTHERWISE = "before_word", "otherwise"


@dataclass(frozen=True)
class WordPairs:
    """Counterparts of words.

    Attributes:
        counterparts: {word: (counterpart before another word, counterpart elsewhere)}; kept phrases are their own
            counterparts.
        not_before: Words before which a word has its counterpart of elsewhere.
    """

    counterparts: Mapping[str, tuple[str, str]]
    not_before: frozenset[str] = frozenset()
    _pattern: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        longest_first = sorted(self.counterparts, key=lambda word: (-len(word), word))
        object.__setattr__(self, "_pattern", re.compile("|".join(map(word_pattern, longest_first))))

    @property
    def fingerprint(self) -> str:
        """Returns a hash of the words."""
        content = json.dumps([dict(self.counterparts), sorted(self.not_before)], sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def swap(self, text: str) -> str:
        """Returns the text with each word replaced by its counterpart."""
        return self._pattern.sub(self._counterpart, text)

    def _counterpart(self, match: re.Match[str]) -> str:
        found = " ".join(match.group().split())
        word = found if found in self.counterparts else found.lower()
        before_word, elsewhere = self.counterparts[word]
        if elsewhere == word:  # a kept phrase
            return match.group()
        if before_word == elsewhere:
            return in_case_of(found, elsewhere)
        following = _NEXT_WORD.match(match.string, match.end())
        is_before_word = following is not None and following.group(1).lower() not in self.not_before
        return in_case_of(found, before_word if is_before_word else elsewhere)


def in_case_of(found: str, counterpart: str) -> str:
    """Returns a word in capitals, with a capital first letter, or as it is, like the word that it replaces."""
    if len(found) > 1 and found.isupper():
        return counterpart.upper()
    return counterpart[:1].upper() + counterpart[1:] if found[:1].isupper() else counterpart


def read_word_pairs(name: str, folder: Path | None = None) -> WordPairs:
    """Reads a file of pairs.

    Args:
        name: Path of the file, or name of a file in `folder`.
        folder: Folder that is searched if there is no file at this path.

    Raises:
        ConfigError: The file is missing, is no such mapping, has no pairs, or has two counterparts for a word.
    """
    path = Path(name)
    known = [] if folder is None else sorted(file.name for file in folder.glob("*.yaml"))
    if folder is not None and not path.is_file() and name in known:
        path = folder / name
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        given = f" It must be a file, or one of {', '.join(known)}." if known else " It must be a file."
        raise ConfigError(
            f"augmentation.pairs is {name}, which cannot be read ({error.strerror}).{given} Correct the path."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"augmentation.pairs is {name}, which is not YAML ({' '.join(str(error).split())}). Correct the file."
        ) from error
    return parse_word_pairs(name, content)


def parse_word_pairs(name: str, content: Any) -> WordPairs:
    """Checks the content of a file of pairs.

    Args:
        name: Name of the file, for messages.
        content: Parsed YAML.

    Raises:
        ConfigError: As `read_word_pairs`.
    """
    if not isinstance(content, Mapping) or not set(content) <= set(_KEYS) or not content.get("pairs"):
        shown = ", ".join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
        raise ConfigError(
            f"{name} has no pairs (it contains: {shown or 'nothing'}). A file of pairs is a mapping with the key "
            f"`pairs`, a list that is not empty, and may have the keys {', '.join(_KEYS[1:])}. Correct the file."
        )
    counterparts: dict[str, tuple[str, str]] = {}
    for word, before_word, elsewhere in _entries(name, content):
        if word in counterparts:
            raise ConfigError(
                f"{name}: {word!r} is in two entries. A word has one counterpart, because pairs are swapped in both "
                "directions. Remove an entry, or use one_way or by_next_word."
            )
        counterparts[word] = before_word, elsewhere
    not_before = [_text(name, "not_before", word).lower() for word in content.get("not_before") or ()]
    return WordPairs(counterparts, frozenset(not_before))


def _entries(name: str, content: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yields (word, counterpart before another word, counterpart elsewhere)."""
    for pair in content["pairs"]:
        if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1]:
            raise ConfigError(
                f"{name}: {pair!r} is no pair. Each of `pairs` is a list of two different words. Correct it."
            )
        first, second = (_text(name, "pairs", word) for word in pair)
        yield first, second, second
        yield second, first, first
    for word, other in _mapping(name, content, "one_way").items():
        counterpart = _text(name, "one_way", other)
        yield _text(name, "one_way", word), counterpart, counterpart
    for word, others in _mapping(name, content, "by_next_word").items():
        if not isinstance(others, Mapping) or set(others) != {_BEFORE_WORD, _OTHERWISE}:
            raise ConfigError(
                f"{name}: by_next_word.{word} is {others!r}. It must have the keys {_BEFORE_WORD} and {_OTHERWISE}. "
                "Correct it."
            )
        before_word, elsewhere = (_text(name, "by_next_word", others[key]) for key in (_BEFORE_WORD, _OTHERWISE))
        yield _text(name, "by_next_word", word), before_word, elsewhere
    for phrase in content.get("keep") or ():
        kept = _text(name, "keep", phrase)
        yield kept, kept, kept


def _mapping(name: str, content: Mapping[str, Any], key: str) -> Mapping[Any, Any]:
    value = content.get(key) or {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name}: {key} is {value!r}. It must be a mapping from words to words. Correct it.")
    return value


def _text(name: str, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(
            f"{name}: {key} contains {value!r}. It must be a word. Correct it; words such as `no` and `on` need quotes "
            "in YAML."
        )
    return value.strip()


def word_pattern(word: str) -> str:
    """Returns a regular expression that finds a word or phrase as the docstring of this module says."""
    start = "" if re.match(f"[{_UNSPACED}]", word[0]) else _WORD_START
    end = "" if re.match(f"[{_UNSPACED}]", word[-1]) else _WORD_END
    escaped = r"\s+".join(map(re.escape, word.split()))
    return f"{start}(?i:{escaped}){end}" if word == word.lower() else f"{start}{escaped}{end}"
