"""Marks that skip slow tests, and tests that need a GPU or a machine on which servers and networks can be started."""

import os
from collections.abc import Callable

import pytest
import torch

MACHINE = "needs root and apt"
"""First words of skip reasons that continuous integration rejects on a machine with root and apt; see .ci/run."""

IS_SLOW_WANTED = os.environ.get("CLOZE_SLOW_TESTS") == "1"

slow = pytest.mark.skipif(not IS_SLOW_WANTED, reason="slow: CLOZE_SLOW_TESTS=1 runs it")

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def machine(why_not: Callable[[], str | None], is_slow: bool = False) -> pytest.MarkDecorator:
    """Returns a mark that skips all tests of a file if the machine lacks something.

    Args:
        why_not: Function that installs missing programs and returns what is still missing, or None.
        is_slow: True for slow tests; if slow tests are not enabled, `why_not` is not called and installs nothing.
    """
    if is_slow and not IS_SLOW_WANTED:
        return slow
    reason = why_not()
    return pytest.mark.skipif(reason is not None, reason=f"{MACHINE}: {reason}")
