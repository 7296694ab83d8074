"""Settings of further training sets beside the data of a run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from framework.data.reading.table_format import TableFormat
from framework.errors import ConfigError


@dataclass(frozen=True)
class MoreTexts:
    """A further training set. The columns mean the same as in TextPairData.

    Attributes:
        train: Training file or BEIR folder.
        share: Share of the training steps, greater than 0 and below 1.
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
    text_column: str = "text"
    pair_column: str | None = "pair"
    score_column: str | None = None
    label_column: str | None = None
    negative_columns: list[str] = field(default_factory=list)
    format: TableFormat | None = None
    on_bad_row: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(
                f"`share` of a set of data.more is {self.share}. It must be above 0 and below 1. Correct it."
            )


def check_shares(more: Mapping[str, MoreTexts]) -> None:
    """Checks that further sets leave steps for the data itself.

    Raises:
        ConfigError: The sum of their shares is 1 or more.
    """
    total = sum(each.share for each in more.values())
    if total >= 1:
        raise ConfigError(
            f"the shares of data.more have the sum {total:g}. The rest is the share of data.train, so the sum must be "
            "below 1. Lower the shares."
        )
