"""Masks for personal data: one token per kind, or one word of a given vocabulary, and their insertion into texts."""

from collections.abc import Iterable, Mapping, Sequence

from framework.data.personal_data.kinds import NAME, Find
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError

TOKENS = {
    "email": "[EMAIL]",
    "phone": "[PHONE]",
    "card": "[CARD]",
    "iban": "[IBAN]",
    "ip": "[IP]",
    "url_user": "[URL]",
    "national_id": "[ID]",
    "handle": "[HANDLE]",
    NAME: "[NAME]",
}
"""Token of each kind, which a vocabulary that is trained on masked texts contains."""

_WORDS: Mapping[str, Sequence[str]] = {
    "email": ("email", "mail", "邮"),
    "phone": ("phone", "telephone", "电"),
    "card": ("card", "卡"),
    "iban": ("account", "bank", "账"),
    "ip": ("ip", "IP", "address", "网"),
    "url_user": ("url", "URL", "link", "web", "链"),
    "national_id": ("id", "ID", "identity", "证"),
    "handle": ("user", "username", "account", "户"),
    NAME: ("name", "名"),
}
"""Words of each kind for a vocabulary without its token, the best first."""


def mask_tokens(kinds: Iterable[str]) -> dict[str, str]:
    """Returns the token of each kind."""
    return {kind: TOKENS[kind] for kind in kinds}


def masks_of(tokenizer: Tokenizer, kinds: Iterable[str]) -> dict[str, str]:
    """Returns a mask for each kind that a given vocabulary encodes as exactly one known token.

    Args:
        tokenizer: Given tokenizer.
        kinds: Kinds to mask.

    Returns:
        Mask by kind: its token, or else the first word for it that the vocabulary has.

    Raises:
        ConfigError: The vocabulary has neither for a kind.
    """
    masks = {}
    for kind in kinds:
        candidates = (TOKENS[kind], *_WORDS[kind])
        mask = next((text for text in candidates if _is_one_token(tokenizer, text)), None)
        if mask is None:
            raise ConfigError(
                f"the tokenizer in {tokenizer.folder} splits each mask for {kind} ({', '.join(candidates)}) into "
                f"pieces or unknown tokens. A mask must be one token. Add {TOKENS[kind]} to the vocabulary, train one "
                f"(vocabulary=wordpiece), use personal_data=drop, or leave out {kind}."
            )
        masks[kind] = mask
    return masks


def _is_one_token(tokenizer: Tokenizer, text: str) -> bool:
    prefix = " " if tokenizer.space_marked else ""
    ids = tokenizer.encode_batch([prefix + text])[0].tolist()
    return len(ids) == 1 and ids[0] != tokenizer.unk_id


def masked(text: str, finds: Sequence[Find], masks: Mapping[str, str]) -> str:
    """Replaces each find by the mask of its kind.

    Args:
        text: Text.
        finds: Finds of the text, in order and disjoint.
        masks: Mask by kind.
    """
    pieces, done = [], 0
    for find in finds:
        pieces += [text[done : find.start], masks[find.kind]]
        done = find.end
    return "".join([*pieces, text[done:]])
