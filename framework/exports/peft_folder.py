"""Reads low-rank updates and a head from a folder of peft, for a base that Cloze holds: the inverse of `adapters`.

The updates of a published linear layer that is part of a fused one become updates of parts. Their scale is applied to
B. The labels come from the record that `framework.export lora=separate` adds; peft itself writes none.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.errors import CheckpointError, reading_record
from framework.exports.adapters import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, TrainedAdapter, base_fingerprint
from framework.nn.lora import PARTS, LoraSettings, split_parts
from framework.published.families import FAMILIES
from framework.published.family import Family
from framework.published.files import EXPORT_RECORD_FILE, read_json, read_optional_safetensors, tokenizer_folder
from framework.published.kinds import SEQUENCE_CLASSIFICATION, TOKEN_CLASSIFICATION
from framework.published.pretrained import PretrainedWeights
from framework.published.rules import Rule, to_ours, to_theirs

_PREFIX = "base_model.model."
_UPDATE = re.compile(r"(?P<linear>.+)\.lora_(?P<factor>[AB])\.weight")
_HEAD_KINDS = {"SEQ_CLS": SEQUENCE_CLASSIFICATION.name, "TOKEN_CLS": TOKEN_CLASSIFICATION.name}
_PLAIN = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "layer_replication": (None,),
}
"""Settings of adapter_config.json with the values that Cloze supports."""


def is_peft_folder(source: str) -> bool:
    """Returns True for a folder with an adapter of peft."""
    return (Path(source) / ADAPTER_CONFIG_FILE).is_file()


def read_peft_folder(folder: Path, base: PretrainedWeights) -> tuple[TrainedAdapter, PretrainedWeights]:
    """Reads an adapter.

    Args:
        folder: Folder with `adapter_config.json` and `adapter_model.safetensors`.
        base: Weights that the adapter was trained on.

    Returns:
        The adapter, and the base with the head and the task record of the adapter. Layers of the head that the folder
        lacks are those of the base.

    Raises:
        CheckpointError: A file is missing or damaged, the adapter is of a kind that Cloze lacks, or it was trained on
            other weights.
    """
    file = folder / ADAPTER_CONFIG_FILE
    settings = read_json(file)
    record = read_json(folder / EXPORT_RECORD_FILE) if (folder / EXPORT_RECORD_FILE).is_file() else {}
    kind = record.get("head") or _HEAD_KINDS.get(str(settings.get("task_type")))
    unsupported = [key for key, values in _PLAIN.items() if settings.get(key) not in values]
    if settings.get("peft_type") != "LORA" or unsupported:
        key = unsupported[0] if unsupported else "peft_type"
        raise CheckpointError(
            f"{file} has {key}={settings.get(key)!r}. Cloze reads plain LoRA without trained biases. Give another "
            "adapter."
        )
    if record.get("base") not in (None, base_fingerprint(base.encoder)):
        raise CheckpointError(
            f"{folder} was trained on other weights than {base.source}. All adapters must share the base. Give the "
            "weights that its run started from (init_from)."
        )
    family = FAMILIES[base.config.family]
    with reading_record(folder, "Fetch or export the adapter again"):
        tensors = {
            name.removeprefix(_PREFIX).removeprefix(family.prefix): tensor.float()
            for name, tensor in read_optional_safetensors(folder / ADAPTER_WEIGHTS_FILE).items()
        }
        if not tensors:
            raise CheckpointError(f"{folder} has no {ADAPTER_WEIGHTS_FILE}. Fetch or export the adapter again.")
        others = {name: tensor for name, tensor in tensors.items() if not _UPDATE.fullmatch(name)}
        updates = _updates(folder, _scaled(tensors, settings, family.prefix), base, family)
        classes = [each for each in family.classes(base.config) if each.kind is not None and each.kind.name == kind]
        rules = family.import_rules(classes[0] if classes else None)
        heads = _head(folder, others, rules, base.config.num_heads)
    adapter = TrainedAdapter(_settings(updates), updates, None)
    task_record = dict(record.get("task") or (classes[0].kind.read({}, heads) if classes and classes[0].kind else {}))
    if classes and classes[0].poolings:
        task_record.setdefault("pooling", classes[0].poolings[0])
    return adapter, replace(
        base,
        source=str(folder),
        heads={**base.heads, **heads},
        head_kind=kind,
        task_record=task_record,
        tokenizer_dir=tokenizer_folder(folder) or base.tokenizer_dir,
    )


def _scaled(
    tensors: Mapping[str, Tensor], settings: Mapping[str, Any], prefix: str
) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns A and the scaled B of each published linear layer, by its name."""
    pairs = {}
    for name, a in tensors.items():
        match = _UPDATE.fullmatch(name)
        if match is None or match["factor"] == "B":
            continue
        linear, rank = match["linear"], a.shape[0]
        alpha = _of_pattern(settings.get("alpha_pattern") or {}, prefix + linear, settings["lora_alpha"])
        scale = alpha / (rank**0.5 if settings.get("use_rslora") else rank)
        pairs[linear] = (a, tensors[f"{linear}.lora_B.weight"] * scale)
    return pairs


