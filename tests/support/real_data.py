"""Finds the real data sets that some tests read; they are not part of the repository (tests/README.md lists them)."""

import os
from pathlib import Path

import pytest

_FOLDER = Path(__file__).resolve().parents[2] / os.environ.get("CLOZE_TEST_DATA", "../shared/data")


def real_data(name: str) -> Path:
    """Returns the path of a file or folder of the data sets, or a path pattern such as `ner/wnut17_*.conll`."""
    return _FOLDER / name


needs_real_data = pytest.mark.skipif(
    not _FOLDER.is_dir(),
    reason=f"needs the data sets of tests/README.md, and {_FOLDER} is no folder: set CLOZE_TEST_DATA to theirs",
)
