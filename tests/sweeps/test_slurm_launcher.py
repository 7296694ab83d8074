"""Tests of settings that the SLURM launcher rejects, and of the script it writes. tests/integration runs sweeps."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from rich.console import Console

from framework.errors import ConfigError
from framework.sweeps import slurm
from framework.sweeps.closing import close_sweep
from framework.sweeps.outcome import Outcome
from framework.sweeps.plan import Job, Sweep
from framework.sweeps.slurm import SlurmLauncher
from framework.sweeps.slurm_script import batch_script
from framework.sweeps.slurm_time import limit_seconds

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"processes": 4, "gpus_per_node": 2},
            "hydra.launcher.processes is 4, but gpus_per_node is 2. Each process needs its own GPU.",
        ),
        ({"nodes": 0}, "`hydra.launcher.nodes` is 0. It must be at least 1"),
        ({"cpus_per_process": 1.5}, "hydra.launcher.cpus_per_process is 1.5. It must be an integer of at least 1."),
        (
            {"time": "00:02:00"},
            "hydra.launcher.time is 00:02:00, 120 seconds. It must be longer than hydra.launcher.save_seconds, 120",
        ),
        ({"time": 5, "save_seconds": 300}, "hydra.launcher.time is 5, 300 seconds"),
        ({"time": "4:00:00", "options": ["--time=1"]}, "hydra.launcher.time is 1, 60 seconds"),
        ({"time": "soon"}, "hydra.launcher.time is 'soon', which is no time limit of SLURM"),
        ({"options": "--partition=gpu"}, "'hydra.launcher.options=[\"--partition=gpu\"]'"),
        ({"poll_seconds": 0}, "`hydra.launcher.poll_seconds` is 0. It must be at least 0.1"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(given, message, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    with pytest.raises(ConfigError) as caught:
        SlurmLauncher(**given)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        (90, 5400),
        ("90", 5400),
        ("2:30", 150),
        ("04:00:00", 14400),
        ("1-2", 93600),
        ("1-2:03", 93780),
        ("1-2:03:04", 93784),
        ("UNLIMITED", None),
    ],
)
def test_time_limits_are_read_as_sbatch_reads_them(limit, seconds):
    assert limit_seconds(limit) == seconds


def test_the_sweep_line_of_the_page_can_be_read():
    page = (ROOT / "slurm" / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"hydra/launcher=slurm (.*)", page)
    parsed = OverridesParser.create().parse_overrides(shlex.split(line))
    assert {each.key_or_group: each.value() for each in parsed} == {
        "hydra.launcher.time": "04:00:00",
        "hydra.launcher.options": ["--partition=gpu"],
    }


def test_without_slurm_it_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="The command sbatch is not installed"):
        SlurmLauncher()


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_script_is_bash_and_keeps_signs_of_the_shell(nodes: int, tmp_path: Path):
    run = tmp_path / "a $(b) 'c'"
    training = ["-m", "framework.train", "run.id='x y'"]
    text = batch_script(run, "/opt/my python", training, nodes, 4, 2, 90, 3, ["module load cuda"])
    file = tmp_path / "job.sbatch"
    file.write_text(text)
    subprocess.run(["bash", "-n", str(file)], check=True)
    printed = subprocess.check_output(["bash", "-c", f'{text.split("module")[0]}\nprintf %s "$run"'], text=True)
    assert printed == str(run)
    assert "'/opt/my python' -m torch.distributed.run" in text
    assert f"--nnodes={nodes} --nproc-per-node=4" in text
    assert ("--standalone" in text) == (nodes == 1)


def test_a_job_that_waits_in_the_queue_is_pending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    jobs = [Job(tmp_path / name, {"seed": name}, (), {}, "min") for name in ("a", "b")]
    sweep = Sweep(tmp_path, ("seed",), tuple(jobs))
    outcomes = {job.id: Outcome("pending") for job in jobs}
    monkeypatch.setattr(slurm, "job_states", lambda numbers: {1: "PENDING", 2: "RUNNING"})
    slurm._follow(sweep, outcomes, {"a": 1, "b": 2}, Console(quiet=True), None)
    written = json.loads((tmp_path / "sweep.json").read_text())
    assert {each["run"]: each["state"] for each in written["jobs"]} == {"a": "pending", "b": "running"}
    assert written["ended"] == "running"
    close_sweep(sweep, {"a": Outcome("pending"), "b": Outcome("pending")}, Console(quiet=True))
    assert json.loads((tmp_path / "sweep.json").read_text())["ended"] == "running"
