"""Kinds of personal data, the settings of a search for them, and the find that the search returns."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from framework.errors import ConfigError, check_choice

NAME = "name"
"""Kind of the names of a file."""

KINDS = ("email", "phone", "card", "iban", "ip", "url_user", "national_id", "handle")
"""Kinds that are found without a file of names."""

REGIONS = ("US", "GB", "CN", "DE", "FR", "ES")
"""Default regions whose national phone numbers and identity numbers are found."""

RULES = 2
"""Version of the rules; raise it with every change of what is found."""


class Find(NamedTuple):
    """Personal data in a text.

    Attributes:
        start: Offset of the first character.
        end: Offset after the last character.
        kind: One of `KINDS`, or `NAME`.
    """

    start: int
    end: int
    kind: str


@dataclass(frozen=True)
class Detection:
    """Settings of a search for personal data.

    Attributes:
        kinds: Kinds to find, of `KINDS`.
        regions: Regions (ISO 3166, two letters) whose national phone numbers and identity numbers are found. Phone
            numbers with a country code are found for all regions.
        names: Names to find, written exactly so; empty: none.
        has_model: True if a model finds names, too.
    """

    kinds: tuple[str, ...] = KINDS
    regions: tuple[str, ...] = REGIONS
    names: tuple[str, ...] = ()
    has_model: bool = False

    def __post_init__(self) -> None:
        check_kinds(self.kinds)
        if not self.kinds and not self.finds_names:
            raise ConfigError(
                "personal_data_kinds is empty and there are no names. At least one kind is required. Name one of "
                f"{', '.join(KINDS)}, or set personal_data=null."
            )
        known = privacy_library("phonenumbers").SUPPORTED_REGIONS
        for region in self.regions:
            if region not in known:
                raise ConfigError(
                    f"personal_data_regions has {region!r}. Regions are two capital letters of ISO 3166 that "
                    "phonenumbers knows. Write, for example, [US,CN]."
                )

    @classmethod
    def of(
        cls, kinds: Sequence[str], regions: Sequence[str], names_file: str | None, has_model: bool = False
    ) -> "Detection":
        """Reads the names and checks the settings.

        Args:
            kinds: Kinds to find.
            regions: Regions, as in the class.
            names_file: File with one name per line; empty lines are skipped; None: no names.
            has_model: As in the class.

        Raises:
            ConfigError: A kind or region is unknown, there is nothing to find, the file cannot be read or holds no
                names, or a library of the extra `privacy` is not installed.
        """
        names = () if names_file is None else _read_names(Path(names_file))
        return cls(tuple(kinds), tuple(regions), names, has_model)

    @property
    def finds_names(self) -> bool:
        """Returns whether names of a list are found, or names by a model."""
        return bool(self.names) or self.has_model

    @property
    def all_kinds(self) -> tuple[str, ...]:
        """Returns the kinds, with `NAME` if names are found."""
        return (*self.kinds, NAME) if self.finds_names else self.kinds

    def identity(self) -> dict[str, Any]:
        """Returns all that decides the finds, as JSON values: settings, a hash of the names, and versions."""
        names = hashlib.blake2b("\n".join(self.names).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        return {
            "kinds": list(self.kinds),
            "regions": list(self.regions),
            "names": names if self.names else None,
            "rules": RULES,
            "libraries": {name: privacy_library(name).__version__ for name in ("phonenumbers", "stdnum")},
        }


def check_kinds(kinds: Sequence[str]) -> None:
    """Checks the names of kinds.

    Raises:
        ConfigError: A kind is unknown.
    """
    for kind in kinds:
        check_choice("a kind in personal_data_kinds", kind, KINDS)


def check_names_are_used(action: str | None, **sources: str | None) -> None:
    """Checks that no source of names is given without an action.

    Args:
        action: Handling of personal data; None: none.
        sources: {key: file of names, or run of a model that finds names}; None: not given.

    Raises:
        ConfigError: One is given without an action.
    """
    for key, source in sources.items():
        if action is None and source is not None:
            raise ConfigError(
                f"{key} is {source}, but personal_data is null. Without an action, no name is searched for. Set "
                "personal_data, for example to mask."
            )


def privacy_library(name: str) -> ModuleType:
    """Imports a module of a library of the extra `privacy`.

    Raises:
        ConfigError: The library is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"the module {name} cannot be imported ({error}). personal_data requires python-stdnum and phonenumbers. "
            "Install them with `pip install -e '.[privacy]'`."
        ) from error


def _read_names(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the file of names {path} cannot be read ({error}). It must hold one name per line, in UTF-8. Correct "
            "personal_data_names."
        ) from error
    names = sorted({" ".join(line.split()) for line in lines} - {""})
    short = next((name for name in names if len(name) < 2), None)
    if short is not None:
        raise ConfigError(
            f"{path} has the name {short!r}. A name needs at least two characters. Remove the line, or write the name "
            "in full."
        )
    if not names:
        raise ConfigError(f"{path} holds no names. It must hold one name per line. Add names, or set it to null.")
    return tuple(names)
