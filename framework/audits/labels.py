"""Labels in the files of audits, and the texts of tasks that read one text per row."""

from collections.abc import Iterable, Mapping

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


def map_labels(given: Iterable[str], mapping: Mapping[str, str], known: tuple[str, ...], key: str) -> dict[str, str]:
    """Returns the label of the model for each label of a file.

    Args:
        given: Labels of the file.
        mapping: {label of the file: label of the model}; labels that it does not contain keep their names.
        known: Labels of the model.
        key: Config key of the mapping, for messages.

    Raises:
        ConfigError: The model lacks a label.
    """
    mapped = {label: mapping.get(label, label) for label in given}
    unknown = sorted({label for label in mapped.values() if label not in known})
    if unknown:
        used = sorted({label for label, own in mapped.items() if own in unknown})
        example = ", ".join(f"{label}: {known[index % len(known)]}" for index, label in enumerate(sorted(mapped)))
        raise ConfigError(
            f"the labels {', '.join(used)} are not labels of the model, which are {', '.join(known)}. Each label needs "
            f"a label of the model. Map them, for example '{key}={{{example}}}'."
        )
    return mapped
