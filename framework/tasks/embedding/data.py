"""Training texts for embeddings: pairs, scored pairs, or labelled texts; validated and split."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from framework.data.examples.answers import number, parse_list, read_cell, require_text
from framework.data.examples.beir import is_beir, read_beir
from framework.data.examples.splits import R, ReadSplits, SplitFiles, same_text
from framework.data.personal_data.masking import TextMasking
from framework.data.reading.files import Reading
from framework.data.reading.header import plain_float
from framework.data.reading.rows import read_rows
from framework.data.reading.table_format import TableFormat
from framework.errors import ConfigError, DataError
from framework.tasks.embedding.judged_files import JudgedSplit, judged_paths, read_judged
from framework.tasks.embedding.more_texts import MoreTexts, check_shares, naming_set

PairKind = Literal["matches", "scored", "labelled", "single"]
_NUMBER = number()


@dataclass(frozen=True, slots=True)
class TextGroup:
    """One row (`framework.data.examples.splits.Record`).

    Attributes:
        location: File, row and line, for messages.
        texts: The text, then its paired text (labelled and single texts have none), then its hard negatives.
        answer: Score of a scored pair, label of a labelled text, or None.
        teacher_scores: A teacher's score of the paired text and of each hard negative; None: there is no teacher.
        vector: (channels,) fp32 embedding of the text by a teacher; None: there is none.
    """

    location: str
    texts: tuple[str, ...]
    answer: float | str | None = None
    teacher_scores: tuple[float, ...] | None = None
    vector: np.ndarray | None = field(default=None, compare=False)

    @property
    def identity(self) -> tuple[str, ...]:
        """Returns the normalized texts."""
        return tuple(map(same_text, self.texts))

    def masked(self, masking: TextMasking) -> "TextGroup":
        """Returns the row with masked texts."""
        return replace(self, texts=tuple(map(masking.text, self.texts)))


@dataclass(frozen=True)
class TextPairData(SplitFiles):
    """Rows of one of four kinds, from files that `framework.data.reading.rows` reads.

    - "matches": a text and a matching text (a question and its answer), optionally with hard negatives: texts that look
      like a match but are none.
    - "scored": two texts and a number that rates their similarity.
    - "labelled": a text and its label. Texts with the same label match each other.
    - "single": a text alone.

    All rows with the same first text fall into one split. Instead of a file, each split can be a BEIR folder
    (`framework.data.examples.beir`): for `train` the queries with their relevant documents are matching pairs, and in
    evaluation all documents are searched (`load_judged`).

    Attributes:
        train: Training file or BEIR folder. None: there is no training split, only evaluated BEIR folders.
        validation: File, BEIR folder or list of BEIR folders; None: `validation_fraction` of the pairs of `train`.
        test: File, BEIR folder or list of BEIR folders; None: `test_fraction` of the pairs of `train`.
        text_column: Column (JSONL: key) of the text.
        pair_column: Column of the second text. None: texts are labelled or single.
        score_column: Column of the number. None: pairs are matches.
        label_column: Column of the label. None: texts come in pairs or are single.
        negative_columns: Columns of hard negatives. A cell with a JSON list holds several, an empty cell none.
        teacher_column: Column of a teacher's scores of a match: a JSON list with the score of the second text and of
            each hard negative, in their order. None: there is no teacher.
        vector_column: Column of a teacher's embedding of the text: a JSON list of numbers. None: there is none.
        more: Further sets by name, each with a share of the training steps; `train` has the rest. None: there are none.
        format: Format of the files. None: the defaults of TableFormat.
        on_bad_row: Handling of a row that is broken, or that lacks a text, the label or the number. "error" stops,
            "skip" drops and counts the row.

    Raises:
        ConfigError: The columns do not match one of the four kinds.
    """

    train: str | None  # type: ignore[assignment]
    validation: str | list[str] | None = None  # type: ignore[assignment]
    test: str | list[str] | None = None  # type: ignore[assignment]
    text_column: str = "text"
    pair_column: str | None = "pair"
    score_column: str | None = None
    label_column: str | None = None
    negative_columns: list[str] = field(default_factory=list)
    teacher_column: str | None = None
    vector_column: str | None = None
    more: dict[str, MoreTexts] | None = None
    format: TableFormat | None = None
    on_bad_row: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pair_column is not None and self.label_column is not None:
            raise ConfigError(
                f"data.pair_column is {self.pair_column} and label_column is {self.label_column}. Texts have either a "
                "second text or a label. Set one of the two to null, or both for single texts."
            )
        if self.pair_column is None and self.score_column is not None:
            raise ConfigError(
                f"data.score_column is {self.score_column} and pair_column is null. Only pairs of texts have scores. "
                "Set pair_column, or set score_column to null."
            )
        if self.negative_columns and self.kind != "matches":
            raise ConfigError(
                f"data.negative_columns is {self.negative_columns}, but the rows are {self.kind}. Only pairs without a "
                "score can have hard negatives. Set it to []."
            )

        if self.teacher_column is not None and (self.kind != "matches" or not self.negative_columns):
            raise ConfigError(
                f"data.teacher_column is {self.teacher_column}, but the rows are {self.kind} with negative_columns="
                f"{self.negative_columns}. A teacher scores the second text of a match and its hard negatives. Name "
                "the columns of hard negatives, or set teacher_column to null."
            )

        check_shares(self.more or {})
        self.more_data()
        if self.more and (self.teacher_column is not None or self.vector_column is not None):
            raise ConfigError(
                f"data.more has {next(iter(self.more))}, and data has a column of a teacher. Rows of several sets "
                "cannot follow a teacher. Set data.more=null, or teacher_column and vector_column to null."
            )

    def more_data(self) -> dict[str, "TextPairData"]:
        """Returns the data of each further set.

        Raises:
            ConfigError: The columns of a set do not match one of the four kinds.
        """
        own: dict[str, Any] = {"validation_fraction": 0.0, "test_fraction": 0.0, "max_train_rows": None, "more": None}
        sets = {}
        for name, more in (self.more or {}).items():
            given = {each.name: getattr(more, each.name) for each in fields(more) if each.name != "share"}
            with naming_set(name):
                sets[name] = replace(self, **own, **given)
        return sets

    @property
    def kind(self) -> PairKind:
        """Returns the kind of the rows."""
        if self.label_column is not None:
            return "labelled"
        if self.pair_column is None:
            return "single"
        return "matches" if self.score_column is None else "scored"

    def group(self, record: R) -> tuple[str, ...]:
        """Returns the normalized first text."""
        return record.identity[:1]

    @property
    def field_columns(self) -> dict[str, str]:
        """Returns the column of the text and, for pairs, that of the second text."""
        pair = {} if self.pair_column is None else {"pair": self.pair_column}
        return {"text": self.text_column, **pair}

    def load(self) -> ReadSplits[TextGroup]:
        """Reads, checks and splits the rows.

        Raises:
            DataError: A file is missing, empty, damaged or in another encoding, or lacks a column; a row is bad and
                `on_bad_row` is "error"; a split would be empty; or all labels or scores of `train` are equal.
        """
        judged = self._judged_paths()
        if self.train is None:
            return ReadSplits({}, {})
        files = self
        for split in judged:
            files = files._with(split, None)._with(f"{split}_fraction", 0.0)
        pairs = files.split(files.read_files(files._read, self.on_bad_row))
        _check_widths([row for rows in pairs.splits.values() for row in rows])
        train = pairs.splits["train"]
        if self.kind in ("labelled", "scored") and all(row.answer == train[0].answer for row in train):
            kind = "label" if self.kind == "labelled" else "score"
            raise DataError(
                f"{train[0].location}: all {len(train)} training rows have the {kind} {train[0].answer!r}. Training "
                f"needs at least 2 different ones. Correct `{kind}_column`, or add rows."
            )
        return pairs

    def load_judged(self) -> dict[str, JudgedSplit]:
        """Reads the evaluated splits that are BEIR folders.

        Raises:
            ConfigError: A list names something else than BEIR folders, or a folder twice.
            DataError: A folder cannot be read (`read_beir`).
        """
        return {
            split: read_judged(split, paths, self.on_bad_row, self.masking)
            for split, paths in self._judged_paths().items()
        }

    def _judged_paths(self) -> dict[str, list[Path]]:
        given = {"validation": self.validation, "test": self.test}
        found = judged_paths(given)
        plain = [split for split, value in given.items() if value is not None and split not in found]
        if self.train is None and (plain or not found):
            split = plain[0] if plain else "test"
            raise ConfigError(
                f"`data.train` is null and `data.{split}` is {given[split]}. Without training rows only BEIR folders "
                f"can be read. Give `data.train`, or data.{split}=FOLDER."
            )
        return found

    @classmethod
    def alone(cls, split: str, file: Any) -> dict[str, Any]:
        """Returns the files for an evaluation of a new file; a BEIR folder needs no training split."""
        names_sets = isinstance(file, list) or is_beir(str(file))
        return {**super().alone(split, file), **({"train": None} if names_sets and split != "train" else {})}

    def _read(self, path: Path, reading: Reading) -> list[TextGroup]:
        if is_beir(path):
            return self._judged_pairs(path, reading)
        taught = [column for column in (self.teacher_column, self.vector_column) if column is not None]
        texts = (self.text_column, self.pair_column, self.score_column, self.label_column)
        columns = [*(column for column in texts if column is not None), *taught]
        lists = [*self.negative_columns, *taught]
        rows = []
        for row in read_rows(path, [*columns, *self.negative_columns], reading, self.format, lists):
            with reading.handling_bad_row():
                group = self._group(f"{path}, {row.location}", row.values, columns)
                rows.append(self._with_vector(group, row.values))
        return rows

    def _judged_pairs(self, path: Path, reading: Reading) -> list[TextGroup]:
        """Returns the queries of a BEIR folder with each of their relevant documents."""
        if self.teacher_column is not None:
            raise ConfigError(
                f"`data.train` is the BEIR folder {path}, and data.teacher_column is {self.teacher_column}. A BEIR "
                "folder has no scores of a teacher. Give a file with this column, or set teacher_column to null."
            )
        if self.kind != "matches":
            raise ConfigError(
                f"`data.train` is the BEIR folder {path}, but the rows of the data are {self.kind}. Queries and their "
                "relevant documents are pairs without a score. Set data.pair_column=pair, and score_column and "
                "label_column to null."
            )
        read = read_beir(path, "train", reading)
        queries, documents = list(read.queries.values()), list(read.documents.values())
        return [
            TextGroup(judgment.location, (queries[judgment.query], documents[judgment.document]))
            for judgment in read.judgments
            if judgment.grade > 0
        ]

    def _with_vector(self, group: TextGroup, values: Mapping[str, str]) -> TextGroup:
        if self.vector_column is None:
            return group
        numbers = _numbers_of(group.location, self.vector_column, values[self.vector_column])
        return replace(group, vector=np.array(numbers, dtype=np.float32))

    def _group(self, location: str, values: Mapping[str, str], required: list[str]) -> TextGroup:
        for column in required:
            require_text(location, column, values[column])
        texts = [values[column] for column in (self.text_column, self.pair_column) if column is not None]
        for column in self.negative_columns:
            texts += _texts_of(values[column])
        if self.label_column is not None:
            return TextGroup(location, tuple(texts), values[self.label_column].strip())
        if self.teacher_column is not None:
            scores = _numbers_of(location, self.teacher_column, values[self.teacher_column])
            if len(scores) != len(texts) - 1:
                raise DataError(
                    f"{location}: {self.teacher_column!r} has {len(scores)} scores for {len(texts) - 1} candidates. A "
                    "teacher scores the second text and each hard negative. Correct or remove the row."
                )
            return TextGroup(location, tuple(texts), teacher_scores=scores)
        if self.score_column is None:
            return TextGroup(location, tuple(texts))
        score = read_cell(location, self.score_column, values[self.score_column], _NUMBER.read)
        return TextGroup(location, tuple(texts), score)


def _numbers_of(location: str, column: str, cell: str) -> tuple[float, ...]:
    """Returns the numbers of a cell.

    Raises:
        DataError: The cell is no JSON list of finite numbers.
    """
    items = parse_list(cell)
    numbers = [plain_float(str(each)) for each in items or ()]
    if not items or not all(each is not None and math.isfinite(each) for each in numbers):
        raise DataError(
            f"{location}: {column!r} is {cell.strip()[:80]!r}. It must be a JSON list of finite numbers. Correct or "
            "remove the row."
        )
    return tuple(each for each in numbers if each is not None)


def _check_widths(rows: Sequence[TextGroup]) -> None:
    """Checks that all vectors have the same number of channels.

    Raises:
        DataError: A vector has another number.
    """
    if not rows or rows[0].vector is None:
        return
    width = len(rows[0].vector)
    for row in rows:
        if row.vector is not None and len(row.vector) != width:
            raise DataError(
                f"{row.location}: the vector has {len(row.vector)} numbers, and that of {rows[0].location} has "
                f"{width}. All vectors are those of one teacher. Correct the row."
            )


def _texts_of(cell: str) -> list[str]:
    """Returns the texts of a cell. A text that begins with a bracket is not always a list."""
    texts = [cell]
    if cell.lstrip().startswith("["):
        items = parse_list(cell)
        if items is not None and all(isinstance(text, str) for text in items):
            texts = items
    return [text for text in texts if text.strip()]
