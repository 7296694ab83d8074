"""The lines about the data at the start of a run: printed on the first rank, with warnings in the log."""

import io
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from framework.callbacks.data_lines import DataLines
from framework.data.facts import SplitFacts

FACTS = {
    "train": SplitFacts(8, file="a/rows.csv", read=10, num_skipped=2, skipped=["a/rows.csv, row 3 (line 4): no text"]),
    "test": SplitFacts(1),
}


@pytest.mark.parametrize("is_first", [True, False])
def test_one_rank_prints_lines_and_warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture, is_first: bool):
    output = io.StringIO()
    callback = DataLines(FACTS, tmp_path, Console(file=output, width=40))
    with caplog.at_level(logging.WARNING):
        callback.on_fit_start(SimpleNamespace(is_global_zero=is_first), None)
    if not is_first:
        assert not output.getvalue() and not caplog.messages
        return
    assert output.getvalue().splitlines() == [
        "data: train  8 rows of 10 in rows.csv (2 skipped)",
        "data: test   1 rows (a share of train)",
    ]
    assert caplog.messages == [
        "2 of 10 rows of a/rows.csv are bad and are skipped. For example: a/rows.csv, row 3 (line 4): no text",
        f"All skipped rows are listed in {tmp_path / 'skipped_rows.jsonl'}.",
    ]
