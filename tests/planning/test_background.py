"""A training is planned in another process while it runs, and is compared with its plan."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import pytest

from framework import train
from framework.errors import ConfigError
from framework.planning import background
from framework.planning.background import BackgroundPlan, planned_phases
from framework.runs.folder import read_config
from tests.support.commands.in_process import FINETUNE, LABELS, TEXTS, train_vocabulary, write_rows
from tests.support.needs import slow
from tests.support.processes.alive import ends, is_alive

RUN = [*FINETUNE, "hardware=cpu", "trainer.log_every_n_steps=1", "trainer.report_examples=null"]


class InProcess:
    """Process whose work is done when it starts."""

    def __init__(self, command: list[str], stdin: IO[bytes], stdout: IO[bytes], env: dict[str, str], **_: Any) -> None:
        assert command == [sys.executable, "-m", "framework.planning.background", str(os.getpid())]
        assert env["CUDA_VISIBLE_DEVICES"] == "" and "RANK" not in env
        written = io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdin", stdin)
            patch.setattr(sys, "stdout", written)
            patch.setattr(os, "nice", lambda _: 0)
            patch.setattr(sys, "argv", command[2:])
            patch.setattr(background, "end_with", lambda _: None)
            background.main()
        stdout.write(written.getvalue().encode())

    def poll(self) -> int:
        return 0

    def kill(self) -> None:
        pass

    def wait(self) -> int:
        return 0


def use(monkeypatch: pytest.MonkeyPatch, start: Any) -> None:
    """Makes plans start their process with a function."""
    monkeypatch.setattr(background, "subprocess", SimpleNamespace(Popen=start, STDOUT=subprocess.STDOUT))


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    train_vocabulary(TEXTS, 80, tmp_path / "tokenizer")
    write_rows(tmp_path / "rows.csv", TEXTS, LABELS)
    return tmp_path


def check_compared(folder: Path, out: str) -> None:
    planned = re.search(r"^planned: a step takes .* tensors of rank 0 need 0\.\d\d MB at the peak$", out, re.MULTILINE)
    assert planned, out
    assert re.search(r"^measured: a step took .*% of the planned time$", out, re.MULTILINE)
    last = json.loads((folder / "summary.json").read_text())["last"]
    # Weights, gradients and two moments of 4 bytes for each of the parameters, and activations.
    assert 1e5 < last["plan/memory_bytes"] < 1e6
    assert last["plan/step_ratio"] == pytest.approx(last["perf/step_seconds"] / last["plan/step_seconds"], rel=0.5)
    assert "plan/memory_ratio" not in last


def test_a_training_is_compared_with_its_plan(
    rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use(monkeypatch, InProcess)
    folder = train.run(RUN)
    check_compared(folder, capsys.readouterr().out)
    # A start in this folder would be refused: it has rows and no checkpoint, as a run before its first checkpoint.
    shutil.rmtree(folder / "checkpoints")
    with BackgroundPlan(json.dumps([read_config(folder), 1, 1]), is_made=True) as plan:
        planned = plan.poll()
    assert isinstance(planned, dict) and list(planned) == [""]


@slow
def test_a_real_process_plans_the_same(rows: Path) -> None:
    config = read_config(train.run([*FINETUNE, "hardware=cpu", "trainer.report_examples=null"]))
    with BackgroundPlan(json.dumps([config, 1, 1]), is_made=True) as plan:
        assert plan._process is not None
        plan._process.wait(timeout=200)
        assert plan.poll() == planned_phases(config, 1, 1)


def test_only_the_first_rank_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, None)
    with BackgroundPlan("[]", is_made=False) as plan:
        assert plan.poll() is None


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("print('ConfigError: no such task')", "ConfigError: no such task"),
        ("raise ValueError('no text')", "ValueError: no text"),
        ("import os; os._exit(9)", "its process ended without a result"),
        (None, "its process could not be started"),
    ],
)
def test_a_failure_is_a_reason(program: str | None, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(command: list[str], **settings: Any) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(["/nowhere"] if program is None else [sys.executable, "-c", program], **settings)

    use(monkeypatch, started)
    with BackgroundPlan("[]", is_made=True) as plan:
        if plan._process is not None:
            plan._process.wait()
        result = plan.poll()
    assert isinstance(result, str) and result.startswith(reason)


def test_the_process_ends_with_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, lambda _, **settings: subprocess.Popen(["sleep", "600"], **settings))
    with BackgroundPlan("[]", is_made=True) as plan:
        process = plan._process
        assert process is not None and plan.poll() is None
    assert process.returncode is not None


def test_the_process_ends_with_a_killed_training() -> None:
    planning = (
        "import sys, time; from framework.planning.background import end_with; end_with(int(sys.argv[1])); "
        "print('watches', flush=True); time.sleep(600)"
    )
    training = (
        "import os, subprocess, sys, time\n"
        f"process = subprocess.Popen([sys.executable, '-c', {planning!r}, str(os.getpid())])\n"
        "print(process.pid, flush=True)\n"
        "time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", training], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert process.stdout.readline() == "watches\n" and is_alive(pid)
        process.kill()
    assert ends(pid, 30)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["hardware=h100"], "hardware=H100 is a cuda device, but this run trains on cpu"),
        (["hardware.memory_gb=0"], "hardware.memory_gb is 0"),
        (["hardware.memory=8"], "unknown config key `hardware.memory`"),
    ],
)
def test_a_wrong_device_is_rejected_before_training(rows: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        train.run([*RUN, *overrides])
    assert message in str(caught.value)
    assert not (rows / "runs").exists()


def test_a_check_accepts_the_hardware_of_another_machine(rows: Path) -> None:
    train.run([*RUN, "hardware=h100", "check=true"])
