"""Every task joins pairs as transformers does with the same vocabulary: by one separator in BERT, by two in RoBERTa."""

import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from framework.data.layout import lay_out
from framework.data.planning.plan import StepSequences
from framework.data.preparation.prepare import StoreSpec, prepare_store
from framework.data.reading.sources import TextFiles
from framework.data.store_data import StoreData
from framework.data.tokenization.byte_level_training import ByteLevelBpeTraining
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.word_counts import WordCounts
from framework.data.tokenization.wordpiece_training import WordPieceTraining
from framework.errors import ConfigError, DataError
from framework.runs.folder import RunFolder, check_same_data, write_start
from framework.tasks.multiple_choice.data import ChoiceExample
from framework.tasks.multiple_choice.features import choice_source
from framework.tasks.pretraining.task import PretrainingTask
from framework.tasks.question_answering.data import Answer, Question
from framework.tasks.question_answering.features import WindowSizes, window_source

TEXTS = ["The small cat sat on the mat.", "Small dogs and cats play.", "a", "Is it fun?"]
PAIRS = ["The cats sat down and then they played on and on.", "No.", "b c d e f g h i j k l m n", "It is."]
VOCABULARIES = {"byte_level": (ByteLevelBpeTraining(400), 2), "wordpiece": (WordPieceTraining(200), 1)}


@pytest.fixture(scope="module", params=list(VOCABULARIES))
def vocabulary(request, tmp_path_factory):
    """Returns our tokenizer, that of transformers from the same folder, and the number of separators between texts."""
    training, separators = VOCABULARIES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = training.train(WordCounts(training.count([*TEXTS, *PAIRS])), folder)
    return tokenizer, AutoTokenizer.from_pretrained(folder), separators


def pieces(input_ids, lengths):
    return [ids.tolist() for ids in np.split(input_ids, np.cumsum(lengths)[:-1])]


@pytest.mark.parametrize("max_length", [8, 9, 13, 100])
def test_pairs(vocabulary, max_length):
    ours, theirs, separators = vocabulary
    layout = lay_out(TEXTS, PAIRS, ours, max_length)
    expected = theirs(TEXTS, PAIRS, truncation="longest_first", max_length=max_length)
    assert pieces(layout.input_ids, layout.lengths) == expected["input_ids"]
    assert ours.pair_separators == separators
    segments = pieces(layout.token_type_ids.astype(int), layout.lengths)
    if separators == 1:
        assert segments == expected["token_type_ids"]
    # The segment of the second text begins with its first token.
    first = [ids.index(ours.sep_id) + separators for ids in expected["input_ids"]]
    assert [each.index(1) for each in segments] == first


def test_choices(vocabulary):
    ours, theirs, _ = vocabulary
    source = choice_source([ChoiceExample("1", TEXTS[0], None, tuple(PAIRS), 1)], ours, 100)
    batch = source.build(StepSequences(np.zeros(1, dtype=int), np.zeros(1, dtype=int), np.zeros(1, dtype=int)), 0)
    assert [ids.tolist() for ids in batch.input_ids.split(batch.lengths)] == theirs([TEXTS[0]] * 4, PAIRS)["input_ids"]


def test_questions(vocabulary):
    ours, theirs, _ = vocabulary
    context, length = "The cats sat down and then they played on and on.", 24
    question = Question("a place", TEXTS[3], context, (Answer("cats", 4),))
    source = window_source([question], ours, WindowSizes(length, 4, 10))
    items = np.arange(len(source))
    batch = source.build(StepSequences(items * 0, items, items), 0)
    room = length - batch.targets["window_starts"][0].item() - 1
    stride = {"stride": room - 4, "return_overflowing_tokens": True}
    expected = theirs(TEXTS[3], context, truncation="only_second", max_length=length, **stride)["input_ids"]
    assert [ids.tolist() for ids in batch.input_ids.split(batch.lengths)] == expected
    start = batch.targets["start_positions"][0].item()
    assert theirs.decode(batch.input_ids[start]).strip() in "cats"
    assert batch.targets["window_starts"][0].item() == len(theirs(TEXTS[3])["input_ids"]) + ours.pair_separators - 1


def test_windows_that_would_skip_tokens_are_an_error(vocabulary):
    ours, _, separators = vocabulary
    sizes = WindowSizes(max_length=20, stride=7, max_question_length=10)
    sizes.check()
    if separators == 2:
        with pytest.raises(ConfigError, match=r"has room for 6 tokens .* 4 special tokens, so stride=7"):
            window_source([Question("1", "a", "b", ())], ours, sizes)


def test_a_length_without_room_for_both_texts_is_an_error(vocabulary):
    ours, _, separators = vocabulary
    with pytest.raises(ConfigError, match=f"needs at least {4 + separators} tokens"):
        lay_out(["a"], ["b"], ours, 3 + separators)


def test_next_sentences(vocabulary, tmp_path):
    _, _, separators = vocabulary
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text(f"{number} ".join([*TEXTS, *PAIRS] * 2))
    training = VOCABULARIES["byte_level" if separators == 2 else "wordpiece"][0]
    prepare_store(StoreSpec({"texts": TextFiles(str(tmp_path / "*.txt"))}, training, tmp_path / "store"))
    data = StoreData(str(tmp_path / "store"), validation_fraction=0)
    tokenizer = Tokenizer.from_folder(data.opened.folder / "tokenizer")
    source = PretrainingTask(sequence_length=40, nsp=True).build_sources(data, tokenizer, 0)["train"]
    items = np.arange(len(source))
    batch = source.build(StepSequences(items * 0, items, items), 0)
    assert batch.lengths == tuple(source.lengths(items * 0, items).tolist())
    assert max(batch.lengths) <= 40
    for ids, segments in zip(
        batch.input_ids.split(batch.lengths), batch.token_type_ids.split(batch.lengths), strict=True
    ):
        second = segments.tolist().index(1)
        is_separator = (ids == tokenizer.sep_id).tolist()
        expected = [False] * len(ids)
        expected[second - separators : second] = [True] * separators
        expected[-1] = True
        assert is_separator == expected
        assert ids[0] == tokenizer.cls_id


def test_a_run_that_joined_pairs_in_another_way_reports_it(tmp_path):
    VOCABULARIES["wordpiece"][0].train(WordCounts(VOCABULARIES["wordpiece"][0].count(TEXTS)), tmp_path / "words")
    one, two = (Tokenizer.from_folder(tmp_path / "words", separators) for separators in (1, 2))
    folder = RunFolder(tmp_path, tmp_path / "checkpoints", None, is_new=True)
    start = {"fingerprints": {"tokenizer": one.fingerprint, "data": "a"}}
    write_start(folder, {}, start, {})
    begun = RunFolder(tmp_path, tmp_path / "checkpoints", None, is_new=False)
    check_same_data(begun, two, "a")
    with pytest.raises(DataError, match="joined pairs of texts with 1 separator, but this version joins them with 2"):
        check_same_data(begun, two, "b")
    with pytest.raises(DataError, match="had fingerprint a at its first start and has b now"):
        check_same_data(begun, one, "b")
    assert json.loads((tmp_path / "task.json").read_text()) == {}
