"""Personal data in labelled tables is masked before the split, and spans move with the texts."""

import json
from dataclasses import replace

import pytest

from framework.config.command_schema import PredictConfig
from framework.config.shared_schema import PrecisionConfig
from framework.data.examples.table import TableData
from framework.data.personal_data.kinds import Detection, Find
from framework.data.personal_data.masking import MaskedText, TextMasking
from framework.data.tokenization.tokenizer import Tokenizer
from framework.data.tokenization.word_counts import WordCounts
from framework.data.tokenization.wordpiece_training import WordPieceTraining
from framework.errors import ConfigError, DataError
from framework.inference.input_rows import read_input_rows, read_python_rows
from framework.runs.evaluation_data import portable_data
from framework.tasks.embedding.data import TextPairData
from framework.tasks.multiple_choice.data import ChoiceData
from framework.tasks.multiple_choice.task import MultipleChoiceTask
from framework.tasks.question_answering.data import QuestionData
from framework.tasks.question_answering.task import QuestionAnsweringTask
from framework.tasks.relation_extraction.data import RelationData
from framework.tasks.relation_extraction.task import RelationExtractionTask
from framework.tasks.sequence_classification.task import SequenceClassificationTask
from framework.tasks.token_classification.data import TaggedData
from framework.tasks.token_classification.tag_schemes import first_violation
from framework.tasks.token_classification.task import TokenClassificationTask
from framework.tasks.translation.data import ParallelTextData

pytest.importorskip("phonenumbers")
pytest.importorskip("stdnum")

