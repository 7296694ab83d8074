"""Loads published weights and exports, from a folder or hub name, and copies them into a model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from framework.errors import CheckpointError, ConfigError, reading_record
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.nn.initialization import without_wrappers
from framework.nn.lora import is_update
from framework.published.clip import split_vision_tower
from framework.published.dense import read_projection
from framework.published.encoder_decoder import split_encoder_decoder
from framework.published.export_record import read_export_record
from framework.published.families import family_of
from framework.published.family import Family, PublishedClass
from framework.published.files import (
    CONFIG_FILE,
    EXPORT_RECORD_FILE,
    EXTRA_WEIGHTS_FILE,
    find_folder,
    read_json,
    read_optional_safetensors,
    read_tensors,
    tokenizer_folder,
)
from framework.published.own_class import MODEL_TYPE as OWN_MODEL_TYPE
from framework.published.own_class import split_own_class
from framework.published.rules import part_of, to_ours
from framework.published.vision import PICTURE_TOKENIZER, with_pixels

# Names in the first BERT checkpoints, which were converted from TensorFlow.
_OLD_NORM_NAMES = {".gamma": ".weight", ".beta": ".bias"}
_SAME_ARITHMETIC = (
    *("num_heads", "position_encoding", "position_offset", "norm_placement", "activation", "norm_eps"),
    *("relative_bias", "relative_distance"),
)
_GENERATOR_ROWS = ("generator.encoder.embeddings.word_embeddings.weight", "generator.mlm.decoder.bias")
ROWS_OF_HEADS = ("mlm.decoder.weight", "mlm.decoder.bias", *_GENERATOR_ROWS)
"""Tensors of heads over the encoder's vocabulary, with a row or an element for each id."""
_PADDED_BY_VOCABULARY = ("encoder.embeddings.word_embeddings.weight", *(f"head.{name}" for name in ROWS_OF_HEADS))
_DISTILLATION = "distillation"
"""Part of a TaskModel that only its training uses."""
PATCH_EMBEDDINGS = "embeddings.patch_embeddings."
"""Prefix of the tensors of an encoder that no class of transformers for texts has."""
_NEW_PARTS = ("head.", f"{_DISTILLATION}.", f"encoder.{PATCH_EMBEDDINGS}")
_MAX_PADDING = 127
_REMEDY = "Use model=from_weights, which builds the encoder of the weights, or choose other weights."


@dataclass(frozen=True)
class PretrainedWeights:
    """Weights under our names, all in fp32 on the CPU.

    Attributes:
        source: Origin of the weights, for messages.
        config: Encoder configuration.
        encoder: Parameters of TransformerEncoder, complete.
        heads: Parameters of heads; may be incomplete.
        head_kind: `Task.head_kind` of the task that the head was trained for; None if it is unknown or the head is
            incomplete.
        task_record: Record of the task: `labels`, `pooling`, `problem`, as far as the head has them.
        tokenizer_dir: Folder of the tokenizer, or None.
        unused: Published names of tensors that Cloze does not use, and names of head tensors that were dropped.
        hub_name: Name on the Hugging Face Hub; None for weights from elsewhere.
        changes: Descriptions of changes to the weights after they were read.
    """

    source: str
    config: EncoderConfig
    encoder: Mapping[str, Tensor]
    heads: Mapping[str, Tensor] = field(default_factory=dict)
    head_kind: str | None = None
    task_record: Mapping[str, Any] = field(default_factory=dict)
    tokenizer_dir: Path | None = None
    unused: tuple[str, ...] = ()
    hub_name: str | None = None
    changes: tuple[str, ...] = ()


def load_pretrained(source: str) -> PretrainedWeights:
    """Loads weights of a known family.

    Args:
        source: Folder (in the Hugging Face layout, sentence-transformers included, or an export of Cloze), or a name on
            the Hugging Face Hub, which is used only if no such folder exists.

    Raises:
        CheckpointError: There is no model, its family is unknown, or its files are incomplete or inconsistent.
    """
    folder = find_folder(str(source))
    with reading_record(folder, "Fetch or export the model again"):
        return _load(str(source), folder)


