"""Settings of further data sets beside the data of a run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from framework.data.reading.table_format import TableFormat
from framework.errors import ConfigError, FrameworkError


@dataclass(frozen=True)
class MoreTexts:
    """A further data set. The columns mean the same as in TextPairData.

    Attributes:
        train: Training file or BEIR folder.
        share: Share of the training steps, greater than 0 and below 1.
        validation: File, BEIR folder or list of BEIR folders, whose metrics have the name of the set as prefix; None:
            the set is not validated.
        test: The same for the test split.
        text_column: Column of the text.
        pair_column: Column of the second text; None: texts are labelled or single.
        score_column: Column of the number; None: pairs are matches.
        label_column: Column of the label; None: texts come in pairs or are single.
        negative_columns: Columns of hard negatives.
        format: Format of the file; None: the defaults of TableFormat.
        on_bad_row: Handling of a bad row.
    """

    train: str
    share: float
    validation: str | list[str] | None = None
    test: str | list[str] | None = None
    text_column: str = "text"
    pair_column: str | None = "pair"
    score_column: str | None = None
    label_column: str | None = None
    negative_columns: list[str] = field(default_factory=list)
    format: TableFormat | None = None
    on_bad_row: Literal["error", "skip"] = "error"


@contextmanager
def naming_set(name: str) -> Iterator[None]:
    """Returns a context that adds the name of a set to errors on its settings and files."""
    try:
        yield
    except FrameworkError as error:
        raise type(error)(f"data.more.{name}: {error}") from error


def check_shares(more: Mapping[str, MoreTexts]) -> None:
    """Checks the shares of further sets, and that they leave steps for the data itself.

    Raises:
        ConfigError: A share is out of range, or their sum is 1 or more.
    """
    for name, each in more.items():
        if not 0 < each.share < 1:
            raise ConfigError(
                f"data.more.{name}: `share` is {each.share}. It must be above 0 and below 1. Correct it, or remove the "
                "set."
            )
    total = sum(each.share for each in more.values())
    if total >= 1:
        raise ConfigError(
            f"the shares of data.more have the sum {total:g}. The rest is the share of data.train, so the sum must be "
            "below 1. Lower the shares."
        )
