"""Rows of the user's split whose texts audits edit."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from framework.audits.audit import Subject
from framework.errors import ConfigError
from framework.random import key


def check_editable(subject: Subject, name: str, other: str) -> Sequence[Any]:
    """Returns the records of the split, which have the fields of the task and a label.

    Args:
        subject: Model that is audited.
        name: Name of the audit, for messages.
        other: Remedy without its full stop, if the texts cannot be edited.

    Raises:
        ConfigError: The task does not allow edits, or the split keeps no texts.
    """
    if not subject.task.allows_augmentation:
        raise ConfigError(
            f"{type(subject.task).__name__} does not allow edits of texts, which the audit {name} makes, because its "
            f"targets refer to parts of them. {other}."
        )
    records: Sequence[Any] = getattr(subject.source, "records", ())
    if not records:
        raise ConfigError(
            f"split={subject.split} has no texts to edit. The rows of train are not kept after they are read. Use "
            f"split=validation or split=test. {other}."
        )
    return records


def chosen_rows(number: int, max_rows: int | None, seed: int) -> list[int]:
    """Returns the ascending indices of a seeded sample of rows; a smaller sample is a subset of a larger one.

    Args:
        number: Number of rows.
        max_rows: Size of the sample; None: all rows.
        seed: Seed of the sample.
    """
    draws = np.array([key(seed, "audited row", index) for index in range(number)], dtype=np.uint64)
    chosen: list[int] = np.sort(np.argsort(draws, kind="stable")[:max_rows]).tolist()
    return chosen
