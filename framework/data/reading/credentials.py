"""Hides credentials in URLs: user and password before the host, and signatures and tokens in the query."""

import re

HIDDEN = "***hidden***"
"""Replacement for the hidden part of a text."""

# A user without a password may be a token, but only over HTTP.
_USER = re.compile(r"(?P<protocol>https?://|[A-Za-z][A-Za-z0-9+.-]*://(?=[^/?#\s@]*:))[^/?#\s@]+(?:@[^/?#\s@]+)*@")
# A password may contain the characters that end a host. A colon with digits up to such a character is a port.
_ODD_PASSWORD = re.compile(r"(?P<protocol>[A-Za-z][A-Za-z0-9+.-]*://)[^/?#\s@:]*:(?!\d*[/?#])[^\s@]+@")
_PARAMETER = re.compile(r"(?P<name>[?&;][^=&;#\s]+)=[^&;#\s]+")
_PAIR = re.compile(r"(?P<name>(?:^|[;,\s])[A-Za-z_.-]+\s*=\s*)(?:'[^']*'|\"[^\"]*\"|[^;\s]+)")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SECRETS = re.compile(
    "auth|authorization|bearer|cookie|credentials?|dbpass|key|pass|pat|pw|pwd|sig|signature|sshpass|"
    ".*(access|api|auth|private|secret|signing)key|.*(passphrase|passwd|passwords?|secrets?|token)"
)
_KEY_IN_VALUE = re.compile(r"""([\w.-]+)["']?\s*[:=]""")
_LOCATIONS = re.compile("columns?|dir|directory|files?|folder|path")
_CONNECTIONS = re.compile("conn|connection|dsn")
_OF_NUMBERS = re.compile(".*(passphrase|passwd|passwords?|secrets?)|dbpass|pw|pwd|sshpass")

_AMBIGUOUS = {"key", "pass", "token"}
_OF_DATA = re.compile(
    "backward|best|bos|cls|column|cls|document|end|entity|eos|extra|field|first|forward|group|index|item|join|label|"
    "last|mask|metric|next|num|one|order|pad|per|primary|query|row|sample|second|sentence|sep|separator|sort|source|"
    "special|start|tag|target|text|title|two|unk|unknown|value"
)
"""Words before `key`, `pass` or `token` that mark it as a word of the data: `text_key`, `mask_token`, `first_pass`."""


def names_secret(name: str) -> bool:
    """Returns whether a name contains a word for a secret: `DATA_PASS`, `apiKey`; not `tokenizer` or `batch_tokens`.

    Names in capitals often have no separator between words, so some words also count at the end of another one:
    `PGPASSWORD`.

    The location of a secret is not a secret (`KEY_FILE`, `token_path`), and neither is a key or token of the data
    (`text_key`, `mask_token`).

    Args:
        name: Config key, environment variable or query parameter.
    """
    words = [word.lower() for word in _WORD.findall(name)]
    named = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if _SECRETS.fullmatch(word) and not (word in _AMBIGUOUS and _OF_DATA.fullmatch(before))
    ]
    return bool(named) and not _LOCATIONS.fullmatch(words[-1])


def may_be_number(name: str) -> bool:
    """Returns whether a number with this name is a secret: `password=1234`; not `key=3`, which may be a count."""
    return any(_OF_NUMBERS.fullmatch(word.lower()) for word in _WORD.findall(name)) and names_secret(name)


def names_connection(name: str) -> bool:
    """Returns whether a name contains a word for a connection string: `connection_string`, `DSN`."""
    return any(_CONNECTIONS.fullmatch(word.lower()) for word in _WORD.findall(name))


def without_credentials(text: str) -> str:
    """Returns the text with the credentials of every URL hidden."""
    if "://" not in text:
        return text
    for pattern in (_USER, _ODD_PASSWORD):
        text = pattern.sub(lambda match: f"{match['protocol']}{HIDDEN}@", text)
    return _PARAMETER.sub(
        lambda match: f"{match['name']}={HIDDEN}" if names_secret(match["name"]) else match[0],
        text,
    )


def without_secret_pairs(text: str) -> str:
    """Returns a connection string (`host=a password=b`, `AccountName=a;AccountKey=b`) with its secrets hidden."""
    return _PAIR.sub(lambda match: match["name"] + HIDDEN if names_secret(match["name"]) else match[0], text)


def safe_argument(argument: str) -> str:
    """Returns an argument of a command line without secrets. For `KEY=VALUE`, the whole value is hidden.

    A value that lists keys, such as `data.storage_options={key: a, secret: b}`, is hidden as a whole if one of the keys
    is named like a secret.
    """
    key, is_override, value = argument.partition("=")
    if not is_override:
        return without_credentials(argument)
    names = [*key.split("."), *(_KEY_IN_VALUE.findall(value) if value[:1] in "{['\"" else ())]
    if any(names_secret(name) for name in names):
        return f"{key}={HIDDEN}"
    return key + "=" + (without_secret_pairs if names_connection(key) else str)(without_credentials(value))
