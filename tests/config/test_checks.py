"""Rules between parts of a config that need no file."""

import re
from dataclasses import replace

import pytest

from framework.config.checks import check_tensor_parallel
from framework.errors import ConfigError
from framework.models.config import EncoderConfig

CONFIG = EncoderConfig(
    family="bert",
    vocab_size=30522,
    hidden_size=768,
    num_layers=1,
    num_heads=12,
    intermediate_size=3072,
    max_position_embeddings=512,
)


def test_ranks_that_share_products_take_whole_heads():
    for size in (1, 2, 3, 4, 6, 12):
        check_tensor_parallel(CONFIG, size)
    for size in (5, 8, 24):
        expected = f"model.num_heads=12 cannot be shared by {size} ranks, since each takes whole heads; set "
        with pytest.raises(ConfigError, match=re.escape(expected) + r".* one of 1, 2, 3, 4, 6, 12\."):
            check_tensor_parallel(CONFIG, size)


@pytest.mark.parametrize("name", ["vocab_size", "intermediate_size"])
def test_every_rank_has_some_words_and_channels(name: str):
    # 10 in 4 parts: 3, 3, 3, 1; 9 in 4 parts: 3, 3, 3 and nothing.
    check_tensor_parallel(replace(CONFIG, **{name: 10}), 4)
    with pytest.raises(
        ConfigError, match=f"model.{name}=9 cannot be shared by 4 ranks, since parts of 3 leave nothing"
    ):
        check_tensor_parallel(replace(CONFIG, **{name: 9}), 4)
