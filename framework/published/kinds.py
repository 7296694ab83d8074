"""Kinds of heads with a known meaning, and the conversion of their settings to and from config.json."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from framework.errors import CheckpointError

SINGLE_LABEL, MULTI_LABEL, REGRESSION = "single_label", "multi_label", "regression"
_PROBLEM_TYPES = {
    SINGLE_LABEL: "single_label_classification",
    MULTI_LABEL: "multi_label_classification",
    REGRESSION: "regression",
}
_PROBLEMS = {theirs: ours for ours, theirs in _PROBLEM_TYPES.items()}
_PLAIN_SCORES = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}
"""Key of config.json without which `CrossEncoder` of sentence-transformers applies a sigmoid to a single score."""


def _nothing(source: Mapping[str, Any], heads: Mapping[str, Tensor]) -> dict[str, Any]:
    return {}


def _write_labels(task_record: Mapping[str, Any], heads: Mapping[str, Tensor]) -> dict[str, Any]:
    num_labels = heads["classifier.weight"].shape[0]
    labels = [str(label) for label in task_record.get("labels") or _unnamed(num_labels)]
    if len(labels) != num_labels:
        raise CheckpointError(
            f"There are {len(labels)} labels ({labels}), but {num_labels} scores. Export with the task's own labels."
        )
    return label_names(labels)


def label_names(labels: Iterable[str]) -> dict[str, Any]:
    """Returns the keys of config.json that name labels, in the order of scores."""
    names = [str(label) for label in labels]
    return {
        "id2label": {str(index): label for index, label in enumerate(names)},
        "label2id": {label: index for index, label in enumerate(names)},
    }


def _unnamed(num_labels: int) -> list[str]:
    """Returns the default label names of transformers."""
    return [f"LABEL_{index}" for index in range(num_labels)]


def _read_labels(published: Mapping[str, Any], heads: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads the label names. Scores without a name have a default name; all have one if there are more names."""
    names = {int(index): str(label) for index, label in (published.get("id2label") or {}).items()}
    num_labels = heads["classifier.weight"].shape[0] if "classifier.weight" in heads else len(names)
    unnamed = _unnamed(num_labels)
    fits = all(0 <= index < num_labels for index in names)
    return {"labels": [names.get(index, default) for index, default in enumerate(unnamed)] if fits else unnamed}


def _write_classification(task_record: Mapping[str, Any], heads: Mapping[str, Tensor]) -> dict[str, Any]:
    labels = _write_labels(task_record, heads)
    problem = problem_of(task_record, len(labels["id2label"]))
    if problem not in _PROBLEM_TYPES:
        raise CheckpointError(f"problem={problem!r} of the task is unknown. Use one of {', '.join(_PROBLEM_TYPES)}.")
    plain = _PLAIN_SCORES if problem == REGRESSION and len(labels["id2label"]) == 1 else {}
    return {**labels, "problem_type": _PROBLEM_TYPES[problem], **plain}


def _read_classification(published: Mapping[str, Any], heads: Mapping[str, Tensor]) -> dict[str, Any]:
    labels = _read_labels(published, heads)
    problem_type = published.get("problem_type")
    if problem_type is not None and problem_type not in _PROBLEMS:
        raise CheckpointError(f"problem_type={problem_type!r} is unknown. Known ones are {', '.join(_PROBLEMS)}.")
    problem = _PROBLEMS[problem_type] if problem_type else problem_of({}, len(labels["labels"]))
    return {**labels, "problem": problem}


def problem_of(task_record: Mapping[str, Any], num_labels: int) -> str:
    """Returns the problem that a sequence head solves. By default, one score is a regression, and several are classes.

    Args:
        task_record: Record of the task; `problem` is "single_label", "multi_label" or "regression".
        num_labels: Number of scores.
    """
    return str(task_record.get("problem") or (REGRESSION if num_labels == 1 else SINGLE_LABEL))


@dataclass(frozen=True)
class HeadKind:
    """One kind of head.

    Attributes:
        name: `Task.head_kind`.
        pipeline_tag: Tag of the Hugging Face Hub for models with such a head; None if there is none.
        write: Converts the record of the task and the tensors of its head to keys of config.json; raises
            CheckpointError if they do not match.
        read: Converts config.json and the tensors of the head to the record of the task: the inverse of `write`.
        truncates_texts: True if texts longer than the task's `max_length` are truncated.
        reads_words: True if the model is trained on separate words, with a space before each.
    """

    name: str
    pipeline_tag: str | None = None
    write: Callable[[Mapping[str, Any], Mapping[str, Tensor]], dict[str, Any]] = _nothing
    read: Callable[[Mapping[str, Any], Mapping[str, Tensor]], dict[str, Any]] = _nothing
    truncates_texts: bool = False
    reads_words: bool = False


PRETRAINING = HeadKind("pretraining", "fill-mask")
SEQUENCE_CLASSIFICATION = HeadKind(
    "sequence_classification", "text-classification", _write_classification, _read_classification, truncates_texts=True
)
IMAGE_CLASSIFICATION = HeadKind(
    "image_classification", "image-classification", _write_classification, _read_classification
)
TOKEN_CLASSIFICATION = HeadKind(
    "token_classification", "token-classification", _write_labels, _read_labels, reads_words=True
)
QUESTION_ANSWERING = HeadKind("question_answering", "question-answering")
REPLACED_TOKENS = HeadKind("replaced_tokens")
"""One score for each token: whether it was replaced (ELECTRA's discriminator)."""
MULTIPLE_CHOICE = HeadKind("multiple_choice", "multiple-choice", truncates_texts=True)
TRANSLATION = HeadKind("translation", "translation")
"""Decoder on top of the encoder. It has no class per family in transformers, but `EncoderDecoderModel` wraps both."""
EMBEDDING = HeadKind("embedding", "sentence-similarity", truncates_texts=True)
"""One vector per text, exported as the base class of transformers with the files of sentence-transformers."""

RERANKING = HeadKind("reranking", "text-ranking", truncates_texts=True)
"""One score per query and document: for other libraries a sequence classification whose scores order documents."""

RERANKS_KEY = "reranks"
"""Key in the record of a task: True if its sequence classification is a reranking."""

SPARSE_EMBEDDING = HeadKind("sparse_embedding", "feature-extraction", truncates_texts=True)
"""One weight per word and text, exported as the class of masked words with the files of sentence-transformers."""
LATE_INTERACTION = HeadKind("late_interaction", "sentence-similarity", truncates_texts=True)
"""One vector per token, exported as the base class of transformers with the files of PyLate."""

IMAGE_TEXT = "image_text"
"""Kind of a head whose vectors of texts need only the encoder; its scale and bias belong to the loss."""

KINDS = {
    kind.name: kind
    for kind in (
        PRETRAINING,
        REPLACED_TOKENS,
        SEQUENCE_CLASSIFICATION,
        IMAGE_CLASSIFICATION,
        TOKEN_CLASSIFICATION,
        QUESTION_ANSWERING,
        MULTIPLE_CHOICE,
        TRANSLATION,
        EMBEDDING,
        LATE_INTERACTION,
        SPARSE_EMBEDDING,
    )
}
