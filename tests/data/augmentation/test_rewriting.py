"""A split whose texts are rewritten: purity in seed, epoch and row; lengths, targets and any division of the work."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from framework.data.augmentation.counterfactual import Counterfactual
from framework.data.augmentation.rewriting import RewrittenSource, TextAugmentation
from framework.data.flat_source import FlatSource, FlatTarget
from framework.data.layout import lay_out
from framework.data.planning.plan import StepPlan, StepSequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError
from framework.random import key, uniform
from tests.support.data.planned_items import by_item, contents

NUM_ITEMS = 40
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "he", "she", "un", "##der", "runs", "man", "f", "a"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return Tokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("pairs") / "pairs.yaml"
    file.write_text("pairs: [[he, she], [man, under]]\n")
    return str(file)


def texts(index: int) -> tuple[str, str]:
    return "he runs " * (1 + index % 4), "a man" if index % 2 else "she f"


def flat(tokenizer: Tokenizer, num_items: int = NUM_ITEMS, max_length: int = 12) -> FlatSource:
    """Builds items of two pairs each; "man" is one token and "under" is two."""
    first, second = zip(*(texts(index) for index in range(2 * num_items)), strict=True)
    layout = lay_out(first, second, tokenizer, max_length, keeps_texts=True)
    labels = {"labels": FlatTarget(np.arange(2 * num_items), "sequences")}
    counts = {"t": np.arange(2 * num_items, dtype=np.float64)}
    return layout.source(labels, counts, max_length, np.full(num_items, 2))


def all_items(source: RewrittenSource, epoch: int) -> list[tuple]:
    indices = np.arange(len(source))
    return contents(source.build(StepSequences(np.full_like(indices, epoch), indices, indices), 0))


def test_a_row_is_swapped_if_a_hash_of_seed_epoch_and_row_says_so(tokenizer: Tokenizer, pairs: str):
    source = RewrittenSource(flat(tokenizer), Counterfactual(pairs, swap_prob=0.3), tokenizer, seed=7)
    swap = {"he": "she", "she": "he", "man": "under"}
    num_swapped = 0
    for epoch in (0, 5):
        actual = all_items(source, epoch)
        for row in range(NUM_ITEMS):
            draw = uniform(np.array(key(7, "augmentation", epoch, row, -1), dtype=np.uint64))
            num_swapped += draw < 0.3
            for member in (2 * row, 2 * row + 1):
                words = [text.split() for text in texts(member)]
                if draw < 0.3:
                    words = [[swap.get(word, word) for word in text] for text in words]
                expected = lay_out([" ".join(words[0])], [" ".join(words[1])], tokenizer, 12)
                segments = expected.token_type_ids.astype(int).tolist()
                assert actual[member] == (expected.input_ids.tolist(), segments, member)
    assert 12 <= num_swapped <= 36  # 80 draws of 0.3: mean 24, four standard deviations are 16


def test_any_division_of_the_work_gives_the_same_texts(tokenizer: Tokenizer, pairs: str):
    source, again = (RewrittenSource(flat(tokenizer), Counterfactual(pairs), tokenizer, seed=5) for _ in range(2))
    one, three = StepPlan(source, 5, 8, 200), StepPlan(again, 5, 8, 90, num_ranks=3)
    for step in (7, 0, 12):  # in any order, as workers and resumed runs build them
        expected = by_item(one, step, 0)
        actual = {name: value for rank in range(3) for name, value in by_item(three, step, rank).items()}
        assert actual == expected and len(expected) == 16


def test_counts_and_an_empty_micro_batch(tokenizer: Tokenizer, pairs: str):
    source = RewrittenSource(flat(tokenizer), Counterfactual(pairs), tokenizer, seed=5)
    chosen = np.array([3, 1])
    batch = source.build(StepSequences(np.zeros(2, dtype=np.int64), chosen, np.array([10, 11])), 0)
    assert batch.counts == {"t": 6 + 7 + 2 + 3.0} and batch.group_size == 2
    assert batch.sequence_ids.tolist() == [20, 21, 22, 23]
    none = np.zeros(0, dtype=np.int64)
    empty = source.build(StepSequences(none, none, none), 0)
    assert (empty.num_sequences, empty.counts) == (0, {"t": 0.0})


def test_a_longer_text_is_truncated_and_the_bound_of_an_item_holds(tokenizer: Tokenizer, pairs: str):
    source = RewrittenSource(flat(tokenizer, max_length=8), Counterfactual(pairs, 0.99), tokenizer, seed=0)
    indices = np.arange(len(source))
    lengths = source.lengths(np.zeros_like(indices), indices)
    assert (source.max_length, source.max_sequence_length, lengths.max()) == (16, 8, 16)


def test_a_language_without_words_of_the_pairs_is_refused(tokenizer: Tokenizer, tmp_path: Path):
    (tmp_path / "zh.yaml").write_text("pairs: [[他, 她]]\n")
    augmentation = Counterfactual(str(tmp_path / "zh.yaml"))
    with pytest.raises(
        ConfigError, match=r"none of the 80 training texts contains a word of its pairs\. Nothing would"
    ):
        RewrittenSource(flat(tokenizer), augmentation, tokenizer, seed=0)


def test_the_fingerprint_is_that_of_the_texts_and_the_pairs(tokenizer: Tokenizer, pairs: str, tmp_path: Path):
    (tmp_path / "other.yaml").write_text("pairs: [[he, she]]\n")
    source = flat(tokenizer)

    class Same(TextAugmentation):
        def rewrite(self, texts, keys):
            return list(texts)

    every = [Counterfactual(pairs), Counterfactual(str(tmp_path / "other.yaml")), Same()]
    prints = [RewrittenSource(source, each, tokenizer, seed=0).fingerprint for each in every]
    assert len(set(prints)) == 3 and prints[2] == source.fingerprint
    assert all_items(RewrittenSource(source, Same(), tokenizer, 0), 0) == contents(
        source.build(StepSequences(np.zeros(NUM_ITEMS, int), np.arange(NUM_ITEMS), np.arange(NUM_ITEMS)), 0)
    )


@pytest.mark.parametrize("swap_prob", [0.0, 1.0, -0.1])
def test_the_probability_is_checked(swap_prob: float, pairs: str):
    with pytest.raises(ConfigError, match=rf"swap_prob is {swap_prob}\. It must be above 0 and below 1"):
        Counterfactual(pairs, swap_prob)


def test_texts_are_kept_as_given(tokenizer: Tokenizer):
    kept = flat(tokenizer, 1).texts
    assert [array.to_pylist() for array in kept] == [list(each) for each in zip(texts(0), texts(1), strict=True)]
    assert all(array.type == pa.large_string() for array in kept)
