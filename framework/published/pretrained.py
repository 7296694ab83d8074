"""Published weights or an export of ours, from a folder or hub name, into our names and into a model."""

from collections.abc import Callable, Mapping
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
from framework.published.bert import BERT
from framework.published.encoder_decoder import take_apart
from framework.published.export_record import read_export_record
from framework.published.family import Family, PublishedClass
from framework.published.files import (
    CONFIG_FILE,
    SIDE_CONFIG_FILE,
    SIDE_WEIGHTS_FILE,
    find_folder,
    read_json,
    read_safetensors_if_there,
    read_tensors,
    tokenizer_folder,
)
from framework.published.modernbert import MODERNBERT
from framework.published.own_class import MODEL_TYPE as OWN_MODEL_TYPE
from framework.published.own_class import take_apart_own_class
from framework.published.roberta import ROBERTA
from framework.published.rules import to_ours

FAMILIES: dict[str, Family] = {"bert": BERT, "roberta": ROBERTA, "modernbert": MODERNBERT}
# Names that the first BERT checkpoints, converted from TensorFlow, still have.
_OLD_NORM_NAMES = {".gamma": ".weight", ".beta": ".bias"}
_SAME_ARITHMETIC = ("num_heads", "position_encoding", "position_offset", "norm_placement", "activation", "norm_eps")
_PADDED_BY_VOCABULARY = ("encoder.embeddings.word_embeddings.weight", "head.mlm.decoder.bias")
_MAX_PADDING = 127
_REMEDY = "use model=from_weights, which takes the encoder from the weights, or choose other weights."


@dataclass(frozen=True)
class PretrainedWeights:
    """Weights in our names, all fp32 on the CPU.

    Attributes:
        source: Where they come from, for messages.
        config: Of the encoder.
        encoder: Parameters of TransformerEncoder, every one of them.
        heads: Parameters of heads, as many as were found.
        head_kind: `Task.head_kind` of the task that they were trained for; None where it is not known or there is no
            whole head.
        side: What an export keeps of the task: `labels`, `pooling`, `problem`, as far as the head has them.
        tokenizer_dir: Folder of the tokenizer, or None.
        unused: Tensors that have no place here, by their published names, and those of heads that were left out.
        hub_name: Their name on the Hugging Face Hub, where they come from there.
    """

    source: str
    config: EncoderConfig
    encoder: Mapping[str, Tensor]
    heads: Mapping[str, Tensor] = field(default_factory=dict)
    head_kind: str | None = None
    side: Mapping[str, Any] = field(default_factory=dict)
    tokenizer_dir: Path | None = None
    unused: tuple[str, ...] = ()
    hub_name: str | None = None


def load_pretrained(source: str) -> PretrainedWeights:
    """Loads weights of a known family.

    Args:
        source: A folder (Hugging Face layout, sentence-transformers included, or an export of Cloze), or a name on the
            Hugging Face Hub, which is used only where no such folder exists.

    Raises:
        CheckpointError: There is no model, its family is not known, or its files are incomplete or disagree.
    """
    folder = find_folder(str(source))
    with reading_record(folder, "Fetch or export the model again"):
        return _load(str(source), folder)


def _load(source: str, folder: Path) -> PretrainedWeights:
    side_config = read_export_record(folder)
    whole = read_json(folder / CONFIG_FILE)
    is_own_class = whole.get("model_type") == OWN_MODEL_TYPE
    parts = (take_apart_own_class if is_own_class else take_apart)(whole, read_tensors(folder))
    published = parts.published
    model_type = published.get("model_type")
    if model_type not in FAMILIES:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} has model_type={model_type!r}; known families are {', '.join(FAMILIES)}."
        )
    family = FAMILIES[model_type]
    config = _read_config(folder, family, published, side_config)
    tensors = _canonical(parts.tensors, family)
    published_class = family.import_class(config, str((published.get("architectures") or [""])[0]))
    encoder_rules, head_rules = family.encoder_rules(config), family.import_rules(published_class)
    encoder = to_ours(encoder_rules, tensors, config.num_heads)
    _check_complete(source, config, encoder)
    heads = to_ours(head_rules, tensors, config.num_heads)
    untied = _drop_untied(heads, tensors, family, encoder["embeddings.word_embeddings.weight"])
    side_heads = read_safetensors_if_there(folder / SIDE_WEIGHTS_FILE)
    if side_config:
        _check_labels(folder / SIDE_CONFIG_FILE, side_config.get("task") or {}, heads | side_heads)
    used = {name for rule in [*encoder_rules, *head_rules] for name in rule.theirs} | family.tied | family.ignored
    return PretrainedWeights(
        source=source,
        config=config,
        encoder=encoder,
        heads=heads | dict(parts.heads) | {name: tensor.float() for name, tensor in side_heads.items()},
        head_kind=side_config.get("head") or parts.head_kind or _head_kind(published_class, heads),
        side=side_config.get("task") or parts.side or _published_side(published_class, published, heads),
        tokenizer_dir=tokenizer_folder(folder),
        unused=tuple(sorted((tensors.keys() - used) | untied | parts.unused)),
        hub_name=None if Path(source).expanduser().is_dir() else source,
    )


