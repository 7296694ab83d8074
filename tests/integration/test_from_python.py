"""The doors for Python: commands called in this process, and trained models that predict and embed."""

import json
import logging
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import framework.evaluate
import framework.export
import framework.train
from framework.errors import ConfigError, DataError
from tests.tasks.commands import prepare

SMALL = ("trainer.max_steps=2", "trainer.val_every_n_steps=2", "trainer.report_examples=0", "run.id=one")


@dataclass(frozen=True)
class Trained:
    """A run of a task's example, trained by `framework.train.run`.

    Attributes:
        folder: Run folder.
        returned: Result of the call, made in the folder above `runs`.
        before: State of this process before the call.
        after: State of this process after it.
    """

    folder: Path
    returned: Path
    before: dict[str, object]
    after: dict[str, object]


def process_state() -> dict[str, object]:
    """Everything about this process that a command may change while it runs and must put back."""
    return {
        "signals": [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "handlers": list(logging.getLogger().handlers),
        "level": logging.getLogger("framework").level,
        "hydra": (GlobalHydra.instance().is_initialized(), HydraConfig.initialized()),
        "environment": dict(os.environ),
        "excepthook": sys.excepthook,
        "arguments": list(sys.argv),
        "folder": Path.cwd(),
    }


def train_small(task: str, folder: Path, *overrides: str) -> Trained:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = [*prepare(task, folder), *SMALL, *overrides]
        before = process_state()
        returned = framework.train.run(words)
        return Trained(folder / "runs" / "one", returned, before, process_state())


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Trained:
    return train_small("sequence_classification", tmp_path_factory.mktemp("classifier"), "strategy=ddp")


@pytest.fixture(scope="module")
def embedder(tmp_path_factory, classifier) -> Trained:
    """The second training of this process, in a thread, as some notebooks do it."""
    del classifier
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(train_small, "embedding", tmp_path_factory.mktemp("embedder")).result()


@pytest.mark.parametrize("name", ["classifier", "embedder"])
def test_training_returns_the_run_folder_and_leaves_the_process_as_it_was(name, request):
    trained = request.getfixturevalue(name)
    assert trained.returned == Path("runs/one")
    assert json.loads((trained.folder / "summary.json").read_text())["ended"] == "finished"
    assert trained.after == trained.before


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (["trainer.max_stepz=3"], ConfigError, "did you mean `max_steps`"),
        (["strategy=fsdp3"], ConfigError, "Available options in 'strategy'"),
        (["--multirun"], ConfigError, "`--multirun` is an option of the command line"),
        (["seed=1,2"], ConfigError, "seed"),
        (["data.train=nowhere.csv"], DataError, "nowhere.csv cannot be read"),
    ],
)
def test_a_command_from_python_raises(overrides, error, words, tmp_path, monkeypatch):
    given = [*prepare("sequence_classification", tmp_path), *SMALL, *overrides]
    monkeypatch.chdir(tmp_path)
    before = process_state()
    with pytest.raises(error, match=words):
        framework.train.run(given)
    assert process_state() == before and not (tmp_path / "runs").exists()


def test_evaluation_and_export_return_their_results(classifier, monkeypatch, capsys):
    monkeypatch.chdir(classifier.folder.parents[1])
    run = classifier.folder
    values = framework.evaluate.run([f"run={run}", "split=validation", "report=false", "precision=fp32"])
    summary = json.loads((run / "summary.json").read_text())["last"]
    assert values["accuracy"] == pytest.approx(summary["val/accuracy"])
    folder = framework.export.run([f"run={run}", "compare=false"])
    assert folder == run / "export" and (folder / "model.safetensors").is_file()
    capsys.readouterr()
