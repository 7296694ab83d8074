"""Builds the tokenizer of a BERT folder with vocab.txt and no tokenizer.json, as transformers' `BertTokenizer` does.

Other files of the folder state the normalisation (tokenizer_config.json), the special tokens (special_tokens_map.json)
and tokens added after the vocabulary (added_tokens.json, added_tokens_decoder).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from framework.errors import DataError

NORMALIZER_KEYS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}
"""Keys of tokenizer_config.json, and the properties of `BertNormalizer` that they set."""

EXTRA_TOKENS = ("extra_special_tokens", "additional_special_tokens")
"""Keys of special tokens other than the five."""

_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")


def read_vocabulary(path: Path) -> dict[str, int]:
    """Reads one token per line. Only a line feed ends a line, because a token may be U+0085 or U+2028.

    Raises:
        DataError: The file is not UTF-8.
    """
    try:
        path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start + 1} is not UTF-8. A vocabulary must be. Restore the file."
        ) from error
    return models.WordPiece.read_file(str(path))


def normalizer_settings(named: Mapping[str, Any]) -> dict[str, bool]:
    """Returns the properties of `BertNormalizer` that tokenizer_config.json sets.

    Raises:
        DataError: A value is not true, false or null.
    """
    settings = {}
    for theirs, ours in NORMALIZER_KEYS.items():
        value = named.get(theirs)
        if value is None:
            continue
        if not isinstance(value, bool):
            raise DataError(
                f"tokenizer_config.json has {theirs}={value!r}. It must be true, false or null. Correct the file."
            )
        settings[ours] = value
    return settings


def wordpiece_backend(
    vocabulary: dict[str, int], special_tokens: Mapping[str, str], named: Mapping[str, Any], added: Mapping[str, int]
) -> Tokenizer:
    """Builds the `tokenizers` object.

    Args:
        vocabulary: Token to id.
        special_tokens: Token of each of cls, sep, mask, pad, unk.
        named: Content of tokenizer_config.json, overridden by special_tokens_map.json.
        added: Content of added_tokens.json.
    """
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token=special_tokens["unk"]))
    backend.normalizer = normalizers.BertNormalizer(**normalizer_settings(named))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    # Ids are assigned in this order; tokens of the vocabulary keep their ids.
    for _, token in sorted(_added_tokens(special_tokens, named, added).items(), key=lambda item: item[0]):
        backend.add_tokens([token])
    backend.add_special_tokens([*special_tokens.values(), *_extra_tokens(named)])
    cls, sep = special_tokens["cls"], special_tokens["sep"]
    backend.post_processor = processors.BertProcessing((sep, vocabulary[sep]), (cls, vocabulary[cls]))
    return backend


def _added_tokens(
    special_tokens: Mapping[str, str], named: Mapping[str, Any], added: Mapping[str, int]
) -> dict[int, AddedToken]:
    """Returns added tokens by id. tokenizer_config.json replaces added_tokens.json if it lists any."""
    described = named.get("added_tokens_decoder")
    if isinstance(described, Mapping):
        return {
            int(token_id): AddedToken(
                str(token["content"]),
                special=bool(token.get("special", False)),
                **{flag: bool(token[flag]) for flag in _FLAGS if flag in token},
            )
            for token_id, token in described.items()
        }
    special = {*special_tokens.values(), *_extra_tokens(named)}
    return {
        token_id: AddedToken(token, normalized=token not in special, special=token in special)
        for token, token_id in added.items()
    }


def _extra_tokens(named: Mapping[str, Any]) -> list[str]:
    """Returns the special tokens other than the five."""
    for key in EXTRA_TOKENS:
        tokens = named.get(key)
        if tokens:
            each = tokens.values() if isinstance(tokens, Mapping) else tokens
            return [str(token["content"] if isinstance(token, Mapping) else token) for token in each]
    return []