def _load(source: str, folder: Path) -> PretrainedWeights:
    export_record = read_export_record(folder)
    full_config = read_json(folder / CONFIG_FILE)
    is_own_class = full_config.get("model_type") == OWN_MODEL_TYPE
    parts = (split_own_class if is_own_class else split_encoder_decoder)(full_config, read_tensors(folder))
    if not is_own_class and parts.head_kind is None:
        parts = split_vision_tower(parts.published, parts.tensors)
    published = parts.published
    family = family_of(published, folder / CONFIG_FILE)
    config = _read_config(folder, family, published, export_record)
    tensors = _canonical(parts.tensors, family)
    projection = read_projection(folder, full_config, tensors)
    published_class = family.import_class(config, str((published.get("architectures") or [""])[0]))
    if published_class is not None and published_class.poolings and published_class.read_pooling(published) is None:
        published_class = None  # its scores have a pooling that Cloze lacks
    encoder_rules, head_rules = family.encoder_rules(config), family.import_rules(published_class)
    extra = {name: each.float() for name, each in read_optional_safetensors(folder / EXTRA_WEIGHTS_FILE).items()}
    extra_heads = {name: tensor for name, tensor in extra.items() if not name.startswith("encoder.")}
    older_rules = family.older_rules(config)
    older = to_ours(older_rules, tensors, config.num_heads)
    older_heads = {name: tensor for name, tensor in older.items() if name.startswith("mlm.")}
    encoder = {name: tensor for name, tensor in older.items() if name not in older_heads}
    encoder |= to_ours(encoder_rules, tensors, config.num_heads)
    if family.pixels is not None:
        encoder = with_pixels(encoder, folder, *family.pixels)
    encoder |= part_of(extra, "encoder.")
    _check_complete(source, config, encoder)
    heads = older_heads | to_ours(head_rules, tensors, config.num_heads)
    untied = _drop_untied(heads, tensors, family, encoder["embeddings.word_embeddings.weight"])
    if export_record:
        _check_labels(folder / EXPORT_RECORD_FILE, export_record.get("task") or {}, heads | extra_heads)
    rules = [*encoder_rules, *head_rules, *older_rules]
    used = {name for rule in rules for name in rule.theirs} | family.tied | family.ignored
    return PretrainedWeights(
        source=source,
        config=config,
        encoder=encoder,
        heads=heads | dict(parts.heads) | extra_heads | projection.tensors,
        head_kind=export_record.get("head")
        or parts.head_kind
        or projection.head_kind
        or _head_kind(published_class, heads),
        task_record=export_record.get("task")
        or parts.task_record
        or _published_task_record(published_class, published, heads),
        tokenizer_dir=PICTURE_TOKENIZER if family.pixels and not export_record else tokenizer_folder(folder),
        unused=tuple(sorted((tensors.keys() - used - projection.used) | untied | parts.unused)),
        hub_name=None if Path(source).expanduser().is_dir() else source,
    )


def weights_from_state(
    source: str,
    config: EncoderConfig,
    state_dict: Mapping[str, Tensor],
    head_kind: str | None = None,
    task_record: Mapping[str, Any] | None = None,
    tokenizer_dir: Path | None = None,
) -> PretrainedWeights:
    """Returns weights to start from, given the full CPU tensors of a run's checkpoint ("encoder.*", "head.*").

    Projections of a distillation ("distillation.*") are dropped.
    """
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "head": {}, _DISTILLATION: {}}
    for name, tensor in state_dict.items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise CheckpointError(
                f"{source} contains {name}, which is not a weight of an encoder or a head. Give another run."
            )
        parts[part][rest] = tensor
    _check_complete(source, config, parts["encoder"])
    _check_labels(source, task_record or {}, parts["head"])
    return PretrainedWeights(
        source, config, parts["encoder"], parts["head"], head_kind, task_record or {}, tokenizer_dir
    )


def _read_config(
    folder: Path, family: Family, published: Mapping[str, Any], export_record: Mapping[str, Any]
) -> EncoderConfig:
    """Reads the encoder config from the export record, which is complete, or else from config.json."""
    name = EXPORT_RECORD_FILE if export_record else CONFIG_FILE
    try:
        if not export_record:
            return family.read_config(published)
        return EncoderConfig(**export_record["encoder"])
    except (CheckpointError, ConfigError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / name} describes no encoder that Cloze can build: {error}") from error


