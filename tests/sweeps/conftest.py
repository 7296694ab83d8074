"""Fixtures for sweeps: stand-ins for jobs, and a folder of tiny data for checked jobs."""

from tests.support.commands.in_process import here, tokenizer_folder  # noqa: F401
from tests.support.sweeps.sweeping import sweep  # noqa: F401
