"""Writes a model as a folder that Hugging Face transformers loads: config.json, model.safetensors and the tokenizer.

What no class of transformers can hold goes beside them: `cloze.json` has the exact config and what is needed to read
predictions, `cloze_heads.safetensors` the tensors of heads without a class (next-sentence prediction outside BERT, mean
pooling in BERT and RoBERTa). `framework.models.pretrained` reads such a folder back without loss.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from framework.errors import CheckpointError
from framework.models.config import EncoderConfig
from framework.models.pretrained import FAMILIES, FORMAT
from framework.models.published.family import SEQUENCE_CLASSIFICATION, Family, PublishedClass
from framework.models.published.files import (
    CONFIG_FILE,
    SIDE_CONFIG_FILE,
    SIDE_WEIGHTS_FILE,
    TOKENIZER_FILES,
    WEIGHTS_FILE,
    tokenizer_folder,
)
from framework.models.published.rules import to_theirs

_TIED_NAME = "mlm.decoder.weight"


def export_huggingface(
    folder: Path,
    config: EncoderConfig,
    state_dict: Mapping[str, Tensor],
    head_kind: str,
    tokenizer_dir: Path,
    side: Mapping[str, Any],
) -> None:
    """Writes the folder, under another name first, so that it is whole or not there.

    Args:
        folder: To be written; it may exist if it is an earlier export, which is then replaced.
        config: Of the encoder.
        state_dict: Full CPU tensors of a TaskModel ("encoder.*", "head.*").
        head_kind: "pretraining" or "sequence_classification".
        tokenizer_dir: Its tokenizer files are copied.
        side: Of the task; `labels` (names in the order of scores) and `pooling` are read here, all of it is kept.

    Raises:
        CheckpointError: No class of transformers has such an encoder, the tokenizer is not there, or the folder holds
            something else.
    """
    folder, tokenizer_dir = Path(folder), Path(tokenizer_dir)
    family = FAMILIES[config.family]
    published_config = family.write_config(config)
    encoder = _part(state_dict, "encoder.")
    heads = {name: tensor for name, tensor in _part(state_dict, "head.").items() if name != _TIED_NAME}
    published_class = family.export_class(config, head_kind, heads.keys(), str(side.get("pooling", "cls")))
    published_config |= {"architectures": [published_class.name], "tie_word_embeddings": True}
    published_config |= published_class.config or {}
    if head_kind == SEQUENCE_CLASSIFICATION:
        published_config |= _label_config(side, heads["classifier.weight"].shape[0])
    tensors = _published_tensors(family, published_class, config, encoder, heads)
    rules = (*published_class.base_rules, *published_class.head_rules)
    without_class = {
        name: heads[name] for name in sorted(heads.keys() - {name for rule in rules for name in rule.ours})
    }
    side_config = {
        "format": FORMAT,
        "head": head_kind,
        "encoder": asdict(config),
        "task": dict(side),
        "tensors_without_class": {"file": SIDE_WEIGHTS_FILE, "names": list(without_class)} if without_class else None,
    }
    _check_target(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        _write_json(temporary / CONFIG_FILE, published_config)
        _write_json(temporary / SIDE_CONFIG_FILE, side_config)
        save_file(tensors, temporary / WEIGHTS_FILE, metadata={"format": "pt"})
        if without_class:
            contiguous = {name: tensor.contiguous() for name, tensor in without_class.items()}
            save_file(contiguous, temporary / SIDE_WEIGHTS_FILE, metadata={"format": "pt"})
        _copy_tokenizer(tokenizer_dir, temporary)
        _replace(folder, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _part(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}


def _published_tensors(
    family: Family,
    published_class: PublishedClass,
    config: EncoderConfig,
    encoder: Mapping[str, Tensor],
    heads: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    base = to_theirs(family.encoder_rules(config), encoder, config.num_heads)
    base |= to_theirs(published_class.base_rules, heads, config.num_heads)
    prefix = "" if published_class.name == family.base_class else family.prefix
    tensors = {prefix + name: tensor for name, tensor in base.items()}
    tensors |= to_theirs(published_class.head_rules, heads, config.num_heads)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _label_config(side: Mapping[str, Any], num_labels: int) -> dict[str, Any]:
    labels = [str(label) for label in side.get("labels") or (f"LABEL_{index}" for index in range(num_labels))]
    if len(labels) != num_labels:
        raise CheckpointError(
            f"The labels {labels} are not {num_labels}, the number of scores; export with the task's own labels."
        )
    return {
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def _check_target(folder: Path) -> None:
    if folder.exists() and not (folder / SIDE_CONFIG_FILE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is no export of Cloze, so it is left alone; choose another folder.")


def _copy_tokenizer(source: Path, target: Path) -> None:
    if tokenizer_folder(source) is None:
        raise CheckpointError(f"{source} holds no tokenizer; give the folder with tokenizer.json or vocab.txt.")
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _replace(folder: Path, temporary: Path) -> None:
    """Renames the new folder into place; an earlier export goes only when the new one stands."""
    earlier = temporary.with_suffix(".old")
    if folder.exists():
        folder.rename(earlier)
    temporary.rename(folder)
    shutil.rmtree(earlier, ignore_errors=True)
