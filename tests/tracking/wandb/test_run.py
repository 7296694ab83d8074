"""A run trained in two starts, as recorded by W&B: read from its offline files, and from a server that receives them.

The server is openwandb on loopback: CLOZE_TEST_OPENWANDB names its program (pip install openwandb==0.5.25, also in an
environment of its own).
"""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.tasks.commands import prepare, rows, succeed
from tests.support.tracking.wandb_files import read_segments

SERVER = os.environ.get("CLOZE_TEST_OPENWANDB")
TRACKED = ("logger=wandb", "logger.mode=offline", "logger.log_model=true", "logger.tags=[tiny]", "run.id=tracked")


@pytest.fixture(scope="module")
def tracked(tmp_path_factory) -> Path:
    """Returns a folder with the run: 16 steps, then 8 more."""
    folder = tmp_path_factory.mktemp("tracked")
    training = [*prepare("sequence_classification", folder), *TRACKED]
    for max_steps in (16, 24):
        succeed(folder, "train", *training, f"trainer.max_steps={max_steps}")
    return folder


def test_segments_have_one_id(tracked: Path) -> None:
    segments = read_segments(tracked / "runs" / "tracked")
    # Each start trains, and logs its model.
    assert [segment.run.run_id for segment in segments] == ["tracked"] * 4
    assert {(segment.run.project, segment.run.job_type) for segment in segments} == {("cloze", "train")}
    assert [list(segment.run.tags) for segment in segments] == [["tiny"]] * 4
    assert [segment.exit_code for segment in segments] == [0] * 4
    assert segments[0].config["trainer"]["max_steps"] == 16 and segments[2].config["trainer"]["max_steps"] == 24
    assert segments[0].num_system_rows > 0
    assert [row["_step"] for segment in segments for row in segment.history] == list(range(1, 25))
    logged = {row["_step"]: row for segment in segments for row in segment.history}
    for row in rows(tracked, "tracked"):
        assert {key: logged[row["step"]][key] for key in row if key != "step"} == {
            key: value for key, value in row.items() if key != "step"
        }


def test_plots_tables_and_report_are_logged_at_the_end(tracked: Path) -> None:
    run = tracked / "runs" / "tracked"
    folders = sorted((run / "wandb").glob("offline-run-*"))
    for index, step in ((0, 16), (2, 24)):
        last = read_segments(run)[index].history[-1]
        assert last["_step"] == step
        assert {key for key in last if key.startswith("plots/")} >= {"plots/loss", "plots/validation_confusion"}
        assert last["plots/loss"]["_type"] == "image-file"
        picture = folders[index] / "files" / last["plots/loss"]["path"]
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert (
            (folders[index] / "files" / last["report"]["path"])
            .read_text()
            .lstrip()
            .lower()
            .startswith("<!doctype html")
        )
    analysis = json.loads((run / "analysis" / "validation.json").read_text(encoding="utf-8"))
    last = read_segments(run)[2].history[-1]
    table = json.loads((folders[2] / "files" / last["validation/classes"]["path"]).read_text(encoding="utf-8"))
    assert table["columns"][0] == "label"
    assert [dict(zip(table["columns"], row, strict=True)) for row in table["data"]] == analysis["classes"]
    assert len(analysis["classes"]) == 2


def test_the_model_is_an_artifact(tracked: Path) -> None:
    run = tracked / "runs" / "tracked"
    for index, step in ((1, 16), (3, 24)):
        (artifact,) = (each for each in read_segments(run)[index].artifacts if each.type == "model")
        assert artifact.name == "model-tracked"
        assert json.loads(artifact.metadata)["steps"] == step
        names = {entry.path for entry in artifact.manifest.contents}
        assert names == {
            str(path.relative_to(run / "export")) for path in (run / "export").rglob("*") if path.is_file()
        }
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= names


@pytest.fixture
def server(tmp_path) -> Iterator[str]:
    """Starts a server and yields its address."""
    assert SERVER is not None
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {"HOME": str(tmp_path)}
    log = tmp_path / "server.log"
    with log.open("wb") as output:
        command = [SERVER, "serve", "--host", "127.0.0.1", "--port", str(port), "--data-dir", str(tmp_path / "data")]
        started = subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + 60
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert started.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        started.terminate()
        started.wait(timeout=30)


@pytest.mark.skipif(SERVER is None, reason="CLOZE_TEST_OPENWANDB names no server")
def test_a_server_has_one_run_both_online_and_synced(tracked: Path, server: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", server)
    monkeypatch.setenv("WANDB_API_KEY", "local0000000000000000000000000000000000000000")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    segments = sorted(map(str, (tracked / "runs" / "tracked" / "wandb").glob("offline-run-*")))
    command = [str(Path(sys.executable).with_name("wandb")), "sync", "--yes", *segments]
    synced = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200, cwd=tmp_path)
    assert synced.returncode == 0, synced.stderr
    training = [*prepare("sequence_classification", tmp_path), "logger=wandb", "run.id=online"]
    for max_steps in (16, 24):
        # Not in the warm processes of other tests, whose variables are older.
        command = [sys.executable, "-m", "framework.train", *training, f"trainer.max_steps={max_steps}"]
        trained = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert trained.returncode == 0, trained.stderr

    database = sqlite3.connect(tmp_path / "data" / "openwandb.db")
    assert {run_id for (run_id,) in database.execute("select run_id from runs")} == {"tracked", "online"}
    for run_id, folder in (("tracked", tracked), ("online", tmp_path)):
        losses = database.execute(
            "select step, value from metrics where run_id = ? and key = 'train/loss' order by step", [run_id]
        )
        assert losses.fetchall() == [(row["step"], row["train/loss"]) for row in rows(folder, run_id)]
        files = {name for (name,) in database.execute("select name from files where run_id = ?", [run_id])}
        assert {name.split("_")[0] for name in files} >= {"media/images/plots/loss", "media/html/report"}
        assert database.execute("select count(*) from system_metrics where run_id = ?", [run_id]).fetchone()[0]
        (config,) = database.execute("select config_json from runs where run_id = ?", [run_id]).fetchone()
        assert json.loads(config)["trainer"]["value"]["global_batch_size"] == 16
    artifacts = database.execute("select name, artifact_type from artifacts where run_id = ?", ["tracked"])
    assert "model" in {kind for _, kind in artifacts}
