"""Tests that with trainer.report_examples=0 a training run writes no text of its data into any file."""

from pathlib import Path

import pytest

from tests.support.commands.in_process import FINETUNE, TEXTS, write_rows

BAD = ['it\'s a "Geheimnis"', "Geheimnis"]


@pytest.mark.parametrize("examples", [0, 20])
def test_a_skipped_row_is_quoted_only_where_examples_are_shown(here, call, examples):
    labels = [str(number % 7) for number in range(len(TEXTS))]
    write_rows(here / "rows.csv", TEXTS, labels)
    with (here / "rows.csv").open("a") as file:
        file.writelines(f'a film,"{cell.replace(chr(34), chr(34) * 2)}"\n' for cell in BAD)
    line = ["task.problem=regression", "data.on_bad_row=skip", f"trainer.report_examples={examples}"]
    outcome = call("train", *FINETUNE, *line)
    assert outcome.code == 0, outcome.err
    written = [path.read_bytes() for path in Path("runs").rglob("*") if path.is_file()]
    texts = [outcome.out.encode(), outcome.err.encode(), *written]
    assert any(b"Geheimnis" in text for text in texts) == (examples > 0)
    rows = Path("runs/mine/skipped_rows.jsonl").read_text()
    assert rows.count("rows.csv") == 2 and '"row": 33' in rows and '"row": 34' in rows
    if not examples:
        assert rows.count("'label' is (not shown). It must be a number. Correct or remove the row.") == 2
