"""Run as several ranks in a test: fails as its arguments say and reports it, where told to through a run folder."""

import sys
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
report_once(ERRORS[sys.argv[1]])