def weights_from_state(
    source: str,
    config: EncoderConfig,
    state_dict: Mapping[str, Tensor],
    head_kind: str | None = None,
    side: Mapping[str, Any] | None = None,
    tokenizer_dir: Path | None = None,
) -> PretrainedWeights:
    """Takes the full CPU tensors of a run's checkpoint ("encoder.*", "head.*") for weights to start from."""
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "head": {}}
    for name, tensor in state_dict.items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise CheckpointError(
                f"{source} contains {name}, which is not a weight of an encoder or a head. Give another run."
            )
        parts[part][rest] = tensor
    _check_complete(source, config, parts["encoder"])
    _check_labels(source, side or {}, parts["head"])
    return PretrainedWeights(source, config, parts["encoder"], parts["head"], head_kind, side or {}, tokenizer_dir)


def _read_config(
    folder: Path, family: Family, published: Mapping[str, Any], side_config: Mapping[str, Any]
) -> EncoderConfig:
    """Our own record of the config where there is one, since config.json cannot hold all of it."""
    name = SIDE_CONFIG_FILE if side_config else CONFIG_FILE
    try:
        if not side_config:
            return family.read_config(published)
        return EncoderConfig(**side_config["encoder"])
    except (CheckpointError, ConfigError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / name} describes no encoder that Cloze can build: {error}") from error


def _check_labels(record: object, side: Mapping[str, Any], heads: Mapping[str, Tensor]) -> None:
    """Checks that the labels in our record match the scores of the head."""
    labels, scores = side.get("labels", ()), heads.get("classifier.weight")
    if not isinstance(labels, list | tuple) or not all(isinstance(label, str | int | float) for label in labels):
        raise CheckpointError(f"{record} has labels={labels!r}, which is not a list of names. Restore the record.")
    is_number = not labels and scores is not None and len(scores) == 1
    if "labels" in side and scores is not None and len(labels) != len(scores) and not is_number:
        raise CheckpointError(
            f"{record} has {len(labels)} labels, but its head gives {len(scores)} scores. Restore the record."
        )


