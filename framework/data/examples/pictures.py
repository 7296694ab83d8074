"""Reads pictures: with labels, and with or without a text, from tables and folders per class; alone from any folder."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from framework.data.examples.answers import AnswerKind
from framework.data.examples.splits import R, ReadSplits, SplitFiles
from framework.data.examples.table import LabelledText, TableData
from framework.data.personal_data.masking import TextMasking
from framework.data.reading.files import Reading
from framework.data.reading.images import MAX_PIXELS, PictureFile, PictureFolder, animation_warnings
from framework.data.reading.rows import read_rows
from framework.data.reading.table_format import TableFormat
from framework.errors import ConfigError, DataError, check_at_least


@dataclass(frozen=True, slots=True)
class LabelledPicture(LabelledText):
    """One row with a picture (`framework.data.examples.splits.Record`). Without a text, `text` is the picture's name.

    Attributes:
        picture: Picture, known from its header.
    """

    picture: PictureFile | None = None

    @property
    def name(self) -> str:
        """Returns the path of the picture as the row gives it."""
        assert self.picture is not None
        return self.picture.name

    @property
    def identity(self) -> tuple[str, ...]:
        """Returns the name of the picture and the normalised text."""
        return (self.name, *LabelledText.identity.__get__(self))

    def masked(self, masking: TextMasking) -> "LabelledPicture":
        """Returns the row with a masked text. Names of pictures stay."""
        return self if self.text == self.name else replace(self, text=masking.text(self.text))


@dataclass(frozen=True)
class PictureTable(TableData):
    """Files of one labelled picture per row (`framework.data.examples.table.TableData`).

    Equal pictures are pictures of the same name. All rows with one picture belong to the same split.

    Attributes:
        image_column: Column of the path of the picture, relative to `images`.
        text_column: Column of a text beside the picture; None: pictures alone.
        images: Folder of the pictures; None: the folder of the table, or `train` itself if it is a folder per class.
        max_pixels: Most pixels of a picture, against decompression bombs.
    """

    image_column: str = "image"
    text_column: str | None = None  # type: ignore[assignment]
    images: str | None = None
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("data.max_pixels", self.max_pixels, 1)
        if self.pair_column is not None:
            raise ConfigError(
                f"data.pair_column is {self.pair_column!r}. A picture has one text or none. Set it to null, and name "
                "the text in data.text_column."
            )
        if self.canaries:
            raise ConfigError(f"data.canaries is {self.canaries}. Canaries are texts without a picture. Set it to 0.")

    @property
    def field_columns(self) -> dict[str, str]:
        """Returns the columns of the picture and of the text."""
        return {"image": self.image_column} | ({} if self.text_column is None else {"text": self.text_column})

    def group(self, record: R) -> tuple[str, ...]:
        """Returns the name of the picture, because all rows with one picture belong to the same split."""
        return record.identity[:1]

    def load(self, labels: Sequence[str] | None = None, answers: AnswerKind | None = None) -> ReadSplits[LabelledText]:
        """Reads, checks and splits the rows (`TableData.load`), and the headers of their pictures."""
        rows = super().load(labels, answers)
        found = [row.picture for split in rows.splits.values() for row in split if isinstance(row, LabelledPicture)]
        return _with_warnings(rows, [picture for picture in found if picture is not None])

    def _read(self, path: Path, answers: AnswerKind, reading: Reading) -> list[LabelledText]:
        folder = PictureFolder(self.images or (path if path.is_dir() else path.parent), self.max_pixels)

        def labelled(
            location: str, values: Mapping[str, str], fields: list[str], answers: AnswerKind
        ) -> LabelledPicture:
            row = self._labelled(location, values, fields, answers)
            picture = folder.find(location, row.text)
            text = picture.name if row.pair is None else row.pair
            return LabelledPicture(location, text, None, row.label, row.group, picture)

        return self._read_rows(path, answers, reading, labelled)


@dataclass(frozen=True, slots=True)
class UnlabelledPicture:
    """One picture (`framework.data.examples.splits.Record`).

    Attributes:
        location: File and row, for messages.
        picture: Picture, known from its header.
        answer: None: pictures have no label.
    """

    location: str
    picture: PictureFile
    answer: None = None

    @property
    def identity(self) -> tuple[str, ...]:
        """Returns the name of the picture."""
        return (self.picture.name,)


@dataclass(frozen=True)
class PictureFiles(SplitFiles):
    """Pictures without labels: all files of a folder and its sub-folders, or those that a table names.

    Attributes:
        image_column: Column of the path of the picture, if the files are tables.
        images: Folder of the pictures of tables; None: the folder of the table.
        max_pixels: Most pixels of a picture, against decompression bombs.
        format: Format of tables; None: the defaults of TableFormat.
        on_bad_row: Handling of a file that is no picture: "error", or "skip", which counts it.
    """

    can_mask: ClassVar[bool] = False

    image_column: str = "image"
    images: str | None = None
    max_pixels: int = MAX_PIXELS
    format: TableFormat | None = None
    on_bad_row: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("data.max_pixels", self.max_pixels, 1)

    def load(self) -> ReadSplits[UnlabelledPicture]:
        """Reads the headers of the pictures, and splits them.

        Raises:
            ConfigError: A folder does not exist, or Pillow is not installed.
            DataError: A table is missing or broken, a picture cannot be read and `on_bad_row` is "error", or a split
                would be empty.
        """
        rows = self.split(self.read_files(self._read, self.on_bad_row))
        return _with_warnings(rows, [row.picture for split in rows.splits.values() for row in split])

    def _read(self, path: Path, reading: Reading) -> list[UnlabelledPicture]:
        is_folder = path.is_dir()
        folder = PictureFolder(path if is_folder else self.images or path.parent, self.max_pixels)
        if is_folder:
            names = sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file())
            shown = [name for name in names if not any(part.startswith(".") for part in name.parts)]
            found = ((f"{path}, file {name}", name.as_posix()) for name in shown)
        else:
            rows = read_rows(path, [self.image_column], reading, self.format)
            found = ((f"{path}, {row.location}", row.values[self.image_column]) for row in rows)
        pictures = []
        for location, name in found:
            with reading.handling_bad_row():
                pictures.append(UnlabelledPicture(location, folder.find(location, name)))
        if not pictures and not reading.skipped:
            raise DataError(f"{path} has no pictures. Training needs some. Name a folder or a table with pictures.")
        return pictures


def _with_warnings(rows: ReadSplits[R], pictures: Iterable[PictureFile]) -> ReadSplits[R]:
    """Adds a warning about animated pictures to the facts of `train`."""
    facts = rows.facts["train"]
    warnings = [*facts.warnings, *animation_warnings(pictures)]
    return replace(rows, facts={**rows.facts, "train": replace(facts, warnings=warnings)})
