"""Renders pictures in all tests of this folder."""

import pytest


@pytest.fixture(autouse=True)
def _rendered(rendered):
    """Renders the pictures of a test."""