def _of_pattern(patterns: Mapping[str, float], name: str, default: float) -> float:
    """Returns the value of the first pattern that matches the end of a name, as peft does."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), default)


def _updates(
    folder: Path, pairs: Mapping[str, tuple[Tensor, Tensor]], base: PretrainedWeights, family: Family
) -> dict[str, Tensor]:
    """Returns the updates under the names of a TaskModel."""
    num_heads = base.config.num_heads
    rules = {name: rule for rule in family.encoder_rules(base.config) for name in rule.theirs}
    found: dict[tuple[str, str], list[tuple[Tensor, Tensor]]] = {}
    for linear, (a, b) in pairs.items():
        rule = rules.get(f"{linear}.weight")
        paths = [] if rule is None else [_path_of(name) for name in rule.ours]
        if rule is None or None in paths:
            raise CheckpointError(
                f"{folder} has an update of {linear}. Cloze applies updates to the linear layers of attention and "
                "feed-forward. Train without this target module."
            )
        for name, rows in zip(rule.ours, _regrouped(rule, f"{linear}.weight", b, base), strict=True):
            own_path = str(_path_of(name))
            for part, own in zip(PARTS[own_path], split_parts(rows, len(PARTS[own_path]), num_heads), strict=True):
                # Of a published layer that is several here, each part needs its own columns only.
                used = own.any(dim=0)
                if used.any():
                    key = (name.removesuffix(".weight"), part)
                    found.setdefault(key, []).append((a[used], own[:, used]))
    state = {}
    for (linear, part), factors in found.items():
        state[f"encoder.{linear}.updates.{part}.lora_a"] = torch.cat([a for a, _ in factors])
        state[f"encoder.{linear}.updates.{part}.lora_b"] = torch.cat([b for _, b in factors], dim=1)
    return state


def _path_of(name: str) -> str | None:
    return next((path for path in PARTS if name.endswith(f"{path}.weight")), None)


def _regrouped(rule: Rule, published: str, rows: Tensor, base: PretrainedWeights) -> list[Tensor]:
    """Regroups the rows of one published linear layer as the rule does; the other layers of the rule have zeros."""
    sizes = {name: tensor.shape[0] for name, tensor in to_theirs([rule], base.encoder, base.config.num_heads).items()}
    parts = [rows if name == published else rows.new_zeros(sizes[name], rows.shape[1]) for name in rule.theirs]
    return rule.to_ours(parts, base.config.num_heads)


def _head(folder: Path, tensors: Mapping[str, Tensor], rules: Collection[Rule], num_heads: int) -> dict[str, Tensor]:
    """Returns the tensors of the head under our names."""
    heads = to_ours(rules, tensors, num_heads)
    used = {name for rule in rules if set(rule.theirs) <= tensors.keys() for name in rule.theirs}
    extra = sorted(tensors.keys() - used)
    if extra:
        raise CheckpointError(
            f"{folder} also trained {extra[0]}. Adapters of one encoder may train only updates and heads. Train "
            "without this module (modules_to_save)."
        )
    return heads


def _settings(updates: Mapping[str, Tensor]) -> LoraSettings:
    """Returns settings without a scale, which B includes."""
    targets = sorted({name.split(".")[-2] for name in updates})
    rank = max((tensor.shape[0] for name, tensor in updates.items() if name.endswith("lora_a")), default=1)
    return LoraSettings(rank, float(rank), targets or ["query"])
