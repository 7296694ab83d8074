"""Runs sweeps by the command line's own `main`, with small stand-ins for the training jobs."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra

import framework.sweeps.torchrun as launching
from framework.config.command import start
from framework.sweeps.plan import Job

FAKE = Path(__file__).with_name("fake_training.py")
LINE = [
    *("--multirun", "experiment=pretrain_demo", "data.store=store", "tokenizer.path=tokenizer", "logger=none"),
    *("trainer.max_steps=12", "optimizer.lr=1e-3,2e-3", "seed=0,1"),
]
NAMES = [f"mine-lr_{lr}-seed_{seed}" for lr in ("0.001", "0.002") for seed in (0, 1)]


@dataclass
class Ended:
    code: int
    out: str
    err: str


@dataclass
class Sweeping:
    """Function object that starts sweeps.

    Attributes:
        roles: Behaviour of each job by run id; "finish" by default.
        metrics: Further final metrics of each job by run id.
        line: Command line, to which the overrides of a call are added.
        losses: Final loss of each job by run id; 2.0 by default.
        recorded_variables: Environment variables that each job records.
    """

    monkeypatch: pytest.MonkeyPatch
    capfd: pytest.CaptureFixture[str]
    roles: dict[str, str] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    line: list[str] = field(default_factory=lambda: list(LINE))
    recorded_variables: tuple[str, ...] = ()

    def command(self, _: object, job: Job, flags: object) -> list[str]:
        role = {
            "does": self.roles.get(job.id, "finish"),
            "metrics": self.metrics.get(job.id),
            "loss": self.losses.get(job.id, 2.0),
            "shown": self.recorded_variables,
        }
        (job.folder / "role.json").write_text(json.dumps({**role, "config": yaml.safe_dump(dict(job.config))}))
        return [sys.executable, "-S", str(FAKE), str(job.folder)]

    def __call__(self, *overrides: str, folder: str | None = "runs/mine") -> Ended:
        GlobalHydra.instance().clear()
        sweep_folder = [] if folder is None else [f"hydra.sweep.dir={folder}"]
        self.monkeypatch.setattr(sys, "argv", ["train", *self.line, *sweep_folder, *overrides])
        code = 0
        try:
            start("framework.train")
        except SystemExit as error:
            code = int(error.code or 0)
        captured = self.capfd.readouterr()
        return Ended(code, captured.out, captured.err)


@pytest.fixture
def sweep(tmp_path, monkeypatch, capfd) -> Sweeping:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(launching, "_POLL_SECONDS", 0.01)
    for module in ("launcher", "search"):
        # Stand-ins have no data to check. test_checks.py tests the checks.
        monkeypatch.setattr(f"framework.sweeps.{module}.check_jobs", lambda jobs, processes: None)
    sweeping = Sweeping(monkeypatch, capfd)
    monkeypatch.setattr(launching.TorchrunLauncher, "command", lambda *given: sweeping.command(*given))
    return sweeping


def results() -> dict:
    return json.loads(Path("runs/mine/sweep.json").read_text())


def states() -> dict[str, str]:
    return {each["run"]: each["state"] for each in results()["jobs"]}


def starts(run: str) -> list[dict[str, str]]:
    file = Path("runs/mine") / run / "starts"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
