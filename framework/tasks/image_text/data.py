"""Pictures with captions: rows of a table that name a picture file and hold a text; validated and split."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from framework.data.examples.answers import require_text
from framework.data.examples.splits import R, ReadSplits, SplitFiles, same_text
from framework.data.personal_data.masking import TextMasking
from framework.data.reading.files import Reading
from framework.data.reading.images import MAX_PIXELS, PictureFile, PictureFolder, animation_warnings
from framework.data.reading.rows import read_rows
from framework.data.reading.table_format import TableFormat
from framework.errors import check_at_least


@dataclass(frozen=True, slots=True)
class CaptionedPicture:
    """One row (`framework.data.examples.splits.Record`).

    Attributes:
        location: File, row and line, for messages.
        picture: Picture.
        caption: Text as in the file.
        answer: None: rows have no label.
    """

    location: str
    picture: PictureFile
    caption: str
    answer: None = None

    @property
    def identity(self) -> tuple[str, ...]:
        """Returns the path of the picture and the normalised caption."""
        return (self.picture.name, same_text(self.caption))

    def masked(self, masking: TextMasking) -> "CaptionedPicture":
        """Returns the row with a masked caption."""
        return replace(self, caption=masking.text(self.caption))


@dataclass(frozen=True)
class CaptionedImages(SplitFiles):
    """Rows of a picture and its caption. A picture with several captions has several rows, which fall into one split.

    Attributes:
        image_column: Column of the path of the picture, relative to `images`.
        text_column: Column of the caption.
        images: Folder of the pictures, which no path may leave; None: the folder of the file `train`.
        max_pixels: Most pixels of a picture.
        format: Format of the files. None: the defaults of TableFormat.
        on_bad_row: Handling of a row that is broken, has no caption or no picture that can be read: "error" stops,
            "skip" drops and counts the row. A picture whose pixels turn out to be damaged during training stops the
            run, because splits are planned from the headers of the files.
    """

    image_column: str = "image"
    text_column: str = "text"
    images: str | None = None
    max_pixels: int = MAX_PIXELS
    format: TableFormat | None = None
    on_bad_row: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("data.max_pixels", self.max_pixels, 1)

    def group(self, record: R) -> tuple[str, ...]:
        """Returns the path of the picture."""
        return record.identity[:1]

    @property
    def field_columns(self) -> dict[str, str]:
        """Returns the columns of the picture and of the caption."""
        return {"image": self.image_column, "text": self.text_column}

    def load(self) -> ReadSplits[CaptionedPicture]:
        """Reads, checks and splits the rows. Of the pictures it reads only the headers.

        Raises:
            ConfigError: The folder of the pictures does not exist, or Pillow is not installed.
            DataError: A file is missing, empty or damaged, or lacks a column; a row is bad and `on_bad_row` is "error";
                or a split would be empty.
        """
        folder = PictureFolder(Path(self.train).parent if self.images is None else self.images, self.max_pixels)
        rows = self.split(self.read_files(lambda path, reading: self._read(path, folder, reading), self.on_bad_row))
        facts = rows.facts["train"]
        warnings = animation_warnings(row.picture for split in rows.splits.values() for row in split)
        return replace(rows, facts={**rows.facts, "train": replace(facts, warnings=[*facts.warnings, *warnings])})

    def _read(self, path: Path, folder: PictureFolder, reading: Reading) -> list[CaptionedPicture]:
        rows = []
        for row in read_rows(path, [self.image_column, self.text_column], reading, self.format):
            with reading.handling_bad_row():
                rows.append(self._row(f"{path}, {row.location}", row.values, folder))
        return rows

    def _row(self, location: str, values: Mapping[str, str], folder: PictureFolder) -> CaptionedPicture:
        for column in (self.image_column, self.text_column):
            require_text(location, column, values[column])
        return CaptionedPicture(location, folder.find(location, values[self.image_column]), values[self.text_column])
