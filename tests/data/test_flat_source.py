"""Items of one and of several sequences, gathered into micro-batches written by hand."""

import numpy as np
import pytest

from framework.batch import IGNORE_INDEX
from framework.data.flat_source import FlatSource, FlatTarget
from framework.data.planning.collate import FixedShape
from framework.data.planning.plan import StepSequences


def source(**changes) -> FlatSource:
    """Sequences 10 11 | 20 | 30 31 32 | 40 41, in items of two, one and one."""
    arguments = {
        "input_ids": np.array([10, 11, 20, 30, 31, 32, 40, 41]),
        "lengths": np.array([2, 1, 3, 2]),
        "targets": {
            "labels": FlatTarget(np.array([7, 8, 9, IGNORE_INDEX]), "sequences"),
            "tags": FlatTarget(np.arange(8), "tokens"),
            "spans": FlatTarget(np.array([[0, 1], [0, 0], [1, 2], [-1, -1]]), "sequences", 0, is_position=True),
        },
        "counts": {"term": np.array([1.0, 1.0, 0.5, 0.0])},
        "max_length": 3,
        "item_sizes": np.array([2, 1, 1]),
        "records": ["a", "b", "c"],
    }
    return FlatSource(**(arguments | changes))


def test_items_are_counted_and_measured_as_a_unit():
    items = source()
    assert len(items) == 3
    assert items.lengths(np.zeros(3), np.array([2, 0, 1])).tolist() == [2, 3, 3]
    assert (items.max_length, items.max_sequence_length, items.group_size) == (3, 3, 2)
    assert items.mean_length == pytest.approx(8 / 3)
    assert source(item_sizes=None).mean_length == 2.0


def test_a_micro_batch_by_hand():
    batch = source().build(StepSequences(np.zeros(2), np.array([1, 0]), np.array([5, 6])), step=0)
    assert batch.input_ids.tolist() == [30, 31, 32, 10, 11, 20]
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 6]
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 1, 0]
    # Item 5 has one sequence, item 6 two; each sequence has an id of its own.
    assert batch.sequence_ids.tolist() == [10, 12, 13]
    assert batch.item_indices() == [5, 6]
    assert batch.targets["labels"].tolist() == [9, 7, 8]
    assert batch.targets["tags"].tolist() == [3, 4, 5, 0, 1, 2]
    # Positions within a sequence became positions within the micro-batch.
    assert batch.targets["spans"].tolist() == [[1, 2], [3, 4], [5, 5]]
    assert batch.counts == {"term": 2.5}


def test_positions_of_none_stay_none_and_fillers_follow():
    batch = source().build(StepSequences(np.zeros(1), np.array([2]), np.array([0])), 0, FixedShape(8, 4, None, 3))
    assert batch.targets["spans"].tolist() == [[-1, -1], [0, 0], [0, 0], [0, 0]]
    assert batch.targets["labels"].tolist() == [IGNORE_INDEX] * 4
    assert batch.item_indices() == [0]


def test_no_items_give_a_dummy():
    none = np.zeros(0, dtype=np.int64)
    batch = source().build(StepSequences(none, none, none), 0)
    assert (batch.num_sequences, batch.item_indices(), batch.counts) == (0, [], {"term": 0.0})


def test_the_fingerprint_covers_every_part():
    changes = [
        {"input_ids": np.array([10, 11, 20, 30, 31, 32, 40, 42])},
        {"item_sizes": np.array([1, 2, 1])},
        {"token_type_ids": np.arange(8) > 2},
        {"targets": {"labels": FlatTarget(np.array([7, 8, 9, 1]), "sequences")}},
    ]
    assert len({source(**change).fingerprint for change in ({}, *changes)}) == 5
