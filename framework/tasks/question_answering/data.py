"""Questions on contexts whose answers are spans of them, from SQuAD's JSON (v1.1, v2.0) or JSONL; checked and split.

Sources: Rajpurkar et al. 2016 (arXiv:1606.05250) and 2018 (arXiv:1806.03822).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from framework.data.examples.splits import R, ReadSplits, SplitFiles, same_text
from framework.data.reading.files import COMPRESSIONS, Reading, decode_line, raw_lines
from framework.data.reading.json_rows import json_objects
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
    """A right answer to a question.

    Attributes:
        text: As in the file; scoring needs nothing else.
        start: First character in the context, in code points from 0; None if the file gives no offset or a wrong one.
        fault: Message about a wrong offset in the file; "" if it is right.
    """

    text: str
    start: int | None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """One question (`framework.data.examples.splits.Record`).

    Attributes:
        place: File, article, paragraph and question, or file and row, for messages.
        question: As in the file.
        context: As in the file; the same object for all questions on it where the file has it once.
        answers: All correct answers. The first one is used for training, so its offset is known. Empty if the context
            has no answer.
    """

    place: str
    question: str
    context: str
    answers: tuple[Answer, ...]

    @property
    def identity(self) -> tuple[str, ...]:
        """Context and question."""
        return same_text(self.context), same_text(self.question)

    @property
    def answer(self) -> tuple[()]:
        """Nothing: two answers to one question do not contradict each other."""
        return ()


@dataclass(frozen=True)
class QuestionData(SplitFiles):
    """Files of questions; their fractions are of contexts: all questions on a context fall into one split.

    A JSON object is SQuAD's: articles of paragraphs, each a context with `qas`; other keys, such as
    `plausible_answers`, are ignored. A JSON list, or JSONL, has rows with `question`, `context`, perhaps an `id`,
    and `answers`, a list of {text, answer_start}. Without answers a question is one that its context does not answer,
    unless `is_impossible` says false; the form {text: [...], answer_start: [...]} of `datasets` is read too. Either
    file may be compressed (.gz, .zst).

    Attributes:
        columns: {key: its name} for JSONL files that call `id`, `question`, `context` or `answers` otherwise.
        invalid_answers: "repair" corrects a wrong `answer_start` if the text occurs exactly once in the context. None:
            a training question whose first answer has a wrong offset is bad. Further answers, and those of
            `validation` and `test`, are compared as texts and need no offset.
        answer_unit: What scores count: "words" (English: articles are left out), or "characters" for Chinese.
        on_bad_row: "error" ends with the first bad question; "skip" leaves bad ones out and tells how many.
    """

    columns: dict[str, str] | None = None
    answer_unit: AnswerUnit = "words"
    on_bad_row: OnBadRow = "error"
    invalid_answers: Literal["repair"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.invalid_answers not in (None, "repair"):
            raise ConfigError(
                f"data.invalid_answers is {self.invalid_answers!r}. Choose repair, or null to treat them as "
                "bad questions."
            )
        for name in self.columns or {}:
            if name not in _COLUMNS:
                raise ConfigError(
                    f"`columns` names {name!r}, but only {', '.join(_COLUMNS)} are read; name one of these."
                )

    @property
    def field_columns(self) -> dict[str, str]:
        """Returns the keys of question and context."""
        return {name: (self.columns or {}).get(name, name) for name in ("question", "context")}

    def rows_to_predict(self, table: TableFile, columns: Mapping[str, str], reading: Reading) -> Iterator[Row] | None:
        """Streams the questions of SQuAD's JSON."""
        content = _content(table.path) if json_kind(table.path, table.format) == "json" else None
        is_squad = isinstance(content, dict) and "data" in content
        return _squad_questions(table, content, columns, reading) if is_squad else None

    def load(self) -> ReadSplits[Question]:
        """Reads, checks and splits the questions.

        Raises:
            DataError: A file is missing, empty, not UTF-8, damaged, or neither SQuAD's JSON nor JSONL; no question in
                it is good; a split would be empty. Unless `on_bad_row` skips those: a question or context is empty or
                no text; an answer is empty, or the first one of a training question has a wrong offset; `is_impossible`
                contradicts the answers; an id comes twice.
        """
        read = self.read_files(self._read, self.on_bad_row)
        read.checked("train", _trainable)
        repaired = {
            split: sum(bool(answer.fault) and answer.start is not None for each in questions for answer in each.answers)
            for split, questions in read.records.items()
        }
        found = self.split(read)
        facts = {}
        for split, questions in found.splits.items():
            unplaced = sum(answer.start is None for each in questions for answer in each.answers)
            notes = {"answers without an offset, for scores only": f"{unplaced:,}"} if unplaced else {}
            facts[split] = replace(found.facts[split], repaired=repaired.get(split, 0), notes=notes)
        return replace(found, facts=facts)

    def group(self, record: R) -> tuple[str, ...]:
        """The context."""
        return record.identity[:1]

    def _read(self, path: Path, reading: Reading) -> list[Question]:
        kind = json_kind(path, TableFormat())
        if kind is None:
            raise DataError(
                f"{path} is not JSON, by its name and its content. Questions are read from .json (SQuAD, or a list of "
                f"rows) and .jsonl (rows), optionally followed by {' or '.join(COMPRESSIONS)}. Give such a file."
            )
        content = _content(path) if kind == "json" else None
        names = {name: (self.columns or {}).get(name, name) for name in _COLUMNS}
        checked = partial(_checked, seen=set(), repairs=self.invalid_answers == "repair")
        questions: list[Question] = []
        if isinstance(content, dict):
            for place, row in _squad_rows(path, content):
                try:
                    questions.append(checked(place, row))
                except DataError as error:
                    reading.bad_row(error)
        else:
            table = TableFile(path, (), kind=kind)
            questions += json_objects(
                table, reading, lambda place, row: checked(place, _parts(place, row.value, names))
            )
        if not questions and not reading.skipped:
            raise DataError(f"{path} holds no question that can be used; correct it, or name another file.")
        return questions


