"""Loaders: the same steps with any number of workers and from any start, and fixed shapes if required."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.batch import StepBatch
from framework.data.planning.batch_size import BatchWarmup
from framework.data.planning.collate import RoundedShape
from framework.data.planning.order import Shuffle
from framework.datamodules.datamodule import EncoderDataModule
from framework.errors import ConfigError, DataError
from tests.support.data.sequences import SHIFT, NumberedSource

MAX_STEPS = 12


def datamodule(num_ranks=1, rank=0, num_workers=0, size=17, budget=40, **arguments):
    sources = {"train": NumberedSource(size), "validation": NumberedSource(7), "test": NumberedSource(2)}
    numbers = {"seed": 1, "global_batch_size": 6, "max_steps": MAX_STEPS, "wraps_epochs": True} | arguments
    return EncoderDataModule(
        sources, micro_batch_tokens=budget, num_ranks=num_ranks, rank=rank, num_workers=num_workers, **numbers
    )


def content(step: StepBatch) -> list[tuple[int, int, list[int]]]:
    """Returns (sequence id, label, tokens) of every real sequence of a step."""
    actual = []
    for batch in step.micro_batches:
        tokens = batch.input_ids.split(batch.lengths)
        for index in range(batch.num_sequences):
            label = int(batch.targets["labels"][index])
            actual.append((int(batch.sequence_ids[index]), label, tokens[index].tolist()))
    return actual


@settings(max_examples=20, deadline=None)
@given(num_ranks=st.integers(1, 5), budget=st.integers(20, 90), start=st.integers(0, MAX_STEPS))
def test_any_ranks_budget_and_start_give_the_same_steps(num_ranks, budget, start):
    whole = [(step.step, step.epoch, sorted(content(step))) for step in datamodule().train_dataloader()]
    assert [step for step, _, _ in whole] == list(range(MAX_STEPS))
    shares = []
    for rank in range(num_ranks):
        data = datamodule(num_ranks, rank, budget=budget)
        data.set_start(start)
        shares.append(list(data.train_dataloader()))
    joined = [
        (steps[0].step, steps[0].epoch, sorted(sequence for step in steps for sequence in content(step)))
        for steps in zip(*shares, strict=True)
    ]
    assert joined == whole[start:]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(num_workers):
    alone, helped = datamodule(2, 1), datamodule(2, 1, num_workers)
    for data in (alone, helped):
        data.set_start(3)
    expected = [(step.step, content(step)) for step in alone.train_dataloader()]
    assert [(step.step, content(step)) for step in helped.train_dataloader()] == expected
    assert [step for step, _ in expected] == list(range(3, MAX_STEPS))


def test_tokens_are_those_of_the_planned_sequences():
    data = datamodule()
    for step in data.train_dataloader():
        planned = data.plans["train"].sequences(step.step)
        labels = {label for _, label, _ in content(step)}
        assert labels == set((planned.epochs * SHIFT + planned.indices).tolist())
        assert all(set(tokens) == {label} for _, label, tokens in content(step))


def test_the_length_is_that_of_the_complete_run_also_after_a_seek():
    data = datamodule()
    data.set_start(9)
    assert len(data.train_dataloader()) == MAX_STEPS
    assert len(list(data.train_dataloader())) == 3


def test_seeking_takes_no_time():
    data = datamodule(size=10**8, max_steps=10**7)
    data.set_start(10**6)
    begin = time.perf_counter()
    step = next(iter(data.train_dataloader()))
    assert time.perf_counter() - begin < 1
    assert step.step == 10**6
    assert [sequence_id for sequence_id, _, _ in sorted(content(step))] == list(range(6 * 10**6, 6 * 10**6 + 6))


@pytest.mark.parametrize("num_ranks", [1, 2, 5])
def test_evaluation_shows_every_row_once(num_ranks):
    for split, size in (("validation", 7), ("test", 2)):
        loaders = [datamodule(num_ranks, rank).eval_dataloader(split) for rank in range(num_ranks)]
        assert len({len(loader) for loader in loaders}) == 1
        actual = [sequence for loader in loaders for step in loader for sequence in content(step)]
        # Label and sequence id are both the row: the order is that of the file.
        assert sorted((sequence_id, label) for sequence_id, label, _ in actual) == [(row, row) for row in range(size)]


def test_without_a_validation_split_there_is_no_loader():
    data = EncoderDataModule({"train": NumberedSource(5)}, 0, 2, 40, 3, wraps_epochs=False)
    assert data.val_dataloader() == data.test_dataloader() == []
    with pytest.raises(ConfigError, match=r"split 'validation' does not exist\. The data has train"):
        data.eval_dataloader("validation")


def test_fixed_shapes_contain_the_same_sequences_in_few_shapes():
    """A rank has three sequences of 10.5 tokens on average, at most 20, so that steps differ in their budgets."""
    fixed, free = datamodule(2, 0, has_fixed_shapes=True), datamodule(2, 0)
    shapes = set()
    for step, plain in zip(fixed.train_dataloader(), free.train_dataloader(), strict=True):
        assert sorted(content(step)) and step.step == plain.step
        for share, batch in zip(fixed.plans["train"].micro_batches(step.step, 0), step.micro_batches, strict=True):
            shapes.add((share.budget, len(batch.input_ids), len(batch.sequence_ids), len(batch.targets["labels"])))
            assert batch.num_tokens <= share.budget and max(batch.lengths) <= batch.max_seqlen == 20
    assert 1 < len(shapes) <= 3 and {budget for budget, *_ in shapes} <= set(fixed.plans["train"].budgets)
    whole = [
        sorted(content(step) + content(other))
        for step, other in zip(
            fixed.train_dataloader(), datamodule(2, 1, has_fixed_shapes=True).train_dataloader(), strict=True
        )
    ]
    assert whole == [sorted(content(step)) for step in datamodule().train_dataloader()]


def test_rounded_shapes_contain_the_same_sequences_in_every_split():
    rounded, free = datamodule(2, 1, shape=RoundedShape()), datamodule(2, 1)
    for split in ("train", "validation", "test"):
        loaders = [
            data.train_dataloader() if split == "train" else data.eval_dataloader(split) for data in (rounded, free)
        ]
        for step, plain in zip(*loaders, strict=True):
            assert content(step) == content(plain)
            assert all(len(batch.input_ids) % 16 == 0 for batch in step.micro_batches)


def test_validation_keeps_free_shapes():
    for batch in (micro for step in datamodule(has_fixed_shapes=True).val_dataloader() for micro in step.micro_batches):
        assert len(batch.input_ids) == batch.num_tokens


def test_the_batch_of_training_grows_and_that_of_evaluation_does_not():
    data = datamodule(batch_warmup=BatchWarmup(start=2, steps=4))
    assert [len(content(step)) for step in data.train_dataloader()] == [2, 4, 4, *[6] * 9]
    assert [len(content(step)) for step in data.val_dataloader()] == [6, 1]
    whole = [content(step) for step in data.train_dataloader()]
    data.set_start(3)
    assert [content(step) for step in data.train_dataloader()] == whole[3:]


@pytest.mark.parametrize("start", [-1, MAX_STEPS + 1])
def test_a_start_outside_the_run_is_rejected(start):
    with pytest.raises(ConfigError, match="steps 0 to 12"):
        datamodule().set_start(start)


def test_a_step_outside_the_run_is_no_item():
    with pytest.raises(IndexError):
        datamodule().train_dataloader().dataset[MAX_STEPS]


def test_a_window_of_the_order_is_announced_once_before_its_sequences(monkeypatch):
    """60 sequences in blocks of 5, windows of 2 blocks: 10 sequences; a step has 6."""
    order, announcements = Shuffle(block_size=5, window_blocks=2), []
    monkeypatch.setattr(NumberedSource, "shuffle", order)
    monkeypatch.setattr(
        NumberedSource, "read_ahead", lambda _, epoch, start, stop: announcements.append((epoch, start, stop))
    )
    data = datamodule(size=60)
    dataset, plan = data.train_dataloader().dataset, data.plans["train"]
    announced: set[int] = set()
    for step in range(10):
        announcements.clear()
        dataset[step]
        announced |= {index for epoch, start, stop in announcements for index in range(start, stop) if epoch == 0}
        assert set(plan.sequences(step).indices.tolist()) <= announced
        # This window and the next one: two blocks each.
        assert len(set(announcements)) == len(announcements) and (
            len(announcements) == 4 if step == 0 else len(announcements) <= 4
        )
        assert all(stop - start == 5 for _, start, stop in announcements)
    assert len(announced) == 60
    announcements.clear()
    dataset[9]
    assert announcements == []


class DamagedSource(NumberedSource):
    """Source whose sequences cannot be read."""

    def build(self, sequences, step, shape=None):
        raise DataError("rows.csv, row 3: 'a.png' is damaged.")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_a_loader_process_keeps_its_message(num_workers):
    """torch would add the traceback of the process to the message."""
    data = EncoderDataModule({"train": DamagedSource(5)}, 0, 2, 40, 3, False, num_workers=num_workers)

    def run() -> None:
        for loaded in data.train_dataloader():
            data.transfer_batch_to_device(loaded, torch.device("cpu"), 0)

    with pytest.raises(DataError) as error:
        run()
    assert str(error.value) == "rows.csv, row 3: 'a.png' is damaged."
