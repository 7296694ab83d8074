"""Weights & Biases: when it is imported, whether it goes online, and the data it gets; all without a network."""

import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from framework.errors import ConfigError
from framework.tracking.logger_config import LoggerConfig
from framework.tracking.wandb.logger import build_wandb_logger, has_credentials, wandb_run_id

_RUN = """
import sys
from pathlib import Path
from framework.tracking.wandb.logger import build_wandb_logger
from framework.tracking.logger_config import LoggerConfig
import framework.callbacks.standard
assert not any(name.split(".")[0] == "wandb" for name in sys.modules), "imported before a logger was built"
settings = LoggerConfig(wandb=True, group="sweep", tags=("a",))
logger = build_wandb_logger(Path(sys.argv[1]), "my run/7", {"seed": 3}, settings)
logger.log_metrics({"train/loss": 2.5}, step=12)
logger.log_metrics({"train/loss": 2.0}, step=13)
run = logger.experiment
print(run.id, run.offline, run.group, run.tags, run.config["seed"], run.summary["train/loss"])
logger.finalize("success")
import wandb
assert wandb.run is None, "the run was left open"
"""


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Removes all keys: an empty home, no variables of wandb."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_run_ids_use_the_alphabet_of_wandb():
    assert wandb_run_id("slurm-12_3") == "slurm-12_3"
    assert re.fullmatch("lr-0-1-gr--e-x-[0-9a-f]{8}", wandb_run_id("lr=0.1 größe/x"))
    assert len(wandb_run_id("a" * 200)) == 64


@pytest.mark.parametrize(
    "names", [("lr=1,seed=2", "lr-1-seed-2"), tuple("s" * 60 + f"-seed_{seed}" for seed in range(3)), ("a.b", "a-b")]
)
def test_different_runs_are_different_runs_at_wandb(names):
    ids = {wandb_run_id(name) for name in names}
    assert len(ids) == len(names) and all(re.fullmatch("[A-Za-z0-9_-]{1,64}", each) for each in ids)


def test_credentials_are_read_from_the_files_of_wandb(bare_environment: Path, monkeypatch: pytest.MonkeyPatch):
    assert not has_credentials()
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert has_credentials()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert not has_credentials()
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY")
    netrc = bare_environment / ".netrc"
    netrc.write_text("machine example.org login user password secret\n")
    netrc.chmod(0o600)
    assert not has_credentials()
    monkeypatch.setenv("WANDB_BASE_URL", "https://example.org")
    assert has_credentials()
    netrc.unlink()
    assert not has_credentials()
    settings = bare_environment / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\napi_key = k\n")
    assert has_credentials()


def test_an_unknown_mode_is_rejected(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"logger\.mode is 'sometimes'"):
        build_wandb_logger(tmp_path, "run", {}, LoggerConfig(wandb=True, mode="sometimes"))


def test_without_a_key_it_runs_offline_and_opens_no_connection(bare_environment: Path):
    attempts: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                attempts.append(str(connection.recv(200)))
                connection.close()

        listener = threading.Thread(target=listen, daemon=True)
        listener.start()
        proxy = f"http://127.0.0.1:{server.getsockname()[1]}"
        environ = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[3]), os.environ.get("PYTHONPATH", "")]),
            "WANDB_BASE_URL": proxy,
            "HTTP_PROXY": proxy,
            "HTTPS_PROXY": proxy,
            "ALL_PROXY": proxy,
            "NO_PROXY": "",
        }
        command = [sys.executable, "-c", _RUN, str(bare_environment)]
        finished = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
        server.shutdown(socket.SHUT_RDWR)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == "my-run-7-065347d7 True sweep ('a',) 3 2.5"
    assert attempts == []
    assert "wandb:" not in finished.stderr
    assert list(bare_environment.glob("wandb/offline-run-*my-run-7-065347d7/*.wandb"))


_UNREACHABLE = """
import sys, time
from pathlib import Path
from framework.tracking.wandb.logger import build_wandb_logger
from framework.tracking.logger_config import LoggerConfig
start = time.monotonic()
logger = build_wandb_logger(Path(sys.argv[1]), "far", {"seed": 3}, LoggerConfig(wandb=True))
logger.log_metrics({"train/loss": 2.5}, step=12)
logger.finalize("success")
print("offline" if logger.experiment.offline else "online", time.monotonic() - start < 60)
"""


@pytest.mark.parametrize("answers", [False, True], ids=["silent", "answers, but accepts no run"])
def test_a_key_without_a_server_is_tried_briefly_and_logged_offline(bare_environment: Path, answers: bool):
    with socket.create_server(("127.0.0.1", 0)) as server:
        if answers:  # only the first connection; the others are accepted and never answered
            threading.Thread(target=_answer_once, args=[server], daemon=True).start()
        environ = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[3]), os.environ.get("PYTHONPATH", "")]),
            "WANDB_BASE_URL": f"http://127.0.0.1:{server.getsockname()[1]}",
            "WANDB_API_KEY": "a" * 40,
            "WANDB_INIT_TIMEOUT": "2",
        }
        command = [sys.executable, "-c", _UNREACHABLE, str(bare_environment)]
        finished = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr
    first, last = finished.stdout.splitlines()
    assert first.startswith("W&B cannot be used (")
    assert ("does not answer within 2 s" in first) != answers, first
    assert first.endswith(f"Upload it later with `wandb sync {bare_environment}/wandb/offline-run-*`.")
    assert last == "offline True"
    assert "Traceback" not in finished.stderr
    assert len(list(bare_environment.glob("wandb/offline-run-*far/*.wandb"))) == 1


def _answer_once(server: socket.socket) -> None:
    connection, _ = server.accept()
    with connection:
        connection.recv(1_000)
        connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")


def test_secrets_of_the_command_line_do_not_reach_wandb(bare_environment: Path, monkeypatch: pytest.MonkeyPatch):
    line = [sys.executable, "-c", _RUN, str(bare_environment), "data.options.token=s3cret", "trainer.max_steps=7"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run(line, check=True, capture_output=True, env=environment, timeout=120)
    (file,) = (bare_environment / "wandb").glob("offline-run-*/*.wandb")
    assert b"trainer.max_steps=7" in file.read_bytes() and b"data.options.token=***hidden***" in file.read_bytes()
    assert b"s3cret" not in file.read_bytes()
