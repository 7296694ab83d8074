"""Records that a crash has emptied or truncated: they count as missing, are reported, and are kept."""

import json
from pathlib import Path

import pytest

from framework.runs.folder import RunFolder, write_start
from framework.runs.record_files import read_starts, report_damaged_records
from framework.tracking.summary_file import read_summary, write_summary

SUMMARY = {
    "ended": "finished",
    "why": None,
    "steps": 2,
    "max_steps": 2,
    "tokens": 90,
    "wall_seconds": 1.5,
    "tokens_per_second": None,
    "last": {"val/loss": 0.5},
    "best_metric": "val/loss",
    "best": None,
}
DAMAGED = ["", "{", "[]", "null", "{}", "\0\0\0\0", '{"ended": "finished"}', '{"starts": []}', '{"starts": [3]}']


def start(run_folder: Path, commit: str) -> None:
    folder = RunFolder(run_folder, run_folder / "checkpoints", None, is_new=False)
    write_start(folder, {"seed": 0}, {"commit": commit, "fingerprints": {"data": "d"}}, {})


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_record_is_reported_and_replaced(content: str, tmp_path: Path, capsys):
    write_summary(tmp_path, SUMMARY)
    start(tmp_path, "1")
    assert read_summary(tmp_path) == SUMMARY
    report_damaged_records(tmp_path)
    assert capsys.readouterr().out == ""

    (tmp_path / "summary.json").write_text(content)
    (tmp_path / "provenance.json").write_text(content)
    assert read_summary(tmp_path) is None and read_starts(tmp_path) == []
    report_damaged_records(tmp_path)
    said = capsys.readouterr().out.splitlines()
    extent = f"({len(content)} bytes that are not a valid record)" if content else "(the file is empty)"
    assert [f"{name} is damaged {extent}" in line for name, line in zip(("y.json", "e.json"), said, strict=True)] == [
        True,
        True,
    ]
    assert (tmp_path / "provenance.json.damaged").read_text() == content
    start(tmp_path, "2")
    assert [each["commit"] for each in read_starts(tmp_path)] == ["2"]


def test_starts_are_added_in_their_order(tmp_path: Path):
    for commit in ("1", "2", "3"):
        start(tmp_path, commit)
    assert [each["commit"] for each in read_starts(tmp_path)] == ["1", "2", "3"]
    assert json.loads((tmp_path / "provenance.json").read_text())["starts"][2]["commit"] == "3"
