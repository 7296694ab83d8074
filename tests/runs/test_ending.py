"""A run that was killed after its last step is completed by its next start, and its report can be made at any time."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from framework.callbacks.cadence import Cadence
from framework.checkpoint.layout import complete_checkpoints, newest_complete, step_of
from framework.checkpoint.retention import Retention
from framework.config.schema import TrainerConfig
from framework.errors import CheckpointError
from framework.report import find_folder
from framework.runs.ending import complete_run
from framework.runs.folder import RunFolder
from framework.tracking.analysis.report import make_report
from tests.support.training.toy_run import ToyTask, train

CADENCE = Cadence(max_steps=6, log_every_n_steps=1, validate_every_n_steps=3, checkpoint_every_n_steps=1)
PLOTS = ["learning_rate.png", "loss.png", "throughput.png"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes a complete run with the checkpoints that a kill before the last pruning would have left."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    train(folder, cadence=CADENCE, retention=Retention(keep_last=6))
    trainer = TrainerConfig(
        max_steps=6, max_epochs=None, global_batch_size=6, micro_batch_tokens=24, keep_last=2, keep_best=0
    )
    saved = asdict(trainer) | {"freeze": []}
    (folder / "config.yaml").write_text(yaml.safe_dump({"trainer": saved}))
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "runs" / "toy"))


def complete(run: Path) -> None:
    checkpoints = run / "checkpoints"
    complete_run(RunFolder(run, checkpoints, newest_complete(checkpoints), is_new=False), ToyTask())


def plots(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "plots").glob("*"))


def test_missing_report_plots_and_pruning_are_made_later(run: Path):
    shutil.rmtree(run / "plots")
    (run / "report.html").unlink()
    complete(run)
    assert plots(run) == PLOTS
    assert "6 of 6" in (run / "report.html").read_text()
    assert [step_of(folder) for folder in complete_checkpoints(run / "checkpoints")] == [5, 6]


def test_a_report_that_is_older_than_the_summary_is_made_again(run: Path):
    os.utime(run / "report.html", (1e9, 1e9))
    complete(run)
    assert (run / "report.html").stat().st_mtime > 1e9
    before = (run / "report.html").stat().st_mtime_ns
    complete(run)
    assert (run / "report.html").stat().st_mtime_ns == before


def test_a_disk_that_rejects_the_report_costs_only_the_report(run: Path, capsys: pytest.CaptureFixture[str]):
    (run / "report.html").unlink()
    (run / "report.html").mkdir()
    complete(run)
    out = capsys.readouterr().out
    assert out.startswith(f"The report and checkpoints of {run} could not be completed (")
    assert out.endswith("Start the run again.\n")


def test_a_start_without_remaining_steps_keeps_the_speed_in_the_summary(run: Path):
    """The process was killed between its last checkpoint and summary.json."""
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").unlink()
    train(run, cadence=CADENCE, checkpoint=newest_complete(run / "checkpoints"))
    again = json.loads((run / "summary.json").read_text())
    assert again["ended"] == "finished"
    assert again["last"] == summary["last"]
    assert {"perf/tokens_per_second", "perf/memory_bytes", "train/loss", "val/loss"} <= again["last"].keys()


@pytest.mark.parametrize(
    "file", ["summary.json", "provenance.json", "config.yaml", "analysis/validation.json", "metrics.jsonl"]
)
@pytest.mark.parametrize("content", ["", "[1]", '{"a": 1}'])
def test_a_report_is_made_from_intact_files(tmp_path: Path, file: str, content: str):
    (tmp_path / "run" / "analysis").mkdir(parents=True)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.5}\n{"step": 2, "train/loss": 2.0}\n')
    (tmp_path / "run" / file).write_text(content)
    assert "<h1>run</h1>" in make_report(tmp_path / "run").read_text()


def test_the_command_finds_runs_by_id_and_folder(run: Path):
    runs = run.parent
    shutil.copytree(run, runs / "sweep" / "lr_1")
    assert find_folder("toy", runs) == find_folder(str(run), Path("elsewhere")) == run
    assert find_folder("lr_1", runs) == find_folder("sweep/lr_1", runs) == runs / "sweep" / "lr_1"
    shutil.copytree(run, runs / "other" / "lr_1")
    with pytest.raises(CheckpointError, match=r"lr_1 is the id of 2 runs: .*other/lr_1, .*sweep/lr_1\."):
        find_folder("lr_1", runs)
    with pytest.raises(CheckpointError, match="run=nix is not a run"):
        find_folder("nix", runs)
