"""Writes a tokenizer with which transformers produces the ids that the exported model was trained on.

transformers rebuilds the tokenizers of its named classes from their vocabulary and ignores tokenizer.json. An export
therefore names the class that loads tokenizer.json unchanged. tokenizer.json states everything that Cloze does: the
separators of pairs, the segments, and for models of words the space before each word.
"""

import json
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import processors

from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import CheckpointError
from framework.files import parse_json
from framework.models.config import EncoderConfig
from framework.published.kinds import KINDS

_CLASS = "PreTrainedTokenizerFast"
_WORD_SPLIT = {"type": "Split", "pattern": {"Regex": r"[ \t\r\n]+"}, "behavior": "Removed", "invert": False}
_KEPT_KEYS = (
    "do_lower_case",
    "strip_accents",
    "tokenize_chinese_chars",
    "clean_up_tokenization_spaces",
    "bos_token",
    "eos_token",
)


def tokenizer_files(
    config: EncoderConfig, head_kind: str, task_record: Mapping[str, Any], tokenizer: Tokenizer
) -> dict[str, str]:
    """Returns the texts of tokenizer.json and tokenizer_config.json.

    Args:
        config: Encoder configuration.
        head_kind: `Task.head_kind`.
        task_record: Record of the task; its `max_length` applies to tasks that truncate texts.
        tokenizer: Tokenizer of the model.

    Raises:
        CheckpointError: The model reads words, but the vocabulary marks spaces in an unknown way.
    """
    kind = KINDS.get(head_kind)
    max_length = config.max_sequence_length
    if kind is not None and kind.truncates_texts:
        max_length = min(max_length, int(task_record.get("max_length") or max_length))
    reads_words = kind is not None and kind.reads_words
    return _files(tokenizer, max_length, config.type_vocab_size > 1, reads_words)


def _files(tokenizer: Tokenizer, max_length: int, has_segments: bool, reads_words: bool) -> dict[str, str]:
    content = parse_json(tokenizer.backend.to_str())
    adds_space = reads_words and tokenizer.space_marked
    if adds_space and (spaced := _space_words(content["pre_tokenizer"])) is not None:
        content["pre_tokenizer"] = spaced
    elif adds_space:
        raise CheckpointError(
            f"The tokenizer in {tokenizer.folder} marks spaces without a ByteLevel or Metaspace pre-tokenizer. A model "
            "of words requires one of them, so that transformers puts a space before each word. Train it with such a "
            "tokenizer to export it."
        )
    backend = Backend.from_str(json.dumps(content))
    backend.post_processor = _post_processor(tokenizer, content["pre_tokenizer"], adds_space)
    settings: dict[str, Any] = {
        "tokenizer_class": _CLASS,
        "model_max_length": max_length,
        "model_input_names": ["input_ids", *(["token_type_ids"] if has_segments else []), "attention_mask"],
        **_kept_settings(tokenizer),
        **{f"{name}_token": token for name, token in tokenizer.special_tokens.items()},
    }
    if adds_space:
        settings["add_prefix_space"] = True
    return {
        "tokenizer.json": backend.to_str(pretty=True),
        "tokenizer_config.json": json.dumps(settings, indent=2, ensure_ascii=False) + "\n",
    }


def _kept_settings(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns further settings of the folder's tokenizer_config.json that transformers reads."""
    file = tokenizer.folder / "tokenizer_config.json"
    config = parse_json(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {key: value for key, value in config.items() if key in _KEPT_KEYS}


def _parts(node: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Returns a list of pre-tokenizers, with nested sequences flattened."""
    if node is None:
        return []
    parts = node["pretokenizers"] if node["type"] == "Sequence" else [node]
    return [each for part in parts for each in (_parts(part) if part["type"] == "Sequence" else [part])]


def _space_words(pre_tokenizer: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns a pre-tokenizer that puts one space before each word; None if it has no such setting.

    Whitespace in a text only separates words. Without this split, a line break or a second space would be a token that
    the model never saw.
    """
    adds_space = False
    parts = _parts(pre_tokenizer)
    for part in parts:
        if part["type"] == "ByteLevel":
            part["add_prefix_space"] = True
        elif part["type"] == "Metaspace":
            part["prepend_scheme"] = "always"
        else:
            continue
        adds_space = True
    return {"type": "Sequence", "pretokenizers": [_WORD_SPLIT, *parts]} if adds_space else None


def _post_processor(
    tokenizer: Tokenizer, pre_tokenizer: dict[str, Any] | None, adds_space: bool
) -> processors.PostProcessor:
    """Returns the template of single texts and pairs. Offsets of byte-level tokens exclude their space.

    An added space has no offset. If the tokenizer adds all spaces, offsets must therefore not be trimmed.
    """
    cls, sep = tokenizer.special_tokens["cls"], tokenizer.special_tokens["sep"]
    template = processors.TemplateProcessing(
        single=[f"{cls}:0", "$A:0", f"{sep}:0"],
        pair=[f"{cls}:0", "$A:0", *[f"{sep}:0"] * tokenizer.pair_separators, "$B:1", f"{sep}:1"],
        special_tokens=[(cls, tokenizer.cls_id), (sep, tokenizer.sep_id)],
    )
    for part in _parts(pre_tokenizer):
        if part["type"] == "ByteLevel" and not adds_space:
            trim = processors.ByteLevel(add_prefix_space=part["add_prefix_space"], trim_offsets=True)
            return processors.Sequence([trim, template])
    return template
