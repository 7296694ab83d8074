"""Exports the low-rank updates of a model as a folder that peft loads on top of a base model of transformers.

peft uses the layer names of transformers. A published linear layer that contains several of ours (ModernBERT's Wqkv and
Wi) gets one update whose rank is the sum of their ranks: the A matrices are stacked by rows, the B matrices by columns.
Other trained modules, mainly the head, are written completely (`modules_to_save`). `framework.nn.lora` merges updates.
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
from framework.data.tokenization.tokenizer import TOKENIZER_KEY, Tokenizer
from framework.errors import CheckpointError
from framework.exports.new_folder import new_folder
from framework.exports.tokenizer import tokenizer_files
from framework.files import TOKENIZER_FILES, new_digest
from framework.models.config import EncoderConfig
from framework.nn.lora import LoraSettings, factors, in_place_of, is_update, updates_of
from framework.published.export_record import FORMAT
from framework.published.families import FAMILIES
from framework.published.family import PublishedClass
from framework.published.files import EXPORT_RECORD_FILE
from framework.published.rules import Rule, part_of, to_theirs

ADAPTER_CONFIG_FILE = "adapter_config.json"
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_TASK_TYPES = {"sequence_classification": "SEQ_CLS"}
"""Task types of peft by head kind. Other kinds have none, and any model can load them."""

_DECODER = "mlm."
_MERGE = "lora=merge, which writes the whole model"


@dataclass(frozen=True)
class TrainedAdapter:
    """Result of training with low-rank updates.

    Attributes:
        settings: Settings of the updates.
        state: Full CPU tensors of a TaskModel ("encoder.*", "head.*"), including the updates.
        base: Weights that the run started from, by a name or path that transformers loads; None if they came from
            another run.
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
    task_record: Mapping[str, Any],
) -> None:
    """Writes the folder completely or not at all, under a temporary name first.

    Args:
        folder: Output folder. An earlier adapter in it is replaced.
        config: Encoder configuration.
        adapter: Trained adapter to write.
        head_kind: `Task.head_kind`.
        tokenizer: Tokenizer of the model, whose files are written too.
        task_record: Record of the task, which the folder keeps for Cloze.

    Raises:
        CheckpointError: peft cannot represent the trained parameters, or the folder holds something else.
    """
    check_adapter_target(folder)
    family = FAMILIES[config.family]
    encoder, heads = (part_of(adapter.state, prefix) for prefix in ("encoder.", "head."))
    published_class = _class_of_head(config, heads, head_kind, str(task_record.get("pooling", "cls")))
    rules, prefix, num_heads = family.encoder_rules(config), family.prefix, config.num_heads
    updates = {prefix + name: pair for name, pair in _published_updates(rules, encoder, num_heads).items()}
    in_base = _with_prefix(prefix, to_theirs(published_class.base_rules, heads, num_heads))
    saved = _with_prefix(prefix, _trained_modules(rules, encoder, adapter.settings.train_also, num_heads))
    in_head = to_theirs(published_class.head_rules, heads, num_heads)
    # peft replaces whole modules, and identifies heads by the name of the outermost module.
    modules = {_module_of(name) for name in saved} | {name.split(".")[0] for name in in_head}
    modules |= {prefix + name.removeprefix(prefix).split(".")[0] for name in in_base}
    conflicts = sorted(updates.keys() & modules)
    if conflicts:
        raise CheckpointError(
            f"{conflicts[0]} was trained in addition to its update. peft cannot represent both. Use {_MERGE}."
        )

    tensors = _with_prefix(_PREFIX, in_base | saved | in_head)
    for name, (a, b) in updates.items():
        tensors |= _with_prefix(f"{_PREFIX}{name}.", {"lora_A.weight": a, "lora_B.weight": b})
    ranks = {name: a.shape[0] for name, (a, _) in updates.items()}
    peft_config = _peft_config(adapter, ranks, sorted(modules)) | {"task_type": _TASK_TYPES.get(head_kind)}
    record = {
        "format": FORMAT,
        "head": head_kind,
        "task": {**task_record, TOKENIZER_KEY: tokenizer.fingerprint},
        "base": base_fingerprint(encoder),
    }
    texts = tokenizer_files(config, head_kind, task_record, tokenizer)
    _write(folder, {ADAPTER_CONFIG_FILE: peft_config, EXPORT_RECORD_FILE: record}, tensors, tokenizer, texts)


