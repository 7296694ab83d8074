"""Quotes command-line values that Hydra's grammar rejects, such as `data.label_column=#class` and Chinese names.

Without quotes, Hydra 1.3 accepts only Latin letters, digits and a few other characters. Quotes for Hydra would have to
be protected from the shell. Arguments that Hydra accepts are not changed.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import accumulate

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

_OPENING, _CLOSING = "[{", "]}"
_PROSE = ("text",)
"""Keys whose values are sentences. A comma in such a value does not make a sweep."""
_QUOTED = re.compile(r"""\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')\s*(?=[,\]}]|$)""")


def with_quotes(arguments: Sequence[str]) -> list[str]:
    """Quotes values of `KEY=VALUE` that Hydra cannot parse. Items of lists and mappings are quoted separately.

    Hydra 1.3 accepts no quoted keys in mappings; such keys must be written in a config file.

    Args:
        arguments: Command line without the program name.
    """
    parser = OverridesParser.create()
    return [_quoted_argument(argument, parser) for argument in arguments]


def _quoted_argument(argument: str, parser: OverridesParser) -> str:
    key, _, value = argument.partition("=")
    if key in _PROSE and "=" in argument and not _is_list(value):
        return argument if _is_one_value(argument, parser) else f"{key}={_in_quotes(value.strip())}"
    if argument.startswith("-") or "=" not in argument or _is_readable(argument, parser):
        return argument
    candidate = f"{key}={','.join(_quoted(item, parser) for item in _items(value))}"
    return candidate if _is_readable(candidate, parser) else argument  # Hydra reports what cannot be read


def _is_list(value: str) -> bool:
    """Returns True if one pair of brackets encloses the value: `[a, b]`, but not `[MASK] and [MASK]`."""
    text = value.strip()
    depths = list(accumulate((mark in _OPENING) - (mark in _CLOSING) for mark in text))
    return text[:1] == "[" and text[-1:] == "]" and 0 not in depths[:-1]


def _quoted(value: str, parser: OverridesParser) -> str:
    if _is_readable(f"key={value}", parser):
        return value
    text = value.strip()
    if _is_list(text):
        return f"[{','.join(_quoted(item, parser) for item in _items(text[1:-1]))}]"
    if text[:1] == "{" and text[-1:] == "}":
        pairs = [item.partition(":") for item in _items(text[1:-1])]
        return f"{{{','.join(f'{name}:{_quoted(item, parser)}' for name, _, item in pairs)}}}"
    return _in_quotes(text)


def _in_quotes(text: str) -> str:
    mark = "'" if "'" not in text else '"'
    # Hydra treats backslashes as escapes only before a quote.
    escaped = re.sub(rf"(\\*)({mark}|$)", lambda match: match[1] * 2 + ("\\" + mark if match[2] else ""), text)
    return f"{mark}{escaped}{mark}"


def _items(text: str) -> Iterator[str]:
    """Splits a text at commas outside of brackets and quotes."""
    first = index = depth = 0
    while index < len(text):
        quoted = _QUOTED.match(text, index) if index == 0 or text[index - 1] in ",:[{" else None
        if quoted is not None:
            index = max(quoted.end(), index + 1)
            continue
        depth += (text[index] in _OPENING) - (text[index] in _CLOSING)
        if text[index] == "," and depth == 0:
            yield text[first:index]
            first = index + 1
        index += 1
    yield text[first:]


def _is_readable(argument: str, parser: OverridesParser) -> bool:
    try:
        parser.parse_override(argument)
    except HydraException:
        return False
    return True


def _is_one_value(argument: str, parser: OverridesParser) -> bool:
    try:
        return not parser.parse_override(argument).is_sweep_override()
    except HydraException:
        return False
