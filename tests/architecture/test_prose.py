"""Docstrings of framework/ and of the tests follow the rules of the project's prose."""

import pytest

from tests.support.architecture.imports import FILES, ROOT
from tests.support.architecture.prose import docstring_faults, findings


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_docstrings_read_well(file):
    assert list(findings(file)) == []


def test_docstrings_of_tests_read_well():
    files = sorted((ROOT / "tests").rglob("*.py"))
    assert len(files) > 300 and [each for file in files for each in findings(file)] == []


@pytest.mark.parametrize(
    ("text", "name", "number"),
    [
        ("What a run needs.", "Needs", 1),
        ("Whether it ended.", "ended", 1),
        ("Of the encoder.", "config", 1),
        ("Returns whether it ended.", "ended", 0),
        ("The tokenizer.", "tokenizer", 1),
        ("Returns the tokens.", "tokens", 1),
        ("Returns 1.", "after_warmup", 0),
        ("Token ids of a split.", "tokens", 0),
        ("Builds it.\n\n    Args:\n        config: Of the encoder.\n        seed: Seed.\n", "build", 1),
        ("Builds it.\n\n    Args:\n        config: Encoder configuration.\n", "build", 0),
        ("Keeps it.\n\n    Attributes:\n        a: What it is.\n        b: Whether it is.\n", "Keeper", 2),
        ("Gives it.\n\n    Returns:\n        Of the same shape.\n", "give", 0),
    ],
)
def test_faults_are_detected(text, name, number):
    assert len(list(docstring_faults(text, name))) == number
