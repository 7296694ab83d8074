"""Tests of launch/lib/elastic_agent.py with stand-ins for ranks: restarts, exit codes and the last output line."""

import importlib.util
import signal
import sys
from pathlib import Path

import pytest
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

ROOT = Path(__file__).resolve().parents[2]
NOTE = ROOT / "framework" / "distributed" / "processes" / "launcher_note.py"


@pytest.fixture
def agent(monkeypatch):
    monkeypatch.setattr(LocalElasticAgent, "_monitor_workers", LocalElasticAgent._monitor_workers)
    spec = importlib.util.spec_from_file_location("agent_under_test", ROOT / "launch" / "lib" / "elastic_agent.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
    }
    yield module
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("body", "starts", "code", "last"),
    [
        ("write_note('ConfigError: no such key', 'ConfigError', None); sys.exit(2)", 1, 2, "ConfigError: no such key"),
        ("write_note('CheckpointError: full', 'CheckpointError', None); sys.exit(2)", 1, 2, "CheckpointError: full"),
        ("write_note('DistributedError: gone', 'DistributedError', 7); sys.exit(2)", 2, 1, "DistributedError: gone"),
        ("os.kill(os.getpid(), 9)", 2, 1, "was killed by SIGKILL without reporting an error. See its output above."),
        ("", 1, 0, None),
    ],
)  # fmt: skip
def test_errors_that_stay_are_not_tried_again(body, starts, code, last, agent, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rank = tmp_path / "rank.py"
    rank.write_text(
        f"import os, sys\nsys.path.insert(0, {str(NOTE.parent)!r})\nfrom launcher_note import write_note\n"
        f"with open({str(tmp_path / 'starts')!r}, 'a') as stream:\n    stream.write('x')\n{body}\n"
    )
    given = ["--standalone", "--nproc-per-node", "1", "--max-restarts", "1", "--monitor-interval", "0.02"]
    program = ["--no-python", sys.executable, "-S", str(rank)]
    assert agent.main([*given, *program]) == code
    assert (tmp_path / "starts").read_text() == "x" * starts
    lines = capfd.readouterr().err.splitlines()
    assert last is None or lines[-1].endswith(last)
    assert not any("Traceback" in line for line in lines)
