"""Labels in the files of audits, and the texts of tasks that read one text per row."""

from collections.abc import Iterable, Mapping, Sequence

from framework.audits.audit import Subject
from framework.errors import ConfigError


def check_single_labels(subject: Subject, name: str) -> tuple[str, ...]:
    """Returns the labels of the model.

    Args:
        subject: Model that is audited.
        name: Name of the audit, for messages.

    Raises:
        ConfigError: The predictions of the task are not single labels.
    """
    labels = subject.task.single_labels
    if not labels:
        raise ConfigError(
            f"{type(subject.task).__name__} does not predict one label per row, which the audit {name} needs. Audit a "
            "run of single-label classification or relation extraction."
        )
    return labels


def check_one_text(subject: Subject, name: str) -> str:
    """Returns the only field of the task.

    Raises:
        ConfigError: The task reads several texts per row.
    """
    fields = subject.task.fields
    if len(fields) != 1:
        raise ConfigError(
            f"the model reads the fields {', '.join(fields)}, but the audit {name} has one text per case. Audit a "
            "model that reads single texts."
        )
    return fields[0]


def map_labels(
    given: Iterable[str], mapping: Mapping[str, str] | None, known: Sequence[str], key: str
) -> dict[str, str]:
    """Returns the label of the model for each label of a file.

    Args:
        given: Labels of the file.
        mapping: {label of the file: label of the model}; None: the labels are those of the model.
        known: Labels of the model.
        key: Config key of the mapping, for messages.

    Raises:
        ConfigError: The model lacks a label, or the mapping lacks one.
    """
    labels = sorted(set(given))
    mapped = {label: label for label in labels} if mapping is None else check_mapping(mapping, known, key)
    missing = [label for label in labels if mapped.get(label) not in known]
    if missing:
        reason = f"not labels of the model, which are {', '.join(known)}" if mapping is None else "not mapped"
        named = f"the label {missing[0]} is" if len(missing) == 1 else f"the labels {', '.join(missing)} are"
        raise ConfigError(
            f"{named} {reason}. Each label needs a label of the model. Map all of them, for "
            f"example '{key}={{{_example(labels, known)}}}'."
        )
    return {label: mapped[label] for label in labels}


def check_mapping(mapping: Mapping[str, str], known: Sequence[str], key: str) -> dict[str, str]:
    """Returns a mapping of labels with names as text, after a check of the labels of the model.

    Raises:
        ConfigError: The model lacks a label.
    """
    mapped = {str(label): str(own) for label, own in mapping.items()}
    for label, own in mapped.items():
        if own not in known:
            raise ConfigError(
                f"`{key}` maps {label} to {own}, which is not a label of the model. Its labels are {', '.join(known)}. "
                "Choose one of them."
            )
    return mapped


def _example(labels: Sequence[str], known: Sequence[str]) -> str:
    """Returns pairs of labels in their orders, for example "0: neg, 2: pos" for three labels and two of the model."""
    number = min(len(labels), len(known))
    chosen = [
        (labels[index * (len(labels) - 1) // max(1, number - 1)], known[index * (len(known) - 1) // max(1, number - 1)])
        for index in range(number)
    ]
    return ", ".join(f"{label}: {own}" for label, own in chosen)
