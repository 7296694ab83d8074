"""When tests are skipped that take minutes, or that need a GPU or a machine where servers and networks can be made."""

import os
from collections.abc import Callable

import pytest
import torch

MACHINE = "needs root and apt"
"""How the reasons begin for which continuous integration accepts no skip on a machine that has both; see .ci/run."""

IS_SLOW_WANTED = os.environ.get("CLOZE_SLOW_TESTS") == "1"

slow = pytest.mark.skipif(not IS_SLOW_WANTED, reason="slow: CLOZE_SLOW_TESTS=1 runs it")

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def machine(why_not: Callable[[], str | None], is_slow: bool = False) -> pytest.MarkDecorator:
    """A mark for all tests of a file.

    Args:
        why_not: Installs what is missing and says what is missing still; None: nothing is.
        is_slow: Nothing is installed for what does not run.
    """
    if is_slow and not IS_SLOW_WANTED:
        return slow
    reason = why_not()
    return pytest.mark.skipif(reason is not None, reason=f"{MACHINE}: {reason}")