MASK = {"personal_data": "mask"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Tokenizer:
    training = WordPieceTraining(vocab_size=400)
    words = "email phone card bank ip url id user name good bad write call or to is now who @ #"
    return training.train(WordCounts(training.count([words] * 9)), tmp_path_factory.mktemp("vocabulary"))


def write_json(path, rows) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_spans_move_with_the_text():
    #            0         1         2
    #            0123456789012345678901234567
    original = "to a@b.de or c@d.org is good"
    masked = MaskedText("to email or email is good", [Find(3, 9, "email"), Find(13, 20, "email")], [5, 5])
    for span, expected in (
        ((0, 2), "to"),
        ((3, 9), "email"),
        ((10, 12), "or"),
        ((21, 28), "is good"),
        ((0, 28), masked.text),
        ((5, 9), "email"),  # within the first address
        ((3, 5), "email"),
        ((9, 15), " or email"),  # ends within the second address
    ):
        start, end = masked.moved(*span)
        assert masked.text[start:end] == expected, original[slice(*span)]


def test_a_table_is_masked_before_it_is_split(tmp_path, tokenizer):
    rows = [
        {"text": f"write to user{index}@example.com", "pair": "call 415-555-2671", "label": "a"} for index in range(40)
    ]
    rows += [{"text": f"good {index}", "pair": "bad", "label": "b"} for index in range(40)]
    path = write_json(tmp_path / "rows.jsonl", rows)
    data = TableData(path, pair_column="pair", validation_fraction=0.3, **MASK)
    read = data.with_masks(tokenizer).load()
    texts = [(row.text, row.pair) for split in read.splits.values() for row in split]
    assert sorted(texts)[-40:] == [("write to email", "call phone")] * 40
    # Equal masked texts are in the same split.
    assert [any(row.label == "a" for row in read.splits[split]) for split in ("train", "validation")].count(True) == 1
    assert read.facts["train"].personal_data == {"email": 40, "phone": 40}
    assert read.facts["train"].as_json()["notes"] == {"personal data masked": "email 40, phone 40"}
    assert read.facts["validation"].personal_data == {}


def test_without_the_key_nothing_changes(tmp_path, tokenizer):
    path = write_json(tmp_path / "rows.jsonl", [{"text": "a@b.de", "label": 0}, {"text": "good", "label": 1}])
    data = TableData(path)
    assert data.with_masks(tokenizer) is data
    assert data.load().splits["train"][0].text == "a@b.de"


def test_all_records_of_texts_are_masked(tmp_path, tokenizer):
    mail = "write to a@b.de"
    pairs = write_json(tmp_path / "pairs.jsonl", [{"text": mail, "pair": "good", "no": "call 415-555-2671"}] * 2)
    group = TextPairData(pairs, negative_columns=["no"], **MASK).with_masks(tokenizer).load().splits["train"][0]
    assert group.texts == ("write to email", "good", "call phone")
    parallel = write_json(tmp_path / "parallel.jsonl", [{"source": mail, "target": mail}])
    pair = ParallelTextData(parallel, **MASK).with_masks(tokenizer).load().splits["train"][0]
    assert (pair.source, pair.target) == ("write to email", "write to email")
    choices = [{"question": mail, "context": mail, "choices": ["good", mail], "label": 1}]
    choice_path = write_json(tmp_path / "choices.jsonl", choices)
    choice = ChoiceData(choice_path, context_column="context", **MASK).with_masks(tokenizer).load().splits["train"][0]
    assert (choice.question, choice.context, choice.choices) == (
        "write to email",
        "write to email",
        ("good", "write to email"),
    )


def test_choices_that_differ_only_in_the_masked_are_a_bad_row(tmp_path, tokenizer):
    row = {"question": "who", "choices": ["a@b.de", "c@d.de"], "label": 0}
    path = write_json(tmp_path / "choices.jsonl", [row, {**row, "choices": ["good", "bad"]}])
    with pytest.raises(DataError, match=r"choices\.jsonl, row 1.* the choices are 'email', 'email'"):
        ChoiceData(path, **MASK).with_masks(tokenizer).load()
    read = ChoiceData(path, on_bad_row="skip", **MASK).with_masks(tokenizer).load()
    assert len(read.splits["train"]) == 1 and read.facts["train"].num_skipped == 1


def test_answers_move_with_their_context(tmp_path, tokenizer):
    context = "write to jane@example.com or call 415-555-2671 now"
    answers = [[("now", 47)], [("jane@example.com", 9)], [("example.com or", 14)], []]
    rows = [
        {"question": f"who is a@b.de {index}", "context": context,
         "answers": [{"text": text, "answer_start": start} for text, start in each]}
        for index, each in enumerate(answers)
    ]  # fmt: skip
    read = QuestionData(write_json(tmp_path / "rows.jsonl", rows), **MASK).with_masks(tokenizer).load()
    questions = read.splits["train"]
    assert {question.context for question in questions} == {"write to email or call phone now"}
    assert len({id(question.context) for question in questions}) == 1
    assert questions[0].question == "who is email 0"
    assert [[(answer.text, answer.start) for answer in question.answers] for question in questions] == [
        [("now", 29)],
        [("email", 9)],
        [("email or", 9)],
        [],
    ]


def test_entities_move_with_their_text(tmp_path, tokenizer):
    rows = [
        {"text": "call 415-555-2671 or <e1>jane@example.com</e1> to <e2>bad</e2> now", "label": "a"},
        {"text": "<e2>good</e2> is <e1>bad</e1>", "label": "b"},
    ]
    read = RelationData(write_json(tmp_path / "rows.jsonl", rows), **MASK).with_masks(tokenizer).load()
    first, second = (row.text for row in read.splits["train"])
    assert first.marked == "call phone or <e1>email</e1> to <e2>bad</e2> now" and first.entities == ("email", "bad")
    assert second.marked == rows[1]["text"]


MAIL, PHONE = "jane@example.com", "(415) 555-2671"


@pytest.mark.parametrize(
    ("words", "tags", "expected"),
    [
        # The mask keeps the entity of its words, and the words around it keep theirs.
        (f"write to {MAIL} or bad", "O O B-P O B-Q", "write/O to/O email/B-P or/O bad/B-Q"),
        (f"call {PHONE} now", "O B-P I-P O", "call/O phone/B-P now/O"),
        (f"call {PHONE} now", "B-P I-P I-P I-P", "call/B-P phone/I-P now/I-P"),
        (f"call {PHONE} now", "O O O O", "call/O phone/O now/O"),
        # An entity that overlaps a mask contains all of it.
        (f"call {PHONE} now", "O O B-P I-P", "call/O phone/B-P now/I-P"),
        # Of two, the one with more characters in the find; the other begins anew after the mask.
        (f"call {PHONE} now", "O B-Q B-P I-P", "call/O phone/B-P now/I-P"),
        (f"call {PHONE} now", "B-P I-P B-Q I-Q", "call/B-P phone/B-Q now/I-Q"),
        ("call 8005552671 (415) 555-2671 now", "B-P I-P I-P I-P I-P", "call/B-P phone/I-P phone/I-P now/I-P"),
        # Characters of a word beside the find stay in it, and finds in one word are one word.
        (f"is ({MAIL}), {MAIL}/{MAIL} bad", "O B-P B-P I-P", "is/O (email),/B-P email/email/B-P bad/I-P"),
        # Words that a tokenizer split.
        ("write jane @ example . com now", "O B-P I-P I-P I-P I-P O", "write/O email/B-P now/O"),
        (" ".join("写给13800138000的人"), "O O" + " B-P" + " I-P" * 10 + " O O", "写/O 给/O phone/B-P 的/O 人/O"),
    ],
)
def test_tags_move_with_their_words(tmp_path, tokenizer, words, tags, expected):
    rows = [{"tokens": words.split(), "tags": tags.split()}, {"tokens": ["bad"], "tags": ["B-Q"]}]
    data = TaggedData(write_json(tmp_path / "rows.jsonl", rows), **MASK)
    sentence = data.with_masks(tokenizer).load("words").splits["train"][0]
    assert " ".join(map("/".join, zip(sentence.words, sentence.tags, strict=True))) == expected
    assert first_violation(sentence.tags, "bio") is None
    lines = "".join(f"{word}\t{tag}\n" for word, tag in zip(words.split(), tags.split(), strict=True))
    (tmp_path / "rows.conll").write_text(lines + "\nbad\tB-Q\n", encoding="utf-8")
    columns = replace(data, train=str(tmp_path / "rows.conll"), scheme="bio").with_masks(tokenizer).load("words")
    assert columns.splits["train"][0].words == sentence.words and columns.splits["train"][0].tags == sentence.tags
    assert sum(columns.facts["train"].personal_data.values()) == expected.count("email") + expected.count("phone")


@pytest.mark.parametrize("units", ["words", "white_space", "characters"])
def test_entities_of_a_text_move_with_it(tmp_path, tokenizer, units):
    text = f"write to {MAIL} or call {PHONE} now"
    first, second = (text.index(each) for each in (MAIL, PHONE))
    ends = first + len(MAIL), second + len(PHONE)
    spans = [{"start": first, "end": ends[0], "label": "P"}, {"start": second, "end": ends[1], "label": "Q"}]
    forms = [
        {"spans": spans},
        {"label": [[first, ends[0], "P"], [second, ends[1], "Q"]]},
        {"label": {"P": {MAIL: [[first, ends[0] - 1]]}, "Q": {PHONE: [[second, ends[1] - 1]]}}},
    ]
    path = write_json(tmp_path / "rows.jsonl", [{"text": text, **form} for form in forms])
    for sentence in TaggedData(path, **MASK).with_masks(tokenizer).load(units).splits["train"]:
        tagged = [pair for pair in zip(sentence.words, sentence.tags, strict=True) if pair[1] != "O"]
        assert tagged == [("email", "B-P"), ("phone", "B-Q")]
        assert "".join(sentence.words) == "writetoemailorcallphonenow" and sentence.text is None


def test_predictions_are_masked_as_in_training_and_so_is_all_that_they_repeat(tmp_path, tokenizer):
    def read(rows, task, data, on_bad_row="error"):
        return read_python_rows(rows, task, tokenizer, on_bad_row, data)

    (row,) = read([{"text": "write to a@b.de", "id": 7}], SequenceClassificationTask(), TableData("", **MASK))
    assert (row.row.values, row.kept) == ({"text": "write to email"}, {"text": "write to email"})
    choice = {"question": "who", "choices": ["a@b.de", "good"]}
    (row,) = read([choice], MultipleChoiceTask(), ChoiceData("", **MASK))
    assert json.loads(row.row.values["choices"]) == row.kept["choices"] == ["email", "good"]
    question = {"question": "who", "context": "write to a@b.de"}
    (row,) = read([question], QuestionAnsweringTask(), QuestionData("", **MASK))
    assert row.row.values["context"] == row.kept["context"] == "write to email"
    marked = {"text": f"call <e1>{PHONE.replace(' ', '</e1> ')} or <e2>bad</e2>"}
    (row,) = read([marked], RelationExtractionTask(), RelationData("", **MASK))
    assert row.row.values["text"] == row.kept["text"] == "call <e1>phone</e1> or <e2>bad</e2>"
    words = {"tokens": ["call", *PHONE.split(), "or", MAIL]}
    (row,) = read([words], TokenClassificationTask(), TaggedData("", **MASK))
    assert json.loads(row.row.values["tokens"]) == row.kept["tokens"] == ["call", "phone", "or", "email"]


def test_copied_columns_are_masked(tmp_path, tokenizer):
    row = {"text": "good", "mail": "a@b.de", "phone": 14155552671, "list": ["a@b.de", {"x": "a@b.de"}], "n": 1.5}
    path = write_json(tmp_path / "rows.jsonl", [row, {"text": 5, "mail": "c@d.de"}])
    settings = PredictConfig(
        run="r", precision=PrecisionConfig(name="fp32"), input=path, on_bad_row="skip", keep_columns=list(row)
    )
    good, bad = read_input_rows(settings, SequenceClassificationTask(), tokenizer, TableData("", **MASK))
    assert good.kept == {"text": "good", "mail": "email", "phone": "phone", "list": ["email", {"x": "email"}], "n": 1.5}
    assert "c@d.de" not in str(bad)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "jane@example.com", "label": "bank jane@example.com"}, "row 2.*: the label is personal data"),
        ({"text": "x", "label": "a", "who": "jane@example.com"}, "row 2.*: the group is personal data"),
        ({"text": ["jane@example.com", "415-555-2671"], "label": "a"}, "line 2"),
        ({"text": "x", "label": ["jane@example.com"]}, "line 2"),
    ],
)
def test_messages_about_rows_show_no_personal_data(tmp_path, tokenizer, row, message):
    rows = [{"text": "good", "label": "a", "who": "x"}, {"who": "x", **row}, {"text": "bad", "label": "b", "who": "x"}]
    data = TableData(write_json(tmp_path / "rows.jsonl", rows), group_column="who", **MASK)
    with pytest.raises(DataError, match=message) as raised:
        data.with_masks(tokenizer).load()
    skipping = replace(data, on_bad_row="skip").with_masks(tokenizer).load()
    (skipped,) = skipping.facts["train"].skipped
    for text in (str(raised.value), skipped, str(skipping.labels)):
        assert "jane" not in text and "415-555" not in text, text


