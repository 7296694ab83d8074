"""What the SLURM launcher refuses, and the script that it writes; whole sweeps are in tests/integration."""

import shutil
import subprocess
from pathlib import Path

import pytest

from framework.errors import ConfigError
from framework.sweeps.slurm import SlurmLauncher
from framework.sweeps.slurm_script import batch_script


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"processes": 4, "gpus_per_node": 2}, "processes=4 on each node need as many GPUs, but gpus_per_node is 2"),
        ({"nodes": 0}, "`hydra.launcher.nodes` is 0, but it must be at least 1"),
        ({"cpus_per_process": 1.5}, "`hydra.launcher.cpus_per_process` is 1.5, but it must be a whole number"),
        ({"poll_seconds": 0}, "`hydra.launcher.poll_seconds` is 0, but it must be at least 0.1"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(given, words, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    with pytest.raises(ConfigError) as caught:
        SlurmLauncher(**given)
    assert words in str(caught.value)


def test_without_slurm_it_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="needs the command sbatch, which is not found"):
        SlurmLauncher()


@pytest.mark.parametrize("nodes", [1, 2])
def test_the_script_is_bash_and_keeps_signs_of_the_shell(nodes: int, tmp_path: Path):
    run = tmp_path / "a $(b) 'c'"
    training = ["-m", "framework.train", "run.id='x y'"]
    text = batch_script(run, "/opt/my python", training, nodes, 4, 2, 90, 3, ["module load cuda"])
    file = tmp_path / "job.sbatch"
    file.write_text(text)
    subprocess.run(["bash", "-n", str(file)], check=True)
    shown = subprocess.check_output(["bash", "-c", f'{text.split("module")[0]}\nprintf %s "$run"'], text=True)
    assert shown == str(run)
    assert "'/opt/my python' -m torch.distributed.run" in text
    assert f"--nnodes={nodes} --nproc-per-node=4" in text
    assert ("--standalone" in text) == (nodes == 1)
