"""Checks the launcher's variables on import, before Lightning, and reduces Ctrl-C to one line from then on.

Lightning (up to 2.6) parses RANK, LOCAL_RANK, SLURM_PROCID and JSM_NAMESPACE_RANK with `int` when it is imported. A bad
value would print a traceback before any code of a command runs. Imports take seconds, and Ctrl-C during them would
also print a traceback. The module of a command imports this module before all modules that import Lightning, and torch
only through the package. In a process that only uses the package, such as a notebook, a bad value raises an exception,
and nothing else changes.
"""

import os
import sys
from types import TracebackType

from framework.distributed.processes.environment import check_launcher
from framework.errors import DistributedError


def _show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.stderr.write("interrupted\n")
    else:
        sys.__excepthook__(kind, error, traceback)


_started = getattr(sys.modules["__main__"], "__spec__", None)
_is_command = _started is not None and _started.name.partition(".")[0] == "framework"
if _is_command:
    sys.excepthook = _show
try:
    check_launcher(os.environ)
except DistributedError as _error:
    if not _is_command:
        raise
    sys.stderr.write(f"{type(_error).__name__}: {_error}\n")
    sys.exit(_error.exit_code)
