"""Program that a test runs as several ranks. It fails as its first argument says and reports the failure.

A second argument names a run folder through which it reports.
"""

import os
import sys
import time
from pathlib import Path

from framework.distributed.processes.beats import Beats
from framework.distributed.processes.failure_report import REPORT, report_once
from framework.errors import ConfigError

ERRORS = {
    "named": ConfigError("a config error"),
    "other": RuntimeError("a broken connection"),
    "broken": RuntimeError("[gloo/transport/tcp/pair.cc:1] Connection closed by peer [127.0.0.1]:9"),
}

if len(sys.argv) > 2:
    folder = Path(sys.argv[2])
    REPORT.open(folder, folder, folder / "no.log", Beats(folder, 0.1))
# All ranks fail together: on a busy machine, start times may differ by more than the grace period of the report.
ready = Path(os.environ["CLOZE_TEST_READY"])
(ready / os.environ["RANK"]).touch()
while len(list(ready.iterdir())) < int(os.environ["WORLD_SIZE"]):
    time.sleep(0.005)
report_once(ERRORS[sys.argv[1]])
