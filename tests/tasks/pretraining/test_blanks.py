"""Texts with blanks: positions of blanks, the kept part of a long text, and the predicted words."""

import json

import numpy as np
import pytest
import torch

from framework.data.planning.plan import StepSequences
from framework.data.reading.rows import Row
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.word_counts import WordCounts
from framework.data.tokenization.wordpiece_training import WordPieceTraining
from framework.errors import ConfigError, DataError
from framework.tasks.pretraining.blanks import read_blanks
from framework.tasks.pretraining.task import PretrainingTask

WORDS = [f"w{letter}" for letter in "abcdefgh"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    training = WordPieceTraining(60)
    training.train(WordCounts(training.count([" ".join(WORDS)] * 9)), folder)
    return Tokenizer.from_folder(folder)


def row(text: str) -> Row:
    return Row(3, 4, {"text": text})


@pytest.mark.parametrize("mask", ["[MASK]", "<mask>"])
def test_a_blank_becomes_the_mask_token(tokenizer, mask):
    actual = read_blanks(row(f"wa {mask} wb{mask}"), tokenizer, 16)
    a, b = (int(ids[0]) for ids in tokenizer.encode_batch(["wa", "wb"]))
    assert actual.input_ids.tolist() == [tokenizer.cls_id, a, tokenizer.mask_id, b, tokenizer.mask_id, tokenizer.sep_id]
    assert actual.positions.tolist() == [2, 4]


@pytest.mark.parametrize("offset", [0, 5, 20, 39])
def test_the_part_around_the_blank_of_a_long_text_is_kept(tokenizer, offset):
    words = [WORDS[index % 8] for index in range(40)]
    words[offset] = "[MASK]"
    actual = read_blanks(row(" ".join(words)), tokenizer, 12)
    assert len(actual.input_ids) == 12
    (position,) = actual.positions
    assert actual.input_ids[position] == tokenizer.mask_id
    names = [str(tokenizer.backend.id_to_token(token)) for token in actual.input_ids.tolist()]
    before, behind = names[1:position], names[position + 1 : -1]
    assert before == words[offset - len(before) : offset] and behind == words[offset + 1 : offset + 1 + len(behind)]


def test_texts_that_cannot_be_filled_in_are_named(tokenizer):
    task = PretrainingTask(sequence_length=12)
    with pytest.raises(DataError, match=r"row 3 \(line 4\): 'wa wb' has no blank\. .* Write \[MASK\]"):
        task.check_row(row("wa wb"), tokenizer)
    with pytest.raises(DataError, match=r"there are 22 tokens, but a sequence has room for 10"):
        task.check_row(row("[MASK] " + "wa " * 20 + "[MASK]"), tokenizer)
    with pytest.raises(ConfigError, match="top_k is 0"):
        PretrainingTask(top_k=0)


def test_words_and_probabilities_by_hand(tokenizer):
    """Two texts in one micro-batch, in another order than the rows; logits are set at the blanks."""
    task = PretrainingTask(sequence_length=16, top_k=2)
    source = task.build_source([row("wa [MASK] [MASK]"), row("[MASK] wb")], tokenizer)
    order = np.array([1, 0])
    batch = source.build(StepSequences(np.zeros(2, dtype=np.int64), order, order), 0)
    assert batch.input_ids[batch.targets["mlm_positions"]].tolist() == [tokenizer.mask_id] * 3
    ids = {word: int(tokenizer.encode_batch([word])[0][0]) for word in WORDS}
    logits = torch.full((3, tokenizer.vocab_size), -1e4)
    for index, (best, second) in enumerate([("wc", "wd"), ("we", "wf"), ("wg", "wh")]):
        logits[index, ids[best]], logits[index, ids[second]] = np.log(3.0), 0.0
    by_item = dict(zip(batch.item_indices(), task.decode({"mlm": logits}, batch), strict=True))
    first, second = task.assemble(source, [by_item[0], by_item[1]])
    assert [[each["word"] for each in blank] for blank in first["blanks"]] == [["we", "wf"], ["wg", "wh"]]
    assert [[each["word"] for each in blank] for blank in second["blanks"]] == [["wc", "wd"]]
    assert [each["probability"] for each in first["blanks"][0]] == pytest.approx([0.75, 0.25])
    assert json.dumps(second)


def test_a_micro_batch_without_texts_gives_no_words(tokenizer):
    task = PretrainingTask(sequence_length=16)
    source = task.build_source([row("[MASK]")], tokenizer)
    nothing = np.zeros(0, dtype=np.int64)
    batch = source.build(StepSequences(nothing, nothing, nothing), 0)
    logits = torch.zeros(len(batch.targets["mlm_positions"]), tokenizer.vocab_size)
    assert task.decode({"mlm": logits}, batch) == []


def test_a_split_of_masked_words_is_not_shown_row_by_row():
    task = PretrainingTask()
    assert task.predicts_rows and not task.examines_splits
