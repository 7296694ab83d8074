"""Fixtures for commands with damaged input."""

from tests.support.commands.in_process import call, here, tokenizer_folder  # noqa: F401
