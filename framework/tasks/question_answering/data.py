"""Questions whose answers are spans of a context, from SQuAD's JSON (v1.1, v2.0) or JSONL; validated and split.

Sources: Rajpurkar et al. 2016 (arXiv:1606.05250) and 2018 (arXiv:1806.03822).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from framework.data.examples.splits import R, ReadSplits, SplitFiles, same_text
from framework.data.personal_data.masking import TextMasking
from framework.data.reading.files import COMPRESSIONS, Reading, decode_line, raw_lines
from framework.data.reading.json_rows import check_surrogates, json_objects
from framework.data.reading.table_format import Row, TableFile, TableFormat, check_columns
from framework.data.reading.table_kind import json_kind
from framework.errors import ConfigError, DataError
from framework.files import parse_json

AnswerUnit = Literal["words", "characters"]
OnBadRow = Literal["error", "skip"]

_COLUMNS = ("id", "question", "context", "answers")
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class Answer:
    """A correct answer to a question.

    Attributes:
        text: Text as in the file. Scoring needs only the text.
        start: Offset in the context, in code points from 0. None if the file has no offset or a wrong one.
        fault: Message about a wrong offset in the file. Empty if the offset is correct.
    """

    text: str
    start: int | None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """One question (`framework.data.examples.splits.Record`).

    Attributes:
        location: File, article, paragraph and question, or file and row, for messages.
        question: Question as in the file.
        context: Context as in the file. Questions on a context that the file has once share one object.
        answers: All correct answers. The first one is used for training, so its offset is known. Empty if the context
            has no answer.
    """

    location: str
    question: str
    context: str
    answers: tuple[Answer, ...]

    @property
    def identity(self) -> tuple[str, ...]:
        """Returns the normalized context and question."""
        return same_text(self.context), same_text(self.question)

    @property
    def answer(self) -> tuple[()]:
        """Returns an empty tuple, because different answers to one question do not contradict each other."""
        return ()

    def masked(self, masking: TextMasking) -> "Question":
        """Returns the question with masked texts; an answer that overlaps a mask contains all of it."""
        context = masking.mask(self.context)
        answers = []
        for answer in self.answers:
            if answer.start is None:
                answers.append(replace(answer, text=masking.text(answer.text)))
                continue
            start, end = context.moved(answer.start, answer.start + len(answer.text))
            answers.append(replace(answer, text=context.text[start:end], start=start))
        return replace(self, question=masking.text(self.question), context=context.text, answers=tuple(answers))


@dataclass(frozen=True)
class QuestionData(SplitFiles):
    """Files of questions. Split fractions count contexts: all questions on a context fall into one split.

    A JSON object has SQuAD's form: articles of paragraphs, each a context with `qas`. Other keys, such as
    `plausible_answers`, are ignored. A JSON list, or JSONL, has rows with `question`, `context`, optionally `id`, and
    `answers`, a list of {text, answer_start}. The form {text: [...], answer_start: [...]} of `datasets` is also valid.
    A question without answers is one that its context does not answer; `is_impossible` must not contradict that. Files
    may be compressed (.gz, .zst).

    Attributes:
        columns: {key: name in the file} for JSONL files with other names for `id`, `question`, `context` or `answers`.
        invalid_answers: "repair" corrects a wrong `answer_start` if the text occurs exactly once in the context. None:
            a training question whose first answer has a wrong offset is bad. Further answers, and answers of
            `validation` and `test`, are compared as texts and need no offset.
        answer_unit: Unit of the scores: "words" (English: articles are ignored), or "characters" for Chinese.
        on_bad_row: "error" stops at the first bad question. "skip" drops and counts bad questions.

    Raises:
        ConfigError: `invalid_answers` or a key of `columns` is unknown.
    """

    columns: dict[str, str] | None = None
    answer_unit: AnswerUnit = "words"
    on_bad_row: OnBadRow = "error"
    invalid_answers: Literal["repair"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.invalid_answers not in (None, "repair"):
            raise ConfigError(
                f"data.invalid_answers is {self.invalid_answers!r}, which is unknown. Choose repair, or null to treat "
                "them as bad questions."
            )
        for name in self.columns or {}:
            if name not in _COLUMNS:
                raise ConfigError(
                    f"data.columns has the key {name!r}, which is unknown. Valid keys are {', '.join(_COLUMNS)}. "
                    "Correct the key."
                )

    @property
    def field_columns(self) -> dict[str, str]:
        """Returns the names of question and context in the files."""
        return {name: (self.columns or {}).get(name, name) for name in ("question", "context")}

    def rows_to_predict(self, table: TableFile, columns: Mapping[str, str], reading: Reading) -> Iterator[Row] | None:
        """Streams the questions of a file in SQuAD's JSON form. Returns None for other files."""
        content = _content(table.path) if json_kind(table.path, table.format) == "json" else None
        is_squad = isinstance(content, dict) and "data" in content
        return _squad_questions(table, content, columns, reading) if is_squad else None

    def load(self) -> ReadSplits[Question]:
        """Reads, checks and splits the questions.

        Raises:
            DataError: A file is missing, empty, damaged, not UTF-8, or not in a supported form; a file has no valid
                question; or a split would be empty. Also, unless `on_bad_row` is "skip": a question or context is empty
                or not a text; an answer is empty; the first answer of a training question has a wrong offset;
                `is_impossible` contradicts the answers; or an id occurs twice.
        """
        read = self.read_files(self._read, self.on_bad_row)
        read.checked("train", _trainable)
        repaired = {
            split: sum(bool(answer.fault) and answer.start is not None for each in questions for answer in each.answers)
            for split, questions in read.records.items()
        }
        questions_read = self.split(read)
        facts = {}
        for split, questions in questions_read.splits.items():
            num_without_offset = sum(answer.start is None for each in questions for answer in each.answers)
            notes = (
                {"answers without an offset, for scores only": f"{num_without_offset:,}"} if num_without_offset else {}
            )
            facts[split] = replace(questions_read.facts[split], repaired=repaired.get(split, 0), notes=notes)
        return replace(questions_read, facts=facts)

    def group(self, record: R) -> tuple[str, ...]:
        """Returns the normalized context."""
        return record.identity[:1]

    def _read(self, path: Path, reading: Reading) -> list[Question]:
        kind = json_kind(path, TableFormat())
        if kind is None:
            raise DataError(
                f"{path} is not JSON, by its name and its content. Supported files are .json (SQuAD, or a list of "
                f"rows) and .jsonl (rows), optionally followed by {' or '.join(COMPRESSIONS)}. Supply such a file."
            )
        content = _content(path) if kind == "json" else None
        names = {name: (self.columns or {}).get(name, name) for name in _COLUMNS}
        checked = partial(_checked, seen=set(), repairs=self.invalid_answers == "repair")
        questions: list[Question] = []
        if isinstance(content, dict):
            for location, row in _squad_rows(path, content):
                with reading.handling_bad_row():
                    questions.append(checked(location, row))
        else:
            table = TableFile(path, (), kind=kind)
            questions += json_objects(
                table, reading, lambda location, row: checked(location, _parts(location, row.value, names))
            )
        if not questions and not reading.skipped:
            raise DataError(f"{path} has no questions. Each file needs at least one. Add some, or use another file.")
        return questions


