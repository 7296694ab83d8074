"""Hides credentials in URLs: user and password before the host, and signatures and tokens in the query."""

import re

HIDDEN = "***hidden***"
"""Replacement for the hidden part of a text."""

# A user without a password may be a token, but only over HTTP.
_USER = re.compile(r"(?P<protocol>https?://|[A-Za-z][A-Za-z0-9+.-]*://(?=[^/?#\s@]*:))[^/?#\s@]+(?:@[^/?#\s@]+)*@")
# A password may hold the signs that end a host; a colon with digits up to such a sign is a port.
_ODD_PASSWORD = re.compile(r"(?P<protocol>[A-Za-z][A-Za-z0-9+.-]*://)[^/?#\s@:]*:(?!\d*[/?#])[^\s@]+@")
_PARAMETER = re.compile(r"(?P<name>[?&;][^=&;#\s]+)=[^&;#\s]+")
_PAIR = re.compile(r"(?P<name>(?:^|[;,\s])[A-Za-z_.-]+\s*=\s*)(?:'[^']*'|\"[^\"]*\"|[^;\s]+)")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SECRETS = re.compile(
    "auth|authorization|bearer|cookie|credentials?|dbpass|key|pass|pat|pw|pwd|sig|signature|sshpass|"
    ".*(access|api|auth|private|secret|signing)key|.*(passphrase|passwd|passwords?|secrets?|token)"
)
_LOCATIONS = re.compile("columns?|dir|directory|files?|folder|path")


def names_secret(name: str) -> bool:
    """Returns whether a name contains a word for a secret: `DATA_PASS`, `apiKey`; not `tokenizer` or `batch_tokens`.

    Names in capitals often have no sign between words, so some words also count at the end of another: `PGPASSWORD`.

    The place of a secret is none: `KEY_FILE`, `token_path`.

    Args:
        name: Config key, environment variable or query parameter.
    """
    words = [word.lower() for word in _WORD.findall(name)]
    return any(map(_SECRETS.fullmatch, words)) and not _LOCATIONS.fullmatch(words[-1])


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
    """Returns a connection string (`host=a password=b`, `AccountName=a;AccountKey=b`) in which secrets are hidden."""
    return _PAIR.sub(lambda match: match["name"] + HIDDEN if names_secret(match["name"]) else match[0], text)
