"""Packing, compared with tensors written by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.batch import DUMMY_SEQUENCE_ID, IGNORE_INDEX, PackedBatch
from framework.data.planning.collate import FixedShape, RoundedShape, Target, pack_sequences
from framework.errors import ConfigError


def three_sequences(shape: FixedShape | None = None) -> PackedBatch:
    return pack_sequences(
        input_ids=np.array([11, 12, 13, 21, 31, 32]),
        lengths=np.array([3, 1, 2]),
        sequence_ids=np.array([40, 7, 41]),
        token_type_ids=np.array([0, 0, 1, 0, 0, 1]),
        targets={
            "positions": Target(np.array([1, 5]), "targets", filler=0),
            "words": Target(np.array([99, 98]), "targets"),
            "labels": Target(np.array([1, 0, 1]), "sequences"),
            "weights": Target(np.array([0.5, 1, 1, 1, 1, 0.25]), "tokens", filler=0),
        },
        counts={"words": 2.0},
        shape=shape,
    )


def check(tensor: torch.Tensor, values: list, dtype: torch.dtype = torch.int64) -> None:
    assert tensor.dtype == dtype
    assert tensor.tolist() == values


def test_sequences_are_laid_end_to_end():
    batch = three_sequences()
    check(batch.input_ids, [11, 12, 13, 21, 31, 32])
    check(batch.position_ids, [0, 1, 2, 0, 0, 1])
    check(batch.token_type_ids, [0, 0, 1, 0, 0, 1])
    check(batch.cu_seqlens, [0, 3, 4, 6], torch.int32)
    check(batch.sequence_ids, [40, 7, 41])
    assert (batch.lengths, batch.max_seqlen, batch.num_sequences, batch.num_tokens) == ((3, 1, 2), 3, 3, 6)
    check(batch.targets["positions"], [1, 5])
    check(batch.targets["words"], [99, 98])
    check(batch.targets["labels"], [1, 0, 1])
    check(batch.targets["weights"], [0.5, 1, 1, 1, 1, 0.25], torch.float32)
    assert batch.counts == {"words": 2.0}


def test_a_fixed_shape_is_filled_with_dummies():
    batch = three_sequences(FixedShape(tokens=11, sequences=5, targets=3, max_seqlen=4))
    check(batch.input_ids, [11, 12, 13, 21, 31, 32, 0, 0, 0, 0, 0])
    check(batch.position_ids, [0, 1, 2, 0, 0, 1, 0, 1, 2, 0, 1])
    check(batch.token_type_ids, [0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0])
    check(batch.cu_seqlens, [0, 3, 4, 6, 9, 11], torch.int32)
    check(batch.sequence_ids, [40, 7, 41, DUMMY_SEQUENCE_ID, DUMMY_SEQUENCE_ID])
    assert (batch.lengths, batch.max_seqlen, batch.num_sequences, batch.num_tokens) == ((3, 1, 2, 3, 2), 4, 3, 6)
    check(batch.targets["positions"], [1, 5, 0])
    check(batch.targets["words"], [99, 98, IGNORE_INDEX])
    check(batch.targets["labels"], [1, 0, 1, IGNORE_INDEX, IGNORE_INDEX])
    check(batch.targets["weights"], [0.5, 1, 1, 1, 1, 0.25, 0, 0, 0, 0, 0], torch.float32)


def test_more_targets_than_the_shape_holds_fill_the_next_eighth():
    """An eighth of 1 entry is 1, and an eighth of 17 entries are 3: 20 entries become 21."""
    assert len(three_sequences(FixedShape(11, 5, 1, 4)).targets["positions"]) == 2
    many = {"positions": Target(np.zeros(20, dtype=np.int64), "targets", filler=0)}
    packed = pack_sequences(np.arange(2), np.array([2]), np.array([0]), None, many, {}, FixedShape(3, 2, 17, 2))
    assert packed.targets["positions"].shape == (21,)


def test_a_rounded_shape_adds_four_dummies_up_to_a_multiple_of_16():
    batch = three_sequences(RoundedShape())
    # 6 tokens and at least one for each dummy: the next multiple is 16, so that the four get 10.
    check(batch.input_ids, [11, 12, 13, 21, 31, 32] + [0] * 10)
    check(batch.position_ids, [0, 1, 2, 0, 0, 1, 0, 1, 2, 0, 1, 2, 0, 1, 0, 1])
    check(batch.cu_seqlens, [0, 3, 4, 6, 9, 12, 14, 16], torch.int32)
    check(batch.sequence_ids, [40, 7, 41] + [DUMMY_SEQUENCE_ID] * 4)
    assert (batch.lengths, batch.max_seqlen, batch.num_sequences, batch.num_tokens) == ((3, 1, 2, 3, 3, 2, 2), 3, 3, 6)
    check(batch.targets["positions"], [1, 5])
    check(batch.targets["labels"], [1, 0, 1] + [IGNORE_INDEX] * 4)
    check(batch.targets["weights"], [0.5, 1, 1, 1, 1, 0.25] + [0] * 10, torch.float32)


@pytest.mark.parametrize(("tokens", "dummies"), [(0, [4] * 4), (12, [1] * 4), (13, [5, 5, 5, 4]), (28, [1] * 4)])
def test_dummies_of_a_rounded_shape_by_hand(tokens, dummies):
    sequences = [tokens] if tokens else []
    batch = pack_sequences(
        np.ones(tokens), np.array(sequences, dtype=np.int64), np.arange(len(sequences)), shape=RoundedShape()
    )
    assert batch.lengths == (*sequences, *dummies)
    assert batch.max_seqlen == max(batch.lengths)


def test_arrays_are_shared_if_nothing_changes():
    ids, lengths = np.array([11, 12, 13]), np.array([1, 2])
    target = Target(np.array([0, 2]), "targets", filler=0)

    def packed(input_ids: np.ndarray, shape: FixedShape | None = None) -> PackedBatch:
        return pack_sequences(input_ids, lengths, np.array([0, 1]), targets={"positions": target}, shape=shape)

    batch = packed(ids)
    assert np.shares_memory(batch.input_ids.numpy(), ids)
    assert np.shares_memory(batch.targets["positions"].numpy(), target.values)
    locked = ids.copy()
    locked.flags.writeable = False
    every_second = np.array([11, 0, 12, 0, 13])[::2]
    for other in (locked, every_second, ids.astype(np.uint16)):
        actual = packed(other)
        assert not np.shares_memory(actual.input_ids.numpy(), other)
        check(actual.input_ids, [11, 12, 13])
    filled = packed(ids, FixedShape(tokens=5, sequences=3, targets=2, max_seqlen=2))
    assert not np.shares_memory(filled.input_ids.numpy(), ids)
    check(filled.input_ids, [11, 12, 13, 0, 0])


def empty(shape: FixedShape | None = None) -> PackedBatch:
    none = np.zeros(0, dtype=np.int64)
    targets = {"positions": Target(none, "targets", filler=0), "labels": Target(none, "sequences")}
    return pack_sequences(none, none, none, None, targets, {"words": 0.0}, shape)


def test_no_sequences_give_one_dummy_token():
    batch = empty()
    check(batch.input_ids, [0])
    check(batch.cu_seqlens, [0, 1], torch.int32)
    check(batch.sequence_ids, [DUMMY_SEQUENCE_ID])
    check(batch.targets["positions"], [0])
    check(batch.targets["labels"], [IGNORE_INDEX])
    assert (batch.lengths, batch.max_seqlen, batch.num_sequences, batch.num_tokens) == ((1,), 1, 0, 0)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (FixedShape(5, 4, 2, 4), "cannot be padded"),  # too few tokens
        (FixedShape(6, 4, 2, 4), "cannot be padded"),  # none left for the dummy
        (FixedShape(20, 2, 2, 4), "cannot be padded"),  # too few sequences
        (FixedShape(20, 4, 2, 4), "cannot be padded"),  # the dummy would be longer than the maximum
    ],
)
def test_sequences_that_exceed_a_shape_are_rejected(shape, message):
    with pytest.raises(ValueError, match=message):
        three_sequences(shape)


@pytest.mark.parametrize("lengths", [[2, 1], [4, 0], [4]])
def test_lengths_that_do_not_match_the_tokens_are_rejected(lengths):
    with pytest.raises(ValueError, match="do not match"):
        pack_sequences(np.arange(4), np.array(lengths), np.array([1, 2]))


@settings(max_examples=200, deadline=None)
@given(data=st.data(), max_seqlen=st.integers(2, 12), most=st.integers(1, 9), budget=st.integers(12, 40))
def test_everything_within_the_limits_fits_the_shape_around_them(data, max_seqlen, most, budget):
    shape = FixedShape.around(budget, most, max_targets=0, max_seqlen=max_seqlen)
    lengths: list[int] = []
    while len(lengths) < most and sum(lengths) < budget and data.draw(st.booleans()):
        lengths.append(data.draw(st.integers(1, min(max_seqlen, budget - sum(lengths)))))
    tokens = np.arange(sum(lengths))
    batch = pack_sequences(tokens, np.array(lengths, dtype=np.int64), np.arange(len(lengths)), shape=shape)
    assert len(batch.input_ids) == sum(batch.lengths) == shape.tokens
    assert len(batch.lengths) == shape.sequences
    assert min(batch.lengths) >= 1
    assert max(batch.lengths) <= max_seqlen


def test_a_fixed_shape_needs_sequences_of_two_tokens():
    with pytest.raises(ConfigError, match="max_seqlen is 1"):
        FixedShape.around(10, 2, 1, 1)
