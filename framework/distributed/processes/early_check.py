"""Checks the launcher's variables when a command is imported, before Lightning.

Lightning (up to 2.6) reads RANK, LOCAL_RANK, SLURM_PROCID and JSM_NAMESPACE_RANK with `int` while it is imported. A bad
value would end in a traceback before any code of a command has run. Commands import this module first.
"""

import os
import sys

from framework.distributed.processes.environment import drop_empty_ranks, process_info
from framework.errors import DistributedError

try:
    drop_empty_ranks(os.environ)
    process_info()
except DistributedError as _error:
    sys.stderr.write(f"{type(_error).__name__}: {_error}\n")
    sys.exit(_error.exit_code)
