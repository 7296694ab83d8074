"""Reads labelled pictures, with or without a text: tables that name files, and a folder of files per class."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from framework.data.examples.answers import AnswerKind
from framework.data.examples.table import LabelledText, TableData
from framework.data.personal_data.masking import TextMasking
from framework.data.reading.files import Reading
from framework.data.reading.images import MAX_PIXELS, PictureFile, PictureFolder
from framework.errors import ConfigError, check_at_least


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

    @property
    def field_columns(self) -> dict[str, str]:
        """Returns the columns of the picture and of the text."""
        return {"image": self.image_column} | ({} if self.text_column is None else {"text": self.text_column})

    def group(self, record: LabelledText) -> tuple[str, ...]:
        """Returns the name of the picture, because all rows with one picture belong to the same split."""
        assert isinstance(record, LabelledPicture)
        return (record.name,)

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