def _content(path: Path) -> Any:
    raw = b"".join(line for _, line in raw_lines(path, Reading()))
    try:
        return parse_json(decode_line(path, 1, raw))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}). Supply SQuAD's JSON, or rows as .jsonl.") from error


def _squad_rows(path: Path, content: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each question as a location for messages and a row."""
    for article_number, article in enumerate(_items(str(path), content, "data"), start=1):
        in_article = f"{path}, article {article_number}"
        for paragraph_number, paragraph in enumerate(_items(in_article, article, "paragraphs"), start=1):
            in_paragraph = f"{in_article}, paragraph {paragraph_number}"
            for number, question in enumerate(_items(in_paragraph, paragraph, "qas"), start=1):
                row = question if isinstance(question, dict) else {}
                name = repr(row["id"]) if "id" in row else str(number)
                yield f"{in_paragraph}, question {name}", row | {"context": paragraph.get("context")}


def _squad_questions(table: TableFile, content: Any, columns: Mapping[str, str], reading: Reading) -> Iterator[Row]:
    names = {name: columns.get(name, name) for name in ("question", "context")}
    as_is = list(dict.fromkeys([*names.values(), *table.as_is]))
    for number, (location, row) in enumerate(_squad_rows(table.path, content), start=1):
        with reading.handling_bad_row():
            check_columns(table.path, location.removeprefix(f"{table.path}, "), table.as_is, list(row))
            values = {name: _text(location, column, row.get(column)) for name, column in names.items()}
            yield Row(number, None, values, kept={name: row[name] for name in as_is})


def _items(location: str, node: Any, key: str) -> list[Any]:
    items = node.get(key) if isinstance(node, Mapping) else None
    if not isinstance(items, list):
        raise DataError(
            f"{location}: the list {key!r} is missing. SQuAD's JSON requires it. Correct or replace the file."
        )
    return items


def _parts(location: str, row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    for name in names.values():
        if name not in row and name != names["id"]:
            raise DataError(
                f"{location}: the key {name!r} is missing among {list(row)}. Map it to a key in data.columns."
            )
    parts = {name: row[column] for name, column in names.items() if column in row}
    return parts | {"is_impossible": row.get("is_impossible")}


def _trainable(question: Question) -> Question:
    if question.answers and question.answers[0].start is None:
        raise DataError(question.answers[0].fault)
    return question


def _checked(location: str, row: Mapping[str, Any], seen: set[str], repairs: bool) -> Question:
    """Returns the question after all checks, and adds its id to `seen`."""
    question, context = (_text(location, name, row.get(name)) for name in ("question", "context"))
    spans = tuple(_answer(location, answer, context, repairs) for answer in _answers(location, row.get("answers")))
    impossible = row.get("is_impossible")
    if impossible not in (None, not spans):
        raise DataError(
            f"{location}: 'is_impossible' is {_abbreviate(impossible)}, but the question has {len(spans)} answers. The "
            "two contradict each other. Correct one of them."
        )
    if row.get("id") is not None:
        name = str(row["id"])
        if name in seen:
            raise DataError(f"{location}: the id {name!r} occurs twice. Ids must be unique. Change one of them.")
        seen.add(name)
    return Question(location, question, context, spans)


def _answers(location: str, answers: Any) -> list[Any]:
    """Returns the list of answers. Converts the form of `datasets`, an object of lists."""
    if isinstance(answers, Mapping):
        texts, starts = answers.get("text"), answers.get("answer_start")
        if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
            return [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    if not isinstance(answers, list):
        raise DataError(
            f"{location}: 'answers' is {_abbreviate(answers)}. It must be a list. Correct or remove the question."
        )
    return answers


def _answer(location: str, answer: Any, context: str, repairs: bool) -> Answer:
    """Returns the answer, with its offset if the file has a correct one or if it can be repaired."""
    if not isinstance(answer, Mapping):
        raise DataError(
            f"{location}: an answer is {_abbreviate(answer)}. It must have `text`, and `answer_start` for training. "
            "Correct it."
        )
    text, start = _text(location, "text", answer.get("text")), answer.get("answer_start")
    fault = _fault_of_start(location, answer, text, start, context)
    if not fault:
        return Answer(text, start)
    only = context.find(text)
    if only < 0 or context.find(text, only + 1) >= 0:
        return Answer(text, None, fault)
    if repairs:
        return Answer(text, only, fault)
    return Answer(text, None, f"{fault} The text occurs once, so data.invalid_answers=repair corrects it.")


def _fault_of_start(location: str, answer: Any, text: str, start: Any, context: str) -> str:
    """Describes the fault of the offset of an answer. Returns an empty text if the offset is correct."""
    if not isinstance(start, int) or isinstance(start, bool):
        return (
            f"{location}: an answer is {_abbreviate(answer)}. It must have a whole number as `answer_start`. Correct "
            "it."
        )
    if start < 0 or start + len(text) > len(context):
        return (
            f"{location}: the answer {_abbreviate(text)} from character {start} exceeds the context of {len(context)} "
            "characters. Correct `answer_start`, or the text."
        )
    actual = context[start : start + len(text)]
    if actual != text:
        return (
            f"{location}: the answer {_abbreviate(text)} does not match {_abbreviate(actual)} at character {start} of "
            "the context. `answer_start` counts characters, not bytes. Correct it, or the text."
        )
    return ""


def _text(location: str, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise DataError(
            f"{location}: {name!r} is {_abbreviate(value)}. It must be text. Correct or remove the question."
        )
    if not value.strip():
        raise DataError(f"{location}: {name!r} is empty. Each question needs it. Add it or remove the question.")
    check_surrogates(location, name, value)
    return value


def _abbreviate(value: Any) -> str:
    """Returns the repr of a value, truncated if it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
