"""Row files that are truncated, torn and continued."""

import json
from pathlib import Path

import pytest

from framework.errors import CheckpointError
from framework.tracking.metrics_jsonl import MetricsFile, read_rows

ROWS = b'{"step": 1, "train/loss": 4.0}\n{"step": 2, "train/loss": 3.0}\n{"step": 4, "val/loss": 2.5}\n'


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_rows_are_on_disk_after_each_append(tmp_path: Path):
    path = tmp_path / "new" / "metrics.jsonl"
    file = MetricsFile(path)
    file.append({"step": 1, "train/loss": 0.1})
    assert path.read_bytes() == b'{"step": 1, "train/loss": 0.1}\n'
    file.append({"step": 2, "train/loss": float("nan"), "optim/lr": float("inf")})
    assert json.loads(path.read_text().splitlines()[1]) == {"step": 2, "train/loss": None, "optim/lr": None}


@pytest.mark.parametrize(("resume_step", "num_lines"), [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (9, 3)])
def test_rows_past_the_resume_step_are_cut_and_the_others_keep_their_bytes(
    tmp_path: Path, resume_step: int, num_lines: int
):
    path = written(tmp_path / "metrics.jsonl", ROWS)
    MetricsFile(path, resume_step).close()
    assert path.read_bytes() == b"".join(ROWS.splitlines(keepends=True)[:num_lines])


@pytest.mark.parametrize("torn", [b'{"step": 4, "tra', b'{"step": 4, "train/loss": 1.0}', b'{"st\n', b"\0\0\0\0"])
def test_a_torn_last_line_is_cut(tmp_path: Path, torn: bytes):
    path = written(tmp_path / "metrics.jsonl", ROWS + torn)
    assert [row["step"] for row in read_rows(path)] == [1, 2, 4]
    file = MetricsFile(path, resume_step=9)
    file.append({"step": 5})
    assert path.read_bytes() == ROWS + b'{"step": 5}\n'


def test_another_file_is_rejected_and_not_changed(tmp_path: Path):
    content = b"my notes\n" + ROWS
    path = written(tmp_path / "metrics.jsonl", content)
    with pytest.raises(CheckpointError, match=r"metrics.jsonl, line 1: not a JSON object with an integer 'step'"):
        MetricsFile(path, resume_step=1)
    assert path.read_bytes() == content


def test_a_missing_file_has_no_rows(tmp_path: Path):
    assert read_rows(tmp_path / "metrics.jsonl") == []