def test_messages_hide_beginnings_of_addresses_and_numbers(tokenizer):
    masking = TextMasking.of(Detection(), tokenizer)
    shown = "rows.jsonl, row 123456: 'text' is 'to jane@exam. It must have 2 labels, or 415-555-26."
    assert masking.message(shown) == "rows.jsonl, row 123456: 'text' is 'to [...] It must have 2 labels, or [...]"


def test_an_export_masks_without_the_file_of_names():
    node = {"_target_": "x", "train": "a", "validation": None, "test": None, "personal_data": "mask"}
    assert portable_data({**node, "personal_data_names": "names.txt"}) == {
        "_target_": "x", "train": "", "personal_data": "mask",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (TableData, {**MASK, "personal_data_kinds": ["passport"]}, "'passport', which is unknown"),
        (TableData, {"personal_data_names": "names.txt"}, "personal_data is null"),
    ],
)
def test_settings_that_cannot_be_used_are_rejected(kind, settings, message):
    with pytest.raises(ConfigError, match=message):
        kind("rows.jsonl", **settings)


def test_a_vocabulary_without_a_mask_is_rejected_before_the_file_is_read(tmp_path):
    training = WordPieceTraining(vocab_size=100)
    small = training.train(WordCounts(training.count(["good email"] * 9)), tmp_path)
    assert TextMasking.of(Detection(("email",)), small).text("good a@b.de") == "good email"
    with pytest.raises(ConfigError, match="splits each mask for phone"):
        TableData("there is no such file", **MASK).with_masks(small)
