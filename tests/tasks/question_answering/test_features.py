"""Windows over contexts: by hand, compared with a slow reference, and for long or odd texts."""

import numpy as np
import pytest
from tokenizers import Encoding

from framework.batch import IGNORE_INDEX
from framework.data.layout import window_firsts
from framework.data.planning.collate import FixedShape
from framework.data.planning.plan import StepSequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import DataError
from framework.tasks.question_answering.data import Answer, Question
from framework.tasks.question_answering.features import WindowSizes, window_source

LETTERS = "abcdefghijklmnop"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS]
SIZES = WindowSizes(max_length=9, stride=2, max_question_length=2)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return Tokenizer.from_folder(folder)


def question(question_text: str, context: str, *answers: str) -> Question:
    return Question("a place", question_text, context, tuple(Answer(text, context.index(text)) for text in answers))


def built(source, *items: int, shape: FixedShape | None = None):
    indices = np.array(items, dtype=np.int64)
    return source.build(StepSequences(indices * 0, indices, indices), 0, shape)


def words(ids) -> str:
    return " ".join(WORDS[token_id] for token_id in ids)


def test_windows_by_hand(tokenizer):
    # Four tokens of the context beside a question of two, five beside one of one.
    source = window_source([question("a b c", "d e f g h i j", "f g"), question("a", "É d", "É")], tokenizer, SIZES)
    batch = built(source, 0, 1, 2, 3)
    assert [words(ids) for ids in batch.input_ids.split(batch.lengths)] == [
        "[CLS] a b [SEP] d e f g [SEP]",
        "[CLS] a b [SEP] f g h i [SEP]",
        "[CLS] a b [SEP] h i j [SEP]",
        "[CLS] a [SEP] e d [SEP]",
    ]
    assert (
        batch.token_type_ids.tolist() == [0] * 4 + [1] * 5 + [0] * 4 + [1] * 5 + [0] * 4 + [1] * 4 + [0] * 3 + [1] * 3
    )
    # Sequences begin at 0, 9, 18 and 26; the third window does not contain the answer, so its target is [CLS].
    assert batch.targets["start_positions"].tolist() == [6, 13, 18, 29]
    assert batch.targets["end_positions"].tolist() == [7, 14, 18, 29]
    assert batch.targets["window_starts"].tolist() == [4, 13, 22, 29]
    assert batch.counts == {"answer": 4.0}
    assert [(window.row, window.first) for window in source.records] == [(0, 0), (0, 2), (0, 4), (1, 0)]


def test_an_answer_without_an_offset_has_no_target_and_another_one_is_used(tokenizer):
    unplaced, placed = Answer("e", None, "a fault"), Answer("d", 2)
    questions = [Question("p", "a", "c d", (unplaced,)), Question("p", "a", "c d", (unplaced, placed))]
    batch = built(window_source(questions, tokenizer, SIZES), 0, 1)
    # [CLS] a [SEP] c d [SEP]: the second sequence begins at 6.
    assert batch.targets["start_positions"].tolist() == [IGNORE_INDEX, 6 + 4]
    assert batch.targets["end_positions"].tolist() == [IGNORE_INDEX, 6 + 4]
    assert batch.counts == {"answer": 1.0}


def test_fillers_and_unknown_answers_have_no_target(tokenizer):
    unknown = window_source([question("a", "b c")], tokenizer, SIZES, labelled=False)
    batch = built(unknown, 0, shape=FixedShape(10, 3, None, 9))
    assert batch.targets["start_positions"].tolist() == [IGNORE_INDEX] * 3
    assert batch.targets["end_positions"].tolist() == [IGNORE_INDEX] * 3
    assert batch.counts == {"answer": 0.0}
    no_answer = window_source([question("a", "b c")], tokenizer, SIZES)
    assert built(no_answer, 0).targets["start_positions"].tolist() == [0]
    assert built(no_answer, 0).counts == {"answer": 1.0}


def test_windows_end_with_the_first_that_reaches_the_end():
    for num_tokens in range(40):
        for room, stride in ((5, 5), (5, 2), (7, 3), (4, 1)):
            firsts = [0]
            while firsts[-1] + room < num_tokens:
                firsts.append(firsts[-1] + stride)
            assert list(window_firsts(num_tokens, room, stride)) == firsts


def slow_target(encoding: Encoding, question_length: int, first: int, room: int, answer: Answer) -> tuple[int, int]:
    """Finds, character by character, the tokens of the window under the answer; [CLS] unless all are there."""
    indices = sorted(
        {encoding.char_to_token(char) for char in range(answer.start, answer.start + len(answer.text))} - {None}
    )
    inside = [question_length + 2 + index - first for index in indices if first <= index < first + room]
    return (inside[0], inside[-1]) if len(inside) == len(indices) else (0, 0)


def test_targets_against_a_slow_reference(tokenizer):
    random = np.random.default_rng(5)
    questions = []
    for _ in range(60):
        pieces = random.choice([*LETTERS, "É", " ", "  ", "黑", "\u200b", "e\u0301", "."], size=random.integers(1, 40))
        context = " ".join([*pieces, "a"])
        start = int(random.integers(len(context) - 1))
        text = context[start : start + 1 + int(random.integers(12))]
        if tokenizer.encode_batch([text])[0].size:
            questions.append(Question("p", "a b c"[: 1 + 2 * int(random.integers(3))], context, (Answer(text, start),)))
    source = window_source(questions, tokenizer, SIZES)
    assert len(questions) > 40 and len(source) > 2 * len(questions)
    for item, window in enumerate(source.records):
        batch = built(source, item)
        question_length = int(batch.targets["window_starts"]) - 2
        encoding = tokenizer.backend.encode(window.question.context, add_special_tokens=False)
        actual = int(batch.targets["start_positions"]), int(batch.targets["end_positions"])
        assert actual == slow_target(
            encoding, question_length, window.first, 9 - question_length - 3, window.question.answers[0]
        )


def test_a_text_of_100_000_characters(tokenizer):
    context = "b c d e " * 12_500 + "f g"
    source = window_source(
        [question("a", context, "f g"), question("a", context, "d e b")], tokenizer, WindowSizes(384, 128, 64)
    )
    # 50,002 tokens, windows of 380: one at 0, and one for each 128 tokens of the remaining 49,622.
    assert len(source) == 2 * (1 + -(-49_622 // 128))
    assert max(source.lengths(np.zeros(len(source), int), np.arange(len(source)))) == 384
    batch = built(source, len(source) // 2 - 1)
    start, end = int(batch.targets["start_positions"]), int(batch.targets["end_positions"])
    assert words(batch.input_ids[start : end + 1].tolist()) == "f g"
    window = source.records[len(source) // 2 - 1]
    assert context[window.passage.starts[window.first + start - 3] :] == "f g"
    assert source.records[-1].passage is window.passage


def test_the_first_answer_with_tokens_is_trained_on(tokenizer):
    source = window_source([question("a", "b \u200b\u200b c d", "\u200b\u200b", "c d", "b")], tokenizer, SIZES)
    batch = built(source, 0)
    assert (int(batch.targets["start_positions"]), int(batch.targets["end_positions"])) == (4, 5)
    with pytest.raises(DataError, match=r"a place: the answer '\\u200b' has no token"):
        window_source([question("a", "b \u200b c", "\u200b")], tokenizer, SIZES)


def test_a_context_without_tokens_has_one_empty_window(tokenizer):
    batch = built(window_source([question("a", "\u200b")], tokenizer, SIZES), 0)
    assert words(batch.input_ids.tolist()) == "[CLS] a [SEP] [SEP]"
