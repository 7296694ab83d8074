"""Classifiers without a class in transformers, which are exported with a class of our own.

transformers does not know their model type. It therefore requires `trust_remote_code=True`, instead of adding a random
head to the encoder. `framework.exports.modeling_cloze` is the file with the class.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from framework.models.config import EncoderConfig
from framework.published.encoder_decoder import Parts
from framework.published.kinds import MULTIPLE_CHOICE, SEQUENCE_CLASSIFICATION, HeadKind
from framework.published.rules import part_of

MODEL_TYPE = "cloze"
MODELING_FILE = "modeling_cloze.py"
_NO_ACTIVATION = f"see {MODELING_FILE}: load with trust_remote_code=True"
"""Invalid activation name. It makes `BertForSequenceClassification` and similar classes fail if a user loads them.

Otherwise they would only warn, and build an encoder of their default size with random weights.
"""
_SUFFIXES = {SEQUENCE_CLASSIFICATION.name: "ForSequenceClassification", MULTIPLE_CHOICE.name: "ForMultipleChoice"}
_KINDS = {kind.name: kind for kind in (SEQUENCE_CLASSIFICATION, MULTIPLE_CHOICE)}
_ENCODER = "encoder."
_POOLER = frozenset({"pooler.dense.weight", "pooler.dense.bias"})
_PARTS = ("pooler.", "transform.", "classifier.")


def own_class(head_kind: str, hidden_size: int, heads: Mapping[str, Tensor]) -> HeadKind | None:
    """Returns the kind of head if our class supports its tensors, else None.

    Args:
        head_kind: `Task.head_kind`.
        hidden_size: Width of the encoder.
        heads: Tensors of the head.
    """
    known = all(name.startswith(_PARTS) for name in heads)
    if head_kind not in _KINDS or not known or not {"classifier.weight", "classifier.bias"} <= set(heads):
        return None
    num_scores, width = heads["classifier.weight"].shape
    is_choice = head_kind == MULTIPLE_CHOICE.name
    return _KINDS[head_kind] if width == hidden_size and (num_scores == 1 or not is_choice) else None


def class_name(kind: HeadKind) -> str:
    """Returns the name of our class for a kind of head."""
    return f"Cloze{_SUFFIXES[kind.name]}"


def auto_class(name: str) -> str | None:
    """Returns the Auto class of transformers that loads our class of this name; None for other names."""
    names = {f"Cloze{suffix}": f"AutoModel{suffix}" for suffix in _SUFFIXES.values()}
    return names.get(name)


def write_own_class(
    pooler_activation: str,
    kind: HeadKind,
    encoder_config: Mapping[str, Any],
    encoder_tensors: Mapping[str, Tensor],
    config: EncoderConfig,
    heads: Mapping[str, Tensor],
    task_record: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the content of config.json and the published tensors.

    Args:
        pooler_activation: Activation of the family's pooler.
        kind: Kind of the head.
        encoder_config: Content of config.json for the encoder alone.
        encoder_tensors: Published tensors of the encoder, without a prefix.
        config: Encoder configuration.
        heads: Tensors of the head.
        task_record: Record of the task: `pooling`, `labels` and `problem`.
    """
    name = class_name(kind)
    module = MODELING_FILE.removesuffix(".py")
    projection = "pooler" if set(heads) >= _POOLER else "transform" if "transform.dense.weight" in heads else "none"
    published: dict[str, Any] = {
        "model_type": MODEL_TYPE,
        "architectures": [name],
        "auto_map": {"AutoConfig": f"{module}.ClozeConfig", str(auto_class(name)): f"{module}.{name}"},
        # The type is outside the settings, because transformers takes a nested object with a known model_type for the
        # config of the whole model.
        "encoder_type": encoder_config["model_type"],
        "encoder": {key: value for key, value in encoder_config.items() if key != "model_type"},
        "pooling": str(task_record.get("pooling", "cls")),
        "projection": projection,
        **dict.fromkeys(("hidden_act", "hidden_activation", "activation"), _NO_ACTIVATION),
        **{key: getattr(config, key) for key in ("hidden_size", "max_position_embeddings", "pad_token_id")},
        **kind.write(task_record, heads),
    }
    if projection == "pooler":
        published["pooler_activation"] = pooler_activation
    if projection == "transform":
        published["transform"] = {
            "bias": config.bias,
            "norm_bias": config.norm_bias,
            "norm_eps": config.norm_eps,
            "activation": config.activation,
        }
    tensors = {_ENCODER + name: tensor for name, tensor in encoder_tensors.items()}
    return published, tensors | {name: tensor.contiguous() for name, tensor in heads.items()}


def split_own_class(published: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Parts:
    """Returns the parts of an export with our class.

    Args:
        published: Content of config.json.
        tensors: Tensors by their published names.
    """
    heads = {name: tensor.float() for name, tensor in tensors.items() if name.startswith(_PARTS)}
    encoder = part_of(tensors, _ENCODER)
    names = [str(name) for name in published.get("architectures") or ()]
    kind = next((kind for kind in _KINDS.values() if class_name(kind) in names), None)
    task_record = {"pooling": published.get("pooling", "cls")} | (
        kind.read(published, heads) if kind is not None else {}
    )
    return Parts(
        # Earlier exports hold the type among the settings.
        published={"model_type": published.get("encoder_type")} | (published.get("encoder") or {}),
        tensors=encoder,
        heads=heads,
        task_record=task_record,
        unused=frozenset(tensors.keys() - heads.keys() - {_ENCODER + name for name in encoder}),
        head_kind=kind.name if kind is not None else None,
    )
