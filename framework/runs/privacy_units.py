"""Privacy units of the training data: which items of the training split belong to one protected unit."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np

from framework.config.schema import TrainConfig
from framework.data.examples.splits import SplitFiles
from framework.data.facts import SplitFacts
from framework.data.flat_source import DerivedSource, FlatSource
from framework.data.planning.plan import SequenceSource
from framework.data.unit_source import UnitSource
from framework.errors import ConfigError
from framework.privacy.guarantee import PrivacySettings
from framework.tasks.pretraining.features import PretrainingSource
from framework.tasks.step_level import StepLevelTask
from framework.tasks.task import Task


@dataclass(frozen=True)
class PrivateItems:
    """Training items that are privacy units.

    Attributes:
        source: Source with one item for each unit.
        unit: Name of the unit, as in `Guarantee`.
    """

    source: SequenceSource
    unit: str


def reading_units(data: Any, privacy: PrivacySettings | None) -> Any:
    """Returns data that reads `privacy.unit_column`; the same data if there is none.

    Raises:
        ConfigError: The data has no columns.
    """
    if privacy is None or privacy.unit_column is None:
        return data
    if not isinstance(data, SplitFiles):
        raise ConfigError(
            f"`privacy.unit_column` is {privacy.unit_column}, but {type(data).__name__} has no columns. Units are read "
            "from tables. Set privacy.unit_column=null; for a token store, privacy.unit=document joins the sequences "
            "of a document."
        )
    return data.with_units(privacy.unit_column)


def private_items(settings: TrainConfig, task: Task, train: SequenceSource) -> PrivateItems | None:
    """Joins the items of the training split to units; None if the run is not private.

    Args:
        settings: Settings of the run.
        task: Task of the run.
        train: Training split.

    Raises:
        ConfigError: The task or its rows do not support privacy, or a unit exceeds a micro-batch.
    """
    privacy, name = settings.privacy, type(task).__name__
    if privacy is None:
        return None
    if isinstance(task, StepLevelTask):
        raise ConfigError(
            f"the loss of {name} compares the rows of a step with each other, but privacy=dp_sgd is set. The gradient "
            "of such a loss is no sum over rows, so that no row's part can be bounded. Use privacy=none."
        )
    if not task.head_rows:
        raise ConfigError(
            f"{name} does not state `head_rows`, but privacy=dp_sgd is set. A private run needs the rows of the head's "
            "activations by unit. Of the tasks of this package, translation lacks them: its decoder shares the word "
            "embeddings a second time, for which there is no rule. Use privacy=none."
        )
    if isinstance(train, PretrainingSource):
        items = _of_store(privacy, train)
    elif isinstance(train, FlatSource | DerivedSource):
        items = _of_rows(privacy, name, train, train.records, train.facts)
    else:
        raise ConfigError(
            f"the training data of {name} is {type(train).__name__}, but privacy=dp_sgd is set. Units are known for "
            "tables and token stores. Use privacy=none."
        )
    budget = settings.trainer.micro_batch_tokens
    if isinstance(items.source, UnitSource) and isinstance(budget, int) and budget < items.source.max_length:
        raise ConfigError(
            f"`trainer.micro_batch_tokens` is {budget}, but a unit of privacy ({items.unit}) has up to "
            f"{items.source.max_length} tokens in a step. They must fit into one micro-batch, because their gradient "
            "is clipped as a whole. Raise trainer.micro_batch_tokens, or bound the rows of a unit in a step by "
            "privacy.max_rows_per_unit."
        )
    return items


def _of_store(privacy: PrivacySettings, train: PretrainingSource) -> PrivateItems:
    if train.chunks.pairs:
        raise ConfigError(
            "`task.nsp` is true, but privacy=dp_sgd is set. Next-sentence prediction puts text of other documents into "
            "a sequence, so that a text takes part in several units. Use task.nsp=false."
        )
    if not train.uses_each_chunk_once:
        raise ConfigError(
            "`data.weights` is set, but privacy=dp_sgd is set. With weights an epoch has some sequences several times, "
            "and each time adds to their part. Use data.weights=null."
        )
    if privacy.unit == "row":
        return PrivateItems(train, "sequence")
    _, documents = np.unique(train.documents, return_inverse=True)
    rows = np.arange(len(train), dtype=np.int64)
    return PrivateItems(UnitSource(train, rows, documents, privacy.max_rows_per_unit), "document")


def _of_rows(
    privacy: PrivacySettings, name: str, train: SequenceSource, records: Sequence[Any], facts: SplitFacts
) -> PrivateItems:
    if privacy.unit == "document":
        raise ConfigError(
            f"`privacy.unit` is document, but {name} reads rows. Only a token store has documents. Use "
            "privacy.unit=row, or name the column of the unit in privacy.unit_column."
        )
    given = [getattr(record, "row", None) for record in records]
    rows = np.array([index if row is None else row for index, row in enumerate(given)] or range(len(train)))
    changes = np.diff(rows, prepend=-1) != 0
    rows = np.cumsum(changes) - 1
    num_rows = int(rows[-1]) + 1
    if facts.rows != num_rows:
        raise ConfigError(
            f"{facts.rows:,} rows of the training split give items of {num_rows:,} rows. The guarantee needs the "
            "row of each item. Let the records of the task have the index of their `row`."
        )
    if privacy.unit_column is None:
        is_divided = num_rows < len(train)
        return PrivateItems(UnitSource(train, rows, np.arange(num_rows)) if is_divided else train, "row")
    values = facts.units
    # A task may leave out rows, of which its records know.
    firsts = compress(records, changes)
    names = [values[record.location] for record in firsts] if records else list(values.values())
    _, units = np.unique(names, return_inverse=True)
    return PrivateItems(
        UnitSource(train, rows, units, privacy.max_rows_per_unit), f"value of the column {privacy.unit_column}"
    )
