"""Run as several ranks in a test: fails as its arguments say and reports it."""

import sys

from framework.distributed.failure_report import report_once
from framework.errors import ConfigError

kind = sys.argv[1]
report_once(ConfigError("a config error") if kind == "named" else RuntimeError("a broken connection"))
