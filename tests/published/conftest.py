"""A published folder and its weights."""

import pytest

from framework.published.pretrained import load_pretrained
from tests.support.models import peers


@pytest.fixture
def folder(tmp_path):
    """Returns a complete BertForPreTraining folder, written by transformers."""
    peers.peer("BertForPreTraining", "bert").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def weights(folder):
    """Returns the weights of the folder under our names."""
    return load_pretrained(str(folder))
