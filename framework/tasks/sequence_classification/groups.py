"""Groups of rows, for the accuracy of the worst group and for a loss term of each group."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from framework.data.examples.table import LabelledText, TableData
from framework.errors import ConfigError, DataError, check_above_zero, counted
from framework.tasks.sequence_classification.features import SequenceGroups

_MOST_GROUPS = 100


@dataclass(frozen=True)
class GroupLoss:
    """Settings of Group DRO (`framework.modules.passes.term_weights`).

    Attributes:
        step_size: Factor of a group's loss in the exponent of its weight, in each step.

    Raises:
        ConfigError: The step size is not positive.
    """

    step_size: float = 0.01

    def __post_init__(self) -> None:
        check_above_zero("task.group_loss.step_size", self.step_size, 0.01)


class Groups:
    """Groups of the data of a task, and its loss terms.

    Args:
        has_terms: True if each group has its own loss term.

    Attributes:
        names: Names in ascending order; empty if the data has no groups. Known after `learn` or `restore`.
        is_active: True if the data that was read last has groups.
    """

    def __init__(self, has_terms: bool) -> None:
        self._has_terms = has_terms
        self.names: tuple[str, ...] = ()
        self.is_active = False

    @property
    def terms(self) -> tuple[str, ...]:
        """Returns the loss term of each group; empty if all groups share one term."""
        return tuple(f"group_{name}" for name in self.names) if self._has_terms and self.is_active else ()

    def learn(self, splits: Mapping[str, Sequence[LabelledText]], data: TableData, is_restored: bool) -> None:
        """Determines the groups of the data.

        Args:
            splits: Rows by split.
            data: Settings of the data.
            is_restored: True if the task was trained before. Its groups are then known, and rows may have none.

        Raises:
            ConfigError: The groups have loss terms or are balanced, and the data has none.
            DataError: A group has loss terms but no training row, a trained model does not know it, or there are less
                than two groups or too many.
        """
        self.is_active = bool(data.group_columns)
        users = {"task.group_loss": self._has_terms, "data.balance": data.balance is not None}
        user = next((name for name, is_set in users.items() if is_set), None)
        if not self.is_active and user is not None and not is_restored:
            raise ConfigError(
                f"{user} is set, but data.group_column is null. It needs the group of each row. Set data.group_column, "
                f"or {user}=null."
            )
        if not self.is_active:
            return
        if not self.names:
            self.names = tuple(sorted({str(row.group) for rows in splits.values() for row in rows}))
            self._check_names(next(iter(splits.values())))
        known = {row.group for row in splits["train"]} if self._has_terms and not is_restored else set(self.names)
        for row in (row for rows in splits.values() for row in rows):
            if row.group not in known:
                raise DataError(
                    f"{row.location}: the group {row.group!r} has no row in `train`. Groups must be those of the "
                    "training. Correct the row. To evaluate rows without groups, set +data.group_column=[]."
                )

    def _check_names(self, rows: Sequence[LabelledText]) -> None:
        if not 2 <= len(self.names) <= _MOST_GROUPS:
            raise DataError(
                f"{rows[0].location}: data.group_column has {counted(len(self.names), 'group')}, such as "
                f"{self.names[0]!r}. There must be 2 to {_MOST_GROUPS}. Name another column."
            )

    def of_rows(self, rows: Iterable[LabelledText]) -> SequenceGroups | None:
        """Returns the groups of rows; None if the data has no groups."""
        if not self.is_active:
            return None
        indices = {name: index for index, name in enumerate(self.names)}
        return SequenceGroups(np.array([indices[str(row.group)] for row in rows], dtype=np.int64), self.terms)

    def sums(self, losses: Tensor, groups: Tensor) -> dict[str, Tensor]:
        """Sums losses by group.

        Args:
            losses: (sequences,) fp32, 0 for dummies.
            groups: (sequences,) int64, IGNORE_INDEX for dummies.

        Returns:
            fp32 scalar of each loss term.
        """
        is_member = groups[None] == torch.arange(len(self.names), device=groups.device)[:, None]
        sums = torch.where(is_member, losses[None], 0.0).sum(dim=1)
        return dict(zip(self.terms, sums.unbind(), strict=True))

    def to_record(self) -> dict[str, Any]:
        """Returns the names, for `restore`; empty without groups."""
        return {"groups": list(self.names)} if self.names else {}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Restores the names."""
        self.names = tuple(str(name) for name in record.get("groups", ()))
