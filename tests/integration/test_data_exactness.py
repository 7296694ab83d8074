"""Tests that all ranks together always see the same sequences of a step, with the same pairs and masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework.batch import IGNORE_INDEX, StepBatch
from framework.data.store_data import StoreData
from framework.data.tokenization.tokenizer import Tokenizer
from framework.datamodules.datamodule import EncoderDataModule
from framework.random import mix, random_integers
from framework.tasks.pretraining.task import PretrainingTask
from tests.support.data.stores import trained, write_store

MAX_STEPS, BATCH, LENGTH = 14, 24, 24


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    return trained(["the cat sat on a mat", "dogs play"], tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def store(tmp_path_factory, tokenizer) -> StoreData:
    """Builds a store of 30 documents of 1 to 6 sentences with 1 to 14 tokens, from two sources."""
    words = tokenizer.ordinary_ids
    documents = []
    for document in range(30):
        draws = mix(document, np.arange(200))
        lengths = 1 + random_integers(draws[: 1 + document % 6], 14)
        ids = words[random_integers(draws[10:], len(words))].tolist()
        documents.append([ids[17 * index : 17 * index + length] for index, length in enumerate(lengths.tolist())])
    folder = tmp_path_factory.mktemp("stores") / "store"
    write_store(folder, documents, tokenizer, batch_documents=7, sources={"a": 12, "b": 18})
    return StoreData(str(folder), 0.1, weights={"a": 1.5}, block_size=6, window_blocks=2)


def datamodule(data: StoreData, tokenizer: Tokenizer, masking: str, **options) -> EncoderDataModule:
    task = PretrainingTask(LENGTH, mask_rate=0.15, mask_rate_end=0.5, mask_rate_steps=MAX_STEPS, masking=masking)
    sources = task.build_sources(data, tokenizer, seed=5)
    numbers = {"seed": 5, "global_batch_size": BATCH, "max_steps": MAX_STEPS, "wraps_epochs": True} | options
    return EncoderDataModule(sources, **numbers)


def content(step: StepBatch) -> set[tuple]:
    """Returns sequence id, masked ids, labels and next-sentence label of each real sequence."""
    found = set()
    for batch in step.micro_batches:
        positions, labels = batch.targets["mlm_positions"], batch.targets["mlm_labels"]
        for number in range(batch.num_sequences):
            begin, end = batch.cu_seqlens[number : number + 2].tolist()
            here = (positions >= begin) & (positions < end) & (labels != IGNORE_INDEX)
            parts = (batch.input_ids[begin:end], batch.token_type_ids[begin:end], positions[here] - begin, labels[here])
            numbers = (int(batch.sequence_ids[number]), int(batch.targets["nsp_labels"][number]))
            found.add((numbers, *(tuple(part.tolist()) for part in parts)))
    return found


@pytest.mark.parametrize("masking", ["token", "whole_word", "span"])
def test_union_of_ranks_is_the_same_whatever_the_split(store, tokenizer, masking):
    alone = datamodule(store, tokenizer, masking, micro_batch_tokens=4096)
    expected = {step.step: content(step) for step in alone.train_dataloader()}
    assert len(expected) == MAX_STEPS and all(len(sequences) == BATCH for sequences in expected.values())

    @settings(max_examples=8, deadline=None)
    @given(
        num_ranks=st.integers(1, 6),
        budget=st.integers(LENGTH, 200),
        num_workers=st.sampled_from([0, 0, 0, 1, 2]),
        start=st.integers(0, MAX_STEPS - 1),
    )
    def check(num_ranks, budget, num_workers, start):
        seen: dict[int, list[set[tuple]]] = {}
        for rank in range(num_ranks):
            options = {"num_ranks": num_ranks, "rank": rank, "num_workers": num_workers}
            data = datamodule(store, tokenizer, masking, micro_batch_tokens=budget, **options)
            data.set_start(start)
            for step in data.train_dataloader():
                seen.setdefault(step.step, []).append(content(step))
        assert sorted(seen) == list(range(start, MAX_STEPS))
        for step, shares in seen.items():
            assert sum(map(len, shares)) == BATCH  # no sequence is on two ranks
            assert set().union(*shares) == expected[step]

    check()


def test_an_epoch_shows_every_sequence_once(store, tokenizer):
    data = datamodule(store, tokenizer, "token", micro_batch_tokens=4096, global_batch_size=1, max_steps=400)
    source = data.plans["train"].source
    seen = [data.plans["train"].sequences(step) for step in range(2 * len(source))]
    for epoch in range(2):
        indices = [int(drawn.indices[0]) for drawn in seen if drawn.epochs[0] == epoch]
        assert sorted(indices) == list(range(len(source)))