def _check_labels(record: object, task_record: Mapping[str, Any], heads: Mapping[str, Tensor]) -> None:
    """Checks that the labels in the record match the scores of the head."""
    labels, scores = task_record.get("labels", ()), heads.get("classifier.weight")
    if not isinstance(labels, list | tuple) or not all(isinstance(label, str | int | float) for label in labels):
        raise CheckpointError(f"{record} has labels={labels!r}, which is not a list of names. Restore the record.")
    is_number = not labels and scores is not None and len(scores) == 1
    if "labels" in task_record and scores is not None and len(labels) != len(scores) and not is_number:
        raise CheckpointError(
            f"{record} has {len(labels)} labels, but its head gives {len(scores)} scores. Restore the record."
        )


def _canonical(tensors: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Returns published tensors in fp32, without the base model's prefix and with current names of norms."""
    canonical = {}
    for name, tensor in tensors.items():
        for prefix in (family.prefix, *family.older_prefixes):
            name = name.removeprefix(prefix)
        for old, new in _OLD_NORM_NAMES.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
        canonical[name] = tensor.float() if tensor.is_floating_point() else tensor
    return canonical


def _check_complete(source: str, config: EncoderConfig, encoder: Mapping[str, Tensor]) -> None:
    if config.num_layers > len(encoder):
        raise CheckpointError(
            f"{source} contains {len(encoder)} encoder weights, but its config has num_layers={config.num_layers}. "
            "Fetch or export the model again."
        )
    with torch.device("meta"):
        expected = dict(TransformerEncoder(config).named_parameters())
    missing = sorted(expected.keys() - encoder.keys())
    if missing:
        raise CheckpointError(
            f"{source} lacks {len(missing)} of {len(expected)} weights of its encoder, for example {missing[0]} "
            "(name in Cloze). Fetch or export the model again."
        )
    for name, parameter in expected.items():
        if encoder[name].shape != parameter.shape:
            raise CheckpointError(
                f"{source} holds {name} with shape {tuple(encoder[name].shape)}, but its config requires "
                f"{tuple(parameter.shape)}. Fetch or export the model again."
            )


def _drop_untied(
    heads: dict[str, Tensor], tensors: Mapping[str, Tensor], family: Family, word_embeddings: Tensor
) -> set[str]:
    """Removes an MLM head with an untied decoder, because ours is tied; returns the published name of the decoder."""
    untied = {name for name in family.tied & tensors.keys() if not torch.equal(tensors[name], word_embeddings)}
    if untied:
        for name in [name for name in heads if name.startswith("mlm.")]:
            del heads[name]
    return untied


def _head_kind(published_class: PublishedClass | None, heads: Mapping[str, Tensor]) -> str | None:
    if published_class is None or published_class.kind is None or not published_class.names <= heads.keys():
        return None
    return published_class.kind.name


def _published_task_record(
    published_class: PublishedClass | None, published: Mapping[str, Any], heads: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Returns the record of the task, as far as config.json contains it."""
    if published_class is None or published_class.kind is None:
        return {}
    task_record = published_class.kind.read(published, heads)
    if published_class.poolings:
        task_record["pooling"] = published_class.read_pooling(published)
    return task_record


def match_parameters(model: nn.Module, weights: PretrainedWeights) -> tuple[dict[str, Tensor], list[str]]:
    """Returns the full fp32 value of each parameter of a model, which may be on the meta device or sharded.

    If the model pads the vocabulary by up to 127 rows, these rows are zeros. If the weights lack the transform of a
    ModernBERT classification head, the transform of the MLM head is used, as in transformers. If they lack a decoder,
    the encoder is copied.

    Args:
        model: TaskModel with parameters "encoder.*" and "head.*", and an `encoder` that has a config.
        weights: Weights to start from.

    Returns:
        Values by parameter name, and the names of parameters without a value. These belong to the head, are patch
        embeddings of an encoder that read no pictures, or are low-rank updates or projections of a distillation, which
        always start new.

    Raises:
        CheckpointError: The encoders differ, or a shape differs.
    """
    _check_same_arithmetic(cast(TransformerEncoder, model.get_submodule("encoder")).config, weights)
    heads = dict(weights.heads)
    for name, tensor in weights.heads.items():
        if name.startswith(("mlm.dense.", "mlm.norm.")):
            heads.setdefault("transform." + name.removeprefix("mlm."), tensor)
    for name, tensor in _copy_for_decoder(model, weights).items():
        heads.setdefault(name, tensor)
    available = {f"encoder.{name}": tensor for name, tensor in weights.encoder.items()}
    available |= {f"head.{name}": tensor for name, tensor in heads.items()}
    values: dict[str, Tensor] = {}
    new: list[str] = []
    plain_names = set()
    for name, parameter in model.named_parameters():
        plain_name = without_wrappers(name)
        plain_names.add(plain_name)
        if plain_name in available:
            values[name] = _padded(plain_name, available[plain_name], parameter.shape, weights.source)
        elif plain_name.startswith(_NEW_PARTS) or is_update(plain_name):
            new.append(name)
        else:
            raise CheckpointError(f"{weights.source} has no {plain_name}, which this model requires. {_REMEDY}")
    extra = sorted(
        name
        for name in available.keys() - plain_names
        if name.startswith("encoder.") and not name.startswith(f"encoder.{PATCH_EMBEDDINGS}")
    )
    if extra:
        raise CheckpointError(f"{weights.source} has {extra[0]}, which this model lacks. {_REMEDY}")
    return values, new


def _copy_for_decoder(model: nn.Module, weights: PretrainedWeights) -> dict[str, Tensor]:
    """Returns encoder weights for a new decoder: all but cross-attention (Rothe et al. 2020, arXiv:1907.12461).

    The decoder is post-norm with learned positions and no gate. Returns nothing from an encoder of another kind.
    Position embeddings are copied only if the encoder has enough of them. Of the segment embeddings, the first is
    copied.
    """
    config = weights.config
    if (config.norm_placement, config.position_encoding, config.gated) != ("post", "learned", False):
        return {}
    copy = {
        f"decoder.{name}": tensor
        for name, tensor in weights.encoder.items()
        if name.startswith(("layers.", "embeddings.norm.", "embeddings.word_embeddings."))
    }
    table = "decoder.embeddings.position_embeddings.weight"
    parameter = dict(model.named_parameters()).get(f"head.{table}")
    if parameter is not None and parameter.shape[0] <= config.max_sequence_length:
        rows = slice(config.position_offset, config.position_offset + parameter.shape[0])
        copy[table] = weights.encoder["embeddings.position_embeddings.weight"][rows]
    segments = "embeddings.token_type_embeddings.weight"
    if segments in weights.encoder:
        copy[f"decoder.{segments}"] = weights.encoder[segments][:1]
    return copy


def _check_same_arithmetic(config: EncoderConfig, weights: PretrainedWeights) -> None:
    """Compares settings that change the function of the encoder but not the shape of a parameter."""
    for name in _SAME_ARITHMETIC:
        own, published = getattr(config, name), getattr(weights.config, name)
        if own != published:
            raise CheckpointError(
                f"{weights.source} has {name}={published!r}, but this model has model.{name}={own!r}. {_REMEDY}"
            )


def _padded(name: str, value: Tensor, shape: torch.Size, source: str) -> Tensor:
    """Returns the value, with rows of zeros appended for a padded vocabulary."""
    if name in _PADDED_BY_VOCABULARY and value.shape[1:] == shape[1:]:
        padding = shape[0] - value.shape[0]
        if 0 < padding <= _MAX_PADDING:
            return nn.functional.pad(value, (0, 0) * (value.dim() - 1) + (0, padding))
    if value.shape != shape:
        remedy = "Set the keys of the task that decide its shape, or choose other weights."
        raise CheckpointError(
            f"{source} has {name} of shape {tuple(value.shape)}, but this model requires {tuple(shape)}. "
            f"{remedy if name.startswith('head.') else _REMEDY}"
        )
    return value.float()
