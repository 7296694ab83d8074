"""An augmented split: its lengths are known in advance, targets and segments follow, however the work is divided."""

import numpy as np
import pytest

from framework.data.augmentation.edits import Augmentation, Delete, Swap
from framework.data.augmentation.source import AugmentedSource
from framework.data.flat_source import FlatSource, FlatTarget
from framework.data.layout import lay_out
from framework.data.planning.plan import StepPlan, StepSequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.word_counts import WordCounts
from framework.data.tokenization.wordpiece_training import WordPieceTraining
from framework.random import key, mix, random_integers
from tests.support.data.planned_items import by_item, contents

WORDS = [f"{a}{b}" for a in "bcdfgk" for b in "aeiou"]
NUM_ITEMS = 24


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    training = WordPieceTraining(100)
    training.train(WordCounts(training.count(WORDS)), folder)
    return Tokenizer.from_folder(folder)


def text(name: str, index: int) -> str:
    drawn = random_integers(mix(key(name, index), np.arange(3 + index % 10)), len(WORDS))
    return " ".join(WORDS[word] for word in drawn)


@pytest.fixture(scope="module")
def flat(tokenizer: Tokenizer) -> FlatSource:
    """Builds items of two pairs of texts each."""
    first = [text("first", index) for index in range(2 * NUM_ITEMS)]
    second = [text("second", index) for index in range(2 * NUM_ITEMS)]
    layout = lay_out(first, second, tokenizer, 40)
    labels = FlatTarget(np.arange(2 * NUM_ITEMS), "sequences")
    sizes = np.full(NUM_ITEMS, 2)
    return FlatSource(
        layout.input_ids, layout.lengths, {"labels": labels}, {}, 40, layout.token_type_ids, item_sizes=sizes
    )


@pytest.mark.parametrize("augmentation", [Delete(0.2), Swap(0.3)], ids=["delete", "swap"])
def test_any_division_of_the_work_gives_the_same_texts(
    flat: FlatSource, tokenizer: Tokenizer, augmentation: Augmentation
):
    source = AugmentedSource(flat, augmentation, tokenizer, seed=5)
    one, three = StepPlan(source, 5, 8, 200), StepPlan(source, 5, 8, 90, num_ranks=3)
    for step in (0, 2, 4, 7):
        expected = by_item(one, step, 0)
        actual = {name: value for rank in range(3) for name, value in by_item(three, step, rank).items()}
        assert actual == expected and len(expected) == 16


def test_epochs_sequences_and_seeds_differ_and_segments_follow(flat: FlatSource, tokenizer: Tokenizer):
    indices = np.arange(NUM_ITEMS)
    seen = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (0, 0)):
        source = AugmentedSource(flat, Delete(0.3), tokenizer, seed)
        batch = source.build(StepSequences(np.full(NUM_ITEMS, epoch), indices, indices), 0)
        seen.append(contents(batch))
        for row, (ids, segments, label) in enumerate(seen[-1]):
            assert label == row
            assert (ids[0], ids[-1], ids.count(tokenizer.sep_id)) == (tokenizer.cls_id, tokenizer.sep_id, 2)
            middle = ids.index(tokenizer.sep_id)
            assert segments == [0] * (middle + 1) + [1] * (len(ids) - middle - 1)
            assert 1 < middle < len(ids) - 2, "both texts have a word"
    assert seen[0] == seen[3]
    assert sum(a[0] == b[0] for a, b in zip(seen[0], seen[1], strict=True)) < NUM_ITEMS / 2
    assert sum(a[0] == b[0] for a, b in zip(seen[0], seen[2], strict=True)) < NUM_ITEMS / 2