def _class_of_head(config: EncoderConfig, heads: Mapping[str, Tensor], head_kind: str, pooling: str) -> PublishedClass:
    """Returns the class of transformers whose head peft saves."""
    if any(name.startswith(_DECODER) for name in heads):
        raise CheckpointError(
            f"The head's decoder shares the word embeddings. peft cannot represent that. Use {_MERGE}."
        )
    published_class = FAMILIES[config.family].export_class(config, head_kind, heads.keys(), pooling)
    head_rules = (*published_class.base_rules, *published_class.head_rules)
    unsupported = sorted(heads.keys() - {name for rule in head_rules for name in rule.ours})
    if unsupported and pooling == "mean":
        raise CheckpointError(
            "task.pooling is mean, but the classes that peft loads pool by the first token. peft cannot represent the "
            f"head. Train with task.pooling=cls, or use {_MERGE}."
        )
    if unsupported:
        raise CheckpointError(f"No class of transformers supports head.{unsupported[0]}. Use {_MERGE}.")
    return published_class


def base_fingerprint(encoder: Mapping[str, Tensor]) -> str:
    """Returns the checksum of the frozen weights of an encoder, without its updates."""
    digest = new_digest()
    for name in sorted(encoder):
        if not is_update(name):
            digest.update(name.encode() + encoder[name].float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_adapter_target(folder: Path) -> None:
    """Checks that a folder is missing, empty, or holds an earlier adapter.

    Raises:
        CheckpointError: The folder holds something else.
    """
    is_adapter = (folder / ADAPTER_CONFIG_FILE).is_file()
    if folder.exists() and not is_adapter and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not an adapter, so it is not replaced. Choose another folder.")


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor.contiguous() for name, tensor in tensors.items()}


def _published_updates(
    rules: Iterable[Rule], encoder: Mapping[str, Tensor], num_heads: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns A and B of each published linear layer that has an update, by its name."""
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {}
    rule_of = {name: rule for rule in rules for name in rule.ours}
    for linear, parts in updates_of(encoder).items():
        rule = rule_of[f"{linear}.weight"]
        for part in parts:
            a, b = factors(encoder, linear, part)
            # The rows of B are regrouped like those of the weight. Marks (ones) are regrouped with them, to find the
            # published layers that received the rows.
            rows = _regrouped(rule, linear, in_place_of(linear, part, b, num_heads), encoder, num_heads)
            marks = in_place_of(linear, part, torch.ones(b.shape[0], 1), num_heads)
            published_marks = _regrouped(rule, linear, marks, encoder, num_heads)
            for name, own_rows, own_marks in zip(rule.theirs, rows, published_marks, strict=True):
                if own_marks.any():
                    pairs.setdefault(name.removesuffix(".weight"), []).append((a, own_rows))
    return {
        name: (torch.cat([a for a, _ in own]), torch.cat([b for _, b in own], dim=1)) for name, own in pairs.items()
    }


def _regrouped(rule: Rule, linear: str, rows: Tensor, encoder: Mapping[str, Tensor], num_heads: int) -> list[Tensor]:
    """Regroups the rows of one linear layer as the rule does. Layers that the rule joins to it have rows of zeros."""
    columns = rows.shape[1]
    ours = [rows if name == f"{linear}.weight" else torch.zeros(encoder[name].shape[0], columns) for name in rule.ours]
    return rule.to_theirs(ours, num_heads)


def _trained_modules(
    rules: Iterable[Rule], encoder: Mapping[str, Tensor], patterns: Iterable[str], num_heads: int
) -> dict[str, Tensor]:
    """Returns all published tensors of encoder modules that have a parameter trained directly, not by an update."""
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
    """Returns the content of adapter_config.json. alpha / rank is the same for all linear layers, at any rank."""
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
    records: Mapping[str, Mapping[str, Any]],
    tensors: dict[str, Tensor],
    tokenizer: Tokenizer,
    texts: Mapping[str, str],
) -> None:
    with new_folder(folder, TOKENIZER_FILES) as temporary:
        for name, record in records.items():
            write_json(temporary / name, dict(record))
        save_file(tensors, temporary / ADAPTER_WEIGHTS_FILE, metadata={"format": "pt"})
        tokenizer.save(temporary)
        for name, text in texts.items():
            (temporary / name).write_text(text, encoding="utf-8")
