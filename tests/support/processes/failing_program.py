"""Run as several ranks in a test: fails as its arguments say and reports it, where told to through a run folder."""

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
# All ranks fail together: the grace of the report is shorter than the start of a process on a busy machine may differ.
ready = Path(os.environ["CLOZE_TEST_READY"])
(ready / os.environ["RANK"]).touch()
while len(list(ready.iterdir())) < int(os.environ["WORLD_SIZE"]):
    time.sleep(0.005)
report_once(ERRORS[sys.argv[1]])