def _content(path: Path) -> Any:
    raw = b"".join(line for _, line in raw_lines(path, Reading()))
    try:
        return parse_json(decode_line(path, 1, raw))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); give SQuAD's JSON, or rows as .jsonl.") from error


def _squad_rows(path: Path, content: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the place and the parts of each question."""
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
    for number, (place, row) in enumerate(_squad_rows(table.path, content), start=1):
        try:
            check_columns(table.path, place.removeprefix(f"{table.path}, "), table.as_is, list(row))
            values = {name: _text(place, column, row.get(column)) for name, column in names.items()}
        except DataError as error:
            reading.bad_row(error)
        else:
            yield Row(number, None, values, kept={name: row[name] for name in as_is})


def _items(place: str, node: Any, key: str) -> list[Any]:
    items = node.get(key) if isinstance(node, Mapping) else None
    if not isinstance(items, list):
        raise DataError(
            f"{place}: there is no list {key!r}, which SQuAD's JSON has there; correct or replace the file."
        )
    return items


def _parts(place: str, row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    for name in names.values():
        if name not in row and name != names["id"]:
            raise DataError(f"{place}: no key {name!r} among {list(row)}; name one of these in `columns`.")
    parts = {name: row[column] for name, column in names.items() if column in row}
    return parts | {"is_impossible": row.get("is_impossible")}


def _trainable(question: Question) -> Question:
    if question.answers and question.answers[0].start is None:
        raise DataError(question.answers[0].fault)
    return question


def _checked(place: str, row: Mapping[str, Any], seen: set[str], repairs: bool) -> Question:
    """The question, if nothing is wrong with it; its id joins those seen."""
    question, context = (_text(place, name, row.get(name)) for name in ("question", "context"))
    spans = tuple(_answer(place, answer, context, repairs) for answer in _answers(place, row.get("answers")))
    impossible = row.get("is_impossible")
    if impossible not in (None, not spans):
        raise DataError(
            f"{place}: 'is_impossible' is {_shown(impossible)}, but the answers are {len(spans)}; correct one of both."
        )
    if row.get("id") is not None:
        name = str(row["id"])
        if name in seen:
            raise DataError(f"{place}: the id {name!r} came before; give each question an id of its own.")
        seen.add(name)
    return Question(place, question, context, spans)


def _answers(place: str, answers: Any) -> list[Any]:
    """The list of answers, also where each part of them is a list, as `datasets` writes them."""
    if isinstance(answers, Mapping):
        texts, starts = answers.get("text"), answers.get("answer_start")
        if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
            return [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    if not isinstance(answers, list):
        raise DataError(f"{place}: 'answers' is {_shown(answers)}, it must be a list; correct or remove the question.")
    return answers


def _answer(place: str, answer: Any, context: str, repairs: bool) -> Answer:
    """Returns the answer with its offset if the file gives a right one, or if it can be repaired."""
    if not isinstance(answer, Mapping):
        raise DataError(
            f"{place}: an answer is {_shown(answer)}. It must have `text`, and `answer_start` for training. Correct it."
        )
    text, start = _text(place, "text", answer.get("text")), answer.get("answer_start")
    fault = _fault_of_start(place, answer, text, start, context)
    if not fault:
        return Answer(text, start)
    only = context.find(text)
    if only < 0 or context.find(text, only + 1) >= 0:
        return Answer(text, None, fault)
    if repairs:
        return Answer(text, only, fault)
    return Answer(text, None, f"{fault} The text occurs once, so data.invalid_answers=repair corrects it.")


def _fault_of_start(place: str, answer: Any, text: str, start: Any, context: str) -> str:
    """Describes what is wrong with the offset of an answer; "" if it is right."""
    if not isinstance(start, int) or isinstance(start, bool):
        return f"{place}: an answer is {_shown(answer)}. It must have a whole number as `answer_start`. Correct it."
    if start < 0 or start + len(text) > len(context):
        return (
            f"{place}: the answer {_shown(text)} from character {start} reaches outside the context of {len(context)} "
            "characters; correct `answer_start`, or the text."
        )
    found = context[start : start + len(text)]
    if found != text:
        return (
            f"{place}: the answer {_shown(text)} is not at character {start} of the context, where {_shown(found)} "
            "stands; correct `answer_start` (it counts characters, not bytes), or the text."
        )
    return ""


def _text(place: str, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place}: {name!r} is {_shown(value)}, it must be text; correct or remove the question.")
    if not value.strip():
        raise DataError(f"{place}: {name!r} is empty, each question needs one; fill in or remove the question.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{place}: {name!r} holds \\u{ord(value[error.start]):04x}, half of a surrogate pair; write the whole pair "
            "or remove the question."
        ) from error
    return value


def _shown(value: Any) -> str:
    """As in Python, the end left out where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."
