"""Reads how a folder of sentence-transformers turns the tokens of a text into one vector (https://sbert.net)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from framework.errors import CheckpointError, reading_record
from framework.files import parse_json
from framework.published.files import LENGTH_FILE, LIBRARY_CONFIG_FILE, MODULES_FILE, POOLING_FILE, read_json

_POOLINGS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}
_MODULES = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
_SIDES = {"query": ("query",), "document": ("document", "passage", "corpus")}
"""Names of the prompts that `encode_query` and `encode_document` of sentence-transformers try in turn."""


def read_text_vectors(folder: Path) -> dict[str, Any]:
    """Returns the arguments of an embedding task that computes the vectors of a published model.

    Args:
        folder: Folder of the model.

    Returns:
        `pooling` ("cls" or "mean"), `normalize`, `max_length` (in tokens; absent if no file states it) and `prompts` by
        side. Empty if the folder lists no pooling.

    Raises:
        CheckpointError: The vectors need a pooling or a module that Cloze lacks, or a file is damaged.
    """
    file = folder / MODULES_FILE
    if not file.is_file():
        return {}
    with reading_record(file, "Fetch or export the model again"):
        names = [str(each["type"]).rpartition(".")[2] for each in parse_json(file.read_text(encoding="utf-8"))]
    if "Pooling" not in names:
        return {}
    if names not in _MODULES:
        raise CheckpointError(
            f"{file} lists the modules {', '.join(names)}. Cloze computes the vectors of a published "
            "model by Transformer, Pooling and Normalize only. Choose another model."
        )
    settings = read_json(folder / POOLING_FILE)
    poolings = _poolings(settings)
    known = next((ours for ours in _POOLINGS.values() if poolings == [ours]), None)
    prompts = _prompts(_optional(folder / LIBRARY_CONFIG_FILE))
    if known is None or (prompts and not settings.get("include_prompt", True)):
        what = f"pools by {' and '.join(poolings)}" if known is None else "leaves the tokens of prompts out"
        raise CheckpointError(
            f"{folder / POOLING_FILE} {what}. Cloze pools by {' or '.join(_POOLINGS.values())}, prompts included. "
            "Choose another model."
        )
    length = _optional(folder / LENGTH_FILE).get("max_seq_length")
    length = length or _optional(folder / "tokenizer_config.json").get("model_max_length")
    record = {"pooling": known, "normalize": names[-1] == "Normalize", "prompts": prompts}
    return record if length is None else {**record, "max_length": int(length)}


def _poolings(settings: Mapping[str, Any]) -> list[str]:
    """Returns the names of the poolings, whose vectors are concatenated."""
    named = settings.get("pooling_mode")
    if named is not None:
        return [named] if isinstance(named, str) else [str(each) for each in named]
    chosen = [name for name, is_chosen in settings.items() if name.startswith("pooling_mode_") and is_chosen]
    return [_POOLINGS.get(name, name.removeprefix("pooling_mode_")) for name in chosen] or ["mean"]


def _prompts(settings: Mapping[str, Any]) -> dict[str, str]:
    """Returns the prompt of each side that has one: that of its name, else the default."""
    given = settings.get("prompts") or {}
    default = given.get(settings.get("default_prompt_name"))
    named = {side: next((given[name] for name in names if name in given), default) for side, names in _SIDES.items()}
    return {side: prompt for side, prompt in named.items() if prompt}


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