def _canonical(tensors: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Published tensors in fp32, without the base model's prefix and with today's names of norms."""
    canonical = {}
    for name, tensor in tensors.items():
        name = name.removeprefix(family.prefix)
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
            "(name in Cloze); fetch or export the model again."
        )
    for name, parameter in expected.items():
        if encoder[name].shape != parameter.shape:
            raise CheckpointError(
                f"{source} holds {name} with shape {tuple(encoder[name].shape)}, but its config says "
                f"{tuple(parameter.shape)}; fetch or export the model again."
            )


def _drop_untied(
    heads: dict[str, Tensor], tensors: Mapping[str, Tensor], family: Family, word_embeddings: Tensor
) -> set[str]:
    """Takes out an MLM head whose decoder is not the word embeddings, since ours is; returns the decoder's name."""
    untied = {name for name in family.tied & tensors.keys() if not torch.equal(tensors[name], word_embeddings)}
    if untied:
        for name in [name for name in heads if name.startswith("mlm.")]:
            del heads[name]
    return untied


def _head_kind(published_class: PublishedClass | None, heads: Mapping[str, Tensor]) -> str | None:
    if published_class is None or published_class.kind is None or not published_class.names <= heads.keys():
        return None
    return published_class.kind.name


def _published_side(
    published_class: PublishedClass | None, published: Mapping[str, Any], heads: Mapping[str, Tensor]
) -> dict[str, Any]:
    """What an export would have kept of the task, as far as config.json says it."""
    if published_class is None or published_class.kind is None:
        return {}
    side = published_class.kind.read(published, heads)
    if published_class.poolings:
        side["pooling"] = published.get(published_class.pooling_key or "", published_class.poolings[0])
    return side


def match_parameters(model: nn.Module, weights: PretrainedWeights) -> tuple[dict[str, Tensor], list[str]]:
    """Finds the full fp32 value of each parameter of a model, which may be on the meta device or sharded.

    A vocabulary that the model pads by up to 127 rows is filled up with zeros. A classification head of ModernBERT
    without weights of its own takes the transform of the MLM head, as transformers does; a decoder without weights of
    its own begins as a copy of the encoder.

    Args:
        model: A TaskModel: parameters "encoder.*" and "head.*", and an `encoder` that has a config.
        weights: To start from.

    Returns:
        Values by parameter name, and the names of those for which there is none (all of them in the head, or low-rank
        updates, which begin anew).

    Raises:
        CheckpointError: The encoders are not the same, or a shape differs.
    """
    _check_same_arithmetic(cast(TransformerEncoder, model.get_submodule("encoder")).config, weights)
    heads = dict(weights.heads)
    for name, tensor in weights.heads.items():
        if name.startswith(("mlm.dense.", "mlm.norm.")):
            heads.setdefault("transform." + name.removeprefix("mlm."), tensor)
    for name, tensor in _copy_for_decoder(model, weights).items():
        heads.setdefault(name, tensor)
    given = {f"encoder.{name}": tensor for name, tensor in weights.encoder.items()}
    given |= {f"head.{name}": tensor for name, tensor in heads.items()}
    found: dict[str, Tensor] = {}
    new: list[str] = []
    plain_names = set()
    for name, parameter in model.named_parameters():
        plain_name = without_wrappers(name)
        plain_names.add(plain_name)
        if plain_name in given:
            found[name] = _fitted(plain_name, given[plain_name], parameter.shape, weights.source)
        elif plain_name.startswith("head.") or is_update(plain_name):
            new.append(name)
        else:
            raise CheckpointError(f"{weights.source} has no {plain_name}, which this model has; {_REMEDY}")
    extra = sorted(name for name in given.keys() - plain_names if name.startswith("encoder."))
    if extra:
        raise CheckpointError(f"{weights.source} has {extra[0]}, which this model has not; {_REMEDY}")
    return found, new


def _copy_for_decoder(model: nn.Module, weights: PretrainedWeights) -> dict[str, Tensor]:
    """What a decoder takes from the encoder: all but the attention to the source (Rothe et al. 2020, arXiv:1907.12461).

    Nothing from an encoder of another kind than the decoder, which is post-norm with learned positions and no gate, and
    no positions from one that has fewer; of its segments the first.
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


def copy_into(parameter: Tensor, value: Tensor) -> None:
    """Copies a full value into an unsharded parameter."""
    parameter.copy_(value)


def load_into(
    model: nn.Module, weights: PretrainedWeights, assign: Callable[[Tensor, Tensor], None] = copy_into
) -> list[str]:
    """Puts weights into a model that has memory.

    Args:
        model: See `match_parameters`.
        weights: To start from.
        assign: Puts a full value into a parameter; another one is wanted where parameters are sharded.

    Returns:
        The names of parameters that were left as they were.

    Raises:
        CheckpointError: As in `match_parameters`; the model is unchanged then.
    """
    found, new = match_parameters(model, weights)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in found.items():
            assign(parameters[name], value)
    return new


def _check_same_arithmetic(config: EncoderConfig, weights: PretrainedWeights) -> None:
    """Compares what changes the function that the same numbers compute, and that no shape shows."""
    for name in _SAME_ARITHMETIC:
        here, there = getattr(config, name), getattr(weights.config, name)
        if here != there:
            raise CheckpointError(
                f"{weights.source} has {name}={there!r}, but this model has model.{name}={here!r}; {_REMEDY}"
            )


def _fitted(name: str, value: Tensor, shape: torch.Size, source: str) -> Tensor:
    """The value, with rows of zeros for a padded vocabulary."""
    if name in _PADDED_BY_VOCABULARY and value.shape[1:] == shape[1:]:
        padding = shape[0] - value.shape[0]
        if 0 < padding <= _MAX_PADDING:
            return nn.functional.pad(value, (0, 0) * (value.dim() - 1) + (0, padding))
    if value.shape != shape:
        raise CheckpointError(
            f"{source} has {name} of shape {tuple(value.shape)}, but this model wants {tuple(shape)}; {_REMEDY}"
        )
    return value.float()
