"""Bars show amount, rate and time left on a terminal; a log file gets a line for each pass."""

import io
import re

import pytest
from rich.console import Console

from framework.tracking import pass_bars as module
from framework.tracking.pass_bars import pass_bars


@pytest.mark.parametrize("is_terminal", [True, False])
def test_bars(monkeypatch, is_terminal):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=is_terminal, width=100)
    monkeypatch.setattr(module, "open_console", lambda stderr: console)
    now = iter(range(100))
    monkeypatch.setattr(console, "get_time", lambda: float(next(now)))
    with pass_bars("MB", 1e6) as advance:
        advance("read", 500_000, 3_000_000)
        for done in (1_000_000, 1_500_000, 2_000_000):
            advance("read", done, 3_000_000)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    if is_terminal:
        assert re.search(r"read .* 67% 2\.0/3\.0 MB, \d\.\d/s 0:00:\d\d", shown), shown
    else:
        assert shown == "read: 3.0 MB\n"
    with pass_bars("rows", is_shown=False) as advance:
        advance("read", 1, 2)
