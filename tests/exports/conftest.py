"""Tokenizers for exports."""

import pytest

from tests.support.exports.small_exports import CONFIGS, make_tokenizer


@pytest.fixture(scope="session")
def tokenizer_dirs(tmp_path_factory):
    """Returns by family a WordPiece tokenizer with fewer words than the models have rows (a padded vocabulary)."""
    return {family: make_tokenizer(tmp_path_factory.mktemp(family), CONFIGS[family].pad_token_id) for family in CONFIGS}
