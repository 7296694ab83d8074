"""Items joined to privacy units: which items a unit has in a step, and how they are built."""

import numpy as np
import pytest

from framework.batch import PackedBatch
from framework.data.flat_source import FlatSource, FlatTarget
from framework.data.planning.collate import RoundedShape
from framework.data.planning.plan import StepPlan, StepSequences
from framework.data.unit_source import UnitSource
from framework.modules.passes.row_units import BatchUnits

LENGTHS = np.array([3, 4, 5, 2, 6, 7, 8, 3])
"""Tokens of each sequence; each token has the number of its sequence as id."""
SIZES = np.array([1, 2, 1, 1, 1, 2])
"""Sequences of each item."""
ROWS = np.array([0, 1, 1, 2, 3, 4])
UNITS = np.array([1, 0, 1, 1, 2])
"""Unit of each row: unit 0 has the items 1 and 2, unit 1 the items 0, 3 and 4, and unit 2 the item 5."""


def flat() -> FlatSource:
    ids = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    targets = {"labels": FlatTarget(np.arange(len(LENGTHS)), "sequences")}
    return FlatSource(ids, LENGTHS, targets, {}, 8, item_sizes=SIZES)


def built(source: UnitSource, units: list[int], epoch: int = 0, shape: RoundedShape | None = None) -> PackedBatch:
    indices = np.array(units, dtype=np.int64)
    return source.build(StepSequences(np.full_like(indices, epoch), indices, indices + 10), 0, shape)


def lengths(source: UnitSource, epoch: int = 0) -> list[int]:
    return source.lengths(np.full(3, epoch), np.arange(3)).tolist()


def test_a_unit_has_all_items_of_its_rows():
    source = UnitSource(flat(), ROWS, UNITS)
    assert len(source) == 3 and source.unit_size == 3
    assert lengths(source) == [4 + 5 + 2, 3 + 6 + 7, 8 + 3] == lengths(source, epoch=5)
    assert source.max_length == 16 and source.max_sequence_length == 8
    assert source.mean_length == pytest.approx(38 / 3)
    batch = built(source, [2, 0])
    assert batch.targets["labels"].tolist() == [6, 7, 1, 2, 3]
    assert batch.unit_ids.tolist() == [12, 12, 10, 10, 10]
    # The items keep their own identity, on which losses over items depend.
    assert (batch.sequence_ids // batch.group_size).tolist() == [36, 36, 30, 30, 31]
    assert len(set(batch.sequence_ids.tolist())) == 5


def test_dummies_are_units_of_their_own():
    batch = built(UnitSource(flat(), ROWS, UNITS), [0, 1], shape=RoundedShape())
    units = BatchUnits(batch)
    assert units.num_real == 2
    assert units.of("sequences").index[: batch.num_sequences].tolist() == [0, 0, 0, 1, 1, 1]
    tokens = units.of("tokens").index
    assert tokens[: batch.num_tokens].tolist() == [0] * 11 + [1] * 16 and (tokens[batch.num_tokens :] >= 2).all()


def test_a_bound_uses_the_next_rows_in_each_epoch():
    source = UnitSource(flat(), ROWS, UNITS, most_rows=2)
    labels = [built(source, [1], epoch).targets["labels"].tolist() for epoch in range(4)]
    # The rows of unit 1 have the sequences 0, (4,) and (5,); two of them are used at a time.
    assert labels == [[0, 4], [5, 0], [4, 5], [0, 4]]
    assert [lengths(source, epoch)[1] for epoch in range(3)] == [3 + 6, 7 + 3, 6 + 7]
    assert source.max_length == 6 + 7 and source.unit_size == 2
    assert lengths(source)[0] == 4 + 5 + 2  # one row of two items


def test_no_units_give_a_batch_without_real_sequences():
    batch = built(UnitSource(flat(), ROWS, UNITS), [])
    assert batch.num_sequences == 0 and BatchUnits(batch).num_real == 0


def test_micro_batches_never_divide_a_unit():
    plan = StepPlan(UnitSource(flat(), ROWS, UNITS), 0, 3, 16, num_ranks=2)
    batches = [batch for rank in range(2) for batch in plan.batches(0, rank)]
    owners = [set(batch.unit_ids[: batch.num_sequences].tolist()) for batch in batches]
    assert sorted(unit for each in owners for unit in each) == [0, 1, 2]


def test_the_fingerprint_depends_on_the_units():
    prints = {
        UnitSource(flat(), ROWS, units, most).fingerprint
        for units, most in ((UNITS, None), (UNITS, 2), (np.array([1, 0, 0, 1, 2]), None))
    }
    assert len(prints) == 3
