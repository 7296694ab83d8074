"""Tests that the data engine has no stateful random generator: every draw is a hash of a key."""

import re
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "framework" / "data"
STATEFUL = re.compile(
    r"np\.random|numpy\.random|default_rng|RandomState|torch\.(manual_seed|rand|randn|randint|randperm|bernoulli)\b"
    r"|\.(random|normal|multinomial|bernoulli)_\(|^\s*(import|from) (random|secrets)\b|\.shuffle\(|uuid4|\burandom\b",
    re.MULTILINE,
)


@pytest.mark.parametrize("file", sorted(DATA.rglob("*.py")), ids=lambda file: file.name)
def test_no_global_random_state(file):
    assert STATEFUL.search(file.read_text(encoding="utf-8")) is None


@pytest.mark.parametrize(
    "line",
    ["np.random.rand(3)", "rng = np.random.default_rng(0)", "import random", "torch.randperm(5)", "x.bernoulli_(0.5)"],
)
def test_it_would_be_seen(line):
    assert STATEFUL.search(f"import numpy as np\n{line}\n")


def test_what_is_allowed_is_not_taken_for_it():
    assert (
        STATEFUL.search("from framework.random import mix\nrandom_ids = random_integers(mix(1, x), 5)\nself.shuffle.x")
        is None
    )
