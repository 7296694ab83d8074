"""Tests of errors about records that cannot be used."""

import json
import os

import pytest

from framework.errors import CheckpointError, DataError, reading_record


def test_a_damaged_record_is_named_with_the_reason(tmp_path):
    file = tmp_path / "record.json"
    file.write_text('{"step": 3}')
    message = rf"{file} is damaged \(KeyError: 'steps'\). Restore the file."
    with pytest.raises(CheckpointError, match=message), reading_record(file, "Restore the file"):
        json.loads(file.read_text())["steps"]


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_record_without_permission_is_not_called_damaged(tmp_path, monkeypatch, is_folder):
    """Root may read everything, so the error of the system is raised for the test."""
    file = tmp_path / "vocab.txt"

    def refuse(*_: object) -> str:
        raise PermissionError(13, os.strerror(13), str(file))

    name = f"the tokenizer in {tmp_path}" if is_folder else file
    message = rf"{file} cannot be read \(permission denied\). .* Change its permissions, or those of its folders."
    with pytest.raises(DataError, match=message), reading_record(name, "Restore its files", DataError):
        refuse()
