"""Writes the low-rank updates of a model as a folder that peft loads beside the base model of transformers.

peft names maps as transformers does. A map there that holds several of ours (ModernBERT's Wqkv and Wi) gets their
updates as one of their ranks added up: A below one another, B side by side. What else was trained, the head above all,
is written whole (`modules_to_save`). Not here: merging, see `framework.nn.lora`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from framework.checkpoint.layout import write_json
from framework.data.tokenization.tokenizer import TOKENIZER_FILES, Tokenizer
from framework.errors import CheckpointError
from framework.exports.new_folder import new_folder
from framework.exports.tokenizer import tokenizer_files
from framework.models.config import EncoderConfig
from framework.nn.lora import LoraSettings, factors, in_place_of, updates_of
from framework.published.pretrained import FAMILIES
from framework.published.rules import Rule, to_theirs

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_TASK_TYPES = {"sequence_classification": "SEQ_CLS"}
"""peft's name of what a head is for; others are left unnamed, which any model can load."""

_DECODER = "mlm."
_MERGE = "use lora=merge, which writes the whole model"


@dataclass(frozen=True)
class TrainedAdapter:
    """What a run with an adapter trained.

    Attributes:
        settings: Of the updates.
        state: Full CPU tensors of a TaskModel ("encoder.*", "head.*"), updates among them.
        base: The weights that it started from, as transformers finds them; None where they came from a run.
    """

    settings: LoraSettings
    state: Mapping[str, Tensor]
    base: str | None


def export_adapter(
    folder: Path,
    config: EncoderConfig,
    adapter: TrainedAdapter,
    head_kind: str,
    tokenizer: Tokenizer,
    side: Mapping[str, Any],
) -> None:
    """Writes the folder, under another name first, so that it is whole or not there.

    Args:
        folder: To be written; it may exist if it is an earlier adapter, which is then replaced.
        config: Of the encoder.
        adapter: What is written.
        head_kind: Of the task.
        tokenizer: Its files are written too.
        side: Of the task; `pooling` is read here.

    Raises:
        CheckpointError: peft has no place for what was trained, or the folder holds something else.
    """
    check_adapter_target(folder)
    family = FAMILIES[config.family]
    encoder, heads = (_without_prefix(prefix, adapter.state) for prefix in ("encoder.", "head."))
    if any(name.startswith(_DECODER) for name in heads):
        raise CheckpointError(f"The head's decoder shares the word embeddings, for which peft has no place; {_MERGE}.")
    pooling = str(side.get("pooling", "cls"))
    published_class = family.export_class(config, head_kind, heads.keys(), pooling)
    head_rules = (*published_class.base_rules, *published_class.head_rules)
    without_class = sorted(heads.keys() - {name for rule in head_rules for name in rule.ours})
    if without_class and pooling == "mean":
        raise CheckpointError(
            "task.pooling is mean, but the classes that peft loads pool by the first token, so peft has no place for "
            f"the head. Train with task.pooling=cls, or {_MERGE}."
        )
    if without_class:
        raise CheckpointError(f"No class of transformers has a place for head.{without_class[0]}; {_MERGE}.")

    rules, prefix, num_heads = family.encoder_rules(config), family.prefix, config.num_heads
    updates = {prefix + name: pair for name, pair in _published_updates(rules, encoder, num_heads).items()}
    in_base = _with_prefix(prefix, to_theirs(published_class.base_rules, heads, num_heads))
    beside = _with_prefix(prefix, _trained_beside(rules, encoder, adapter.settings.train_also, num_heads))
    in_head = to_theirs(published_class.head_rules, heads, num_heads)
    # peft replaces whole modules, and knows heads by the name of the outermost one.
    modules = {_module_of(name) for name in beside} | {name.split(".")[0] for name in in_head}
    modules |= {prefix + name.removeprefix(prefix).split(".")[0] for name in in_base}
    twice = sorted(updates.keys() & modules)
    if twice:
        raise CheckpointError(f"{twice[0]} was trained beside its update, for which peft has no place; {_MERGE}.")

    tensors = _with_prefix(_PREFIX, in_base | beside | in_head)
    for name, (a, b) in updates.items():
        tensors |= _with_prefix(f"{_PREFIX}{name}.", {"lora_A.weight": a, "lora_B.weight": b})
    ranks = {name: a.shape[0] for name, (a, _) in updates.items()}
    peft_config = _peft_config(adapter, ranks, sorted(modules)) | {"task_type": _TASK_TYPES.get(head_kind)}
    _write(folder, peft_config, tensors, tokenizer, tokenizer_files(config, head_kind, side, tokenizer))


