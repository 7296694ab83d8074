"""Compares a tokenizer with an older one that it extends by new tokens, and finds the old pieces of each new token."""

from typing import Any

from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError
from framework.files import parse_json

_CONTENT = ("vocab", "merges", "ignore_merges")
"""Keys of a `tokenizers` model that an extension changes."""


def pieces_of_new_tokens(old: Tokenizer, new: Tokenizer) -> dict[int, list[int]]:
    """Returns, for each id of a new token, the ids of its text in the old tokenizer, without the unknown token.

    A token of the vocabulary is split by the old model alone, so that a piece within a word (`##ing`, or one without a
    space mark) is split into pieces within a word. An added token is encoded as a text. The list is empty if the old
    tokenizer has no pieces for the text.

    Args:
        old: Older tokenizer.
        new: Tokenizer that has all tokens of the old one under the same ids. A token may take the id of a placeholder
            (`[unused7]`).

    Raises:
        ConfigError: The new tokenizer is not an extension of the old one, or has no new token.
    """
    _check_same_settings(old, new)
    before, now = _tokens(old), _tokens(new)
    placeholders, old_tokens = set(old.placeholder_ids.tolist()), set(before.values())
    for token_id in sorted(before):
        moved = now.get(token_id) != before[token_id]
        if moved and not (token_id in placeholders and token_id in now and now[token_id] not in old_tokens):
            raise ConfigError(
                f"the tokenizer in {new.folder} has {_shown(now.get(token_id))} at id {token_id}, where the tokenizer "
                f"in {old.folder} has {before[token_id]!r}. An extension keeps all tokens under their ids, and a "
                "trained row must not get another meaning. Append new tokens after the last id "
                f"{old.vocab_size - 1}, for example with python -m framework.prepare vocabulary=extended "
                f"vocabulary.path={old.folder}."
            )
    words = new.backend.get_vocab(with_added_tokens=False)
    new_tokens = {token_id: token for token_id, token in sorted(now.items()) if before.get(token_id) != token}
    if not new_tokens:
        raise ConfigError(
            f"the tokenizer in {new.folder} has no token that the one in {old.folder} lacks. An extended vocabulary "
            "has new tokens. Set extend_vocabulary=false, or set `tokenizer.path` to the extended tokenizer."
        )
    pieces = {
        token_id: [piece.id for piece in old.backend.model.tokenize(token)]
        if words.get(token) == token_id
        else old.encode_batch([token])[0].tolist()
        for token_id, token in new_tokens.items()
    }
    return {token_id: [each for each in ids if each != old.unk_id] for token_id, ids in pieces.items()}


def _tokens(tokenizer: Tokenizer) -> dict[int, str]:
    return {token_id: token for token, token_id in tokenizer.backend.get_vocab(with_added_tokens=True).items()}


def _shown(token: str | None) -> str:
    return "no token" if token is None else repr(token)


def _check_same_settings(old: Tokenizer, new: Tokenizer) -> None:
    """Checks that both tokenizers normalize and split texts in the same way, and have the same special tokens."""
    before, now = _settings(old), _settings(new)
    for name, value in before.items():
        if now.get(name) != value:
            raise ConfigError(
                f"the tokenizer in {new.folder} has {name}={now.get(name)!r}, but the tokenizer in {old.folder} has "
                f"{value!r}. An extension differs only by new tokens. Restore the setting, or extend the old tokenizer "
                f"with python -m framework.prepare vocabulary=extended vocabulary.path={old.folder}."
            )


def _settings(tokenizer: Tokenizer) -> dict[str, Any]:
    content = parse_json(tokenizer.backend.to_str())
    model = {f"model.{name}": value for name, value in content["model"].items() if name not in _CONTENT}
    specials = {f"{name}_token": token for name, token in tokenizer.special_tokens.items()}
    return {"normalizer": content["normalizer"], "pre_tokenizer": content["pre_tokenizer"], **model, **specials}
