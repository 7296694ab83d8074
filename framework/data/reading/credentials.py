"""Hides credentials in URLs: user and password before the host, and signatures and tokens in the query."""

import re

HIDDEN = "***hidden***"
"""Replacement for the hidden part of a text."""

# A user without a password may be a token, but only over HTTP.
_USER = re.compile(r"(?P<protocol>https?://|[A-Za-z][A-Za-z0-9+.-]*://(?=[^/?#\s@]*:))[^/?#\s@]+(?:@[^/?#\s@]+)*@")
_PARAMETER = re.compile(r"(?P<name>[?&;][^=&;#\s]+)=[^&;#\s]+")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SECRETS = re.compile(
    "accesskey|apikey|auth|authorization|bearer|credentials?|key|pass|passphrase|passwd|password|pw|pwd|secrets?|"
    "sig|signature|token"
)
_LOCATIONS = re.compile("columns?|dir|directory|files?|folder|path")


def names_secret(name: str) -> bool:
    """Returns whether a name contains a word for a secret: `DATA_PASS`, `apiKey`; not `tokenizer` or `batch_tokens`.

    The location of a secret is not a secret: `KEY_FILE`, `token_path`.

    Args:
        name: Config key, environment variable or query parameter.
    """
    words = [word.lower() for word in _WORD.findall(name)]
    return any(map(_SECRETS.fullmatch, words)) and not _LOCATIONS.fullmatch(words[-1])


def without_credentials(text: str) -> str:
    """Returns the text with the credentials of every URL hidden."""
    if "://" not in text:
        return text
    text = _USER.sub(lambda match: f"{match['protocol']}{HIDDEN}@", text)
    return _PARAMETER.sub(
        lambda match: f"{match['name']}={HIDDEN}" if names_secret(match["name"]) else match[0],
        text,
    )