def check_adapter_target(folder: Path) -> None:
    """Checks that a folder is missing, empty, or holds an earlier adapter.

    Raises:
        CheckpointError: The folder holds something else.
    """
    is_adapter = (folder / ADAPTER_CONFIG_FILE).is_file()
    if folder.exists() and not is_adapter and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is no adapter, so it is left alone; choose another folder.")


def _without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor.contiguous() for name, tensor in tensors.items()}


def _published_updates(
    rules: Iterable[Rule], encoder: Mapping[str, Tensor], num_heads: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of each published map that has an update, by its name."""
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    rule_of = {name: rule for rule in rules for name in rule.ours}
    for linear, parts in updates_of(encoder).items():
        rule = rule_of[f"{linear}.weight"]
        for part in parts:
            a, b = factors(encoder, linear, part)
            # Rows are regrouped as those of the weight are; marks follow them, to tell whose rows they became.
            rows = _regrouped(rule, linear, in_place_of(linear, part, b, num_heads), encoder, num_heads)
            marks = in_place_of(linear, part, torch.ones(b.shape[0], 1), num_heads)
            marks_there = _regrouped(rule, linear, marks, encoder, num_heads)
            for name, own_rows, own_marks in zip(rule.theirs, rows, marks_there, strict=True):
                if own_marks.any():
                    pairs.setdefault(name.removesuffix(".weight"), []).append((a, own_rows))
    return {
        name: (torch.cat([a for a, _ in own]), torch.cat([b for _, b in own], dim=1)) for name, own in pairs.items()
    }


def _regrouped(rule: Rule, linear: str, rows: Tensor, encoder: Mapping[str, Tensor], num_heads: int) -> list[Tensor]:
    """What becomes of the rows of one of our maps; others that the published one joins to it have rows of zeros."""
    columns = rows.shape[1]
    ours = [rows if name == f"{linear}.weight" else torch.zeros(encoder[name].shape[0], columns) for name in rule.ours]
    return rule.to_theirs(ours, num_heads)


def _trained_beside(
    rules: Iterable[Rule], encoder: Mapping[str, Tensor], patterns: Iterable[str], num_heads: int
) -> dict[str, Tensor]:
    """All published tensors of the encoder's modules that have any parameter trained as itself."""
    rules = list(rules)
    published = to_theirs(rules, encoder, num_heads)
    modules = {
        _module_of(theirs)
        for rule in rules
        if any(fnmatchcase(f"encoder.{name}", pattern) for name in rule.ours for pattern in patterns)
        for theirs in rule.theirs
    }
    return {name: tensor for name, tensor in published.items() if _module_of(name) in modules}


def _module_of(name: str) -> str:
    return name.rpartition(".")[0]


def _peft_config(adapter: TrainedAdapter, ranks: Mapping[str, int], modules: list[str]) -> dict[str, Any]:
    """adapter_config.json; alpha / rank is the same for all maps, whatever their rank."""
    settings = adapter.settings
    larger = {name: rank for name, rank in ranks.items() if rank != settings.rank}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": adapter.base,
        "inference_mode": True,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted(ranks),
        "modules_to_save": modules,
        "rank_pattern": larger,
        "alpha_pattern": {name: settings.scaling * rank for name, rank in larger.items()},
    }


def _write(
    folder: Path,
    config: Mapping[str, Any],
    tensors: dict[str, Tensor],
    tokenizer: Tokenizer,
    texts: Mapping[str, str],
) -> None:
    with new_folder(folder, TOKENIZER_FILES) as temporary:
        write_json(temporary / ADAPTER_CONFIG_FILE, dict(config))
        save_file(tensors, temporary / ADAPTER_WEIGHTS_FILE, metadata={"format": "pt"})
        tokenizer.save(temporary)
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
