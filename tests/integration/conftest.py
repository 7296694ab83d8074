"""Fixtures for commands: a folder of tiny data, calls in this process, and a token store."""

from tests.support.commands.in_process import call, here, run, tokenizer_folder  # noqa: F401
from tests.support.commands.torchrun import corpus  # noqa: F401
