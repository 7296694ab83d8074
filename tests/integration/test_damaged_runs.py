"""Tests of a damaged or crafted newest checkpoint for each command: it is reported, and the one before it is used."""

import json
import pickle
from pathlib import Path

import pytest
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from framework.checkpoint.integrity import mark_complete
from framework.checkpoint.tensors import read_index
from tests.support.commands.in_process import FINETUNE, TEXTS, assert_clear_error

FOUR_STEPS = [*FINETUNE, "trainer.max_steps=4", "trainer.checkpoint_every_n_steps=2", "trainer.keep_last=9"]
WEIGHTS_OF_RUN = [
    *(override for override in FOUR_STEPS if not override.startswith(("model.", "tokenizer.path"))),
    "model=from_weights",
    "tokenizer=from_weights",
]


def readers(source: str) -> dict[str, list[str]]:
    """Returns the arguments of every command that reads a checkpoint, by name."""
    return {
        "evaluate": ["evaluate", f"run={source}", "output=scores.json"],
        "predict": ["predict", f"run={source}", f"text={TEXTS[0]}"],
        "export": ["export", f"run={source}", "output=exported"],
        "init_from": ["train", *WEIGHTS_OF_RUN, "run.id=started", f"init_from={source}"],
        "resume": ["train", *FOUR_STEPS, "run.id=resumed", f"run.resume={source}"],
    }


@pytest.fixture
def checkpoints(here, call) -> Path:
    """Returns the folder of a run's checkpoints, after steps 2 and 4."""
    assert call("train", *FOUR_STEPS).code == 0
    folder = here / "runs" / "mine" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000002", "step_00000004"]
    return folder


def test_who_names_a_run_gets_the_checkpoint_before_a_damaged_one(checkpoints, call):
    shard = checkpoints / "step_00000004" / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1])
    for name, command in readers("runs/mine").items():
        outcome = call(*command)
        assert outcome.code == 0, (name, outcome.err)
        output = outcome.out if name == "resume" else outcome.err
        begin = "checkpoint" if name == "resume" else "runs/mine"
        (line,) = [line for line in output.splitlines() if "is damaged" in line]
        assert line.startswith(f"{begin}: step_00000004 is damaged (") and "bytes were written" in line, name
        assert line.endswith("; step_00000002 is used instead"), name
        if name == "predict":
            assert len(outcome.out.splitlines()) == 1 and json.loads(outcome.out)["text"] == TEXTS[0]
    assert (checkpoints / "step_00000004" / "COMPLETE").is_file(), "readers change nothing"


def test_who_names_a_checkpoint_gets_that_one_or_an_error(checkpoints, call):
    shard = checkpoints / "step_00000004" / "__0_0.distcp"
    shard.write_bytes(shard.read_bytes()[:-1])
    for name, command in readers("runs/mine/checkpoints/step_00000004").items():
        outcome = call(*command)
        message = "bytes were written. Use an older checkpoint."
        if name == "resume":  # the run folder exists then
            assert (outcome.code, message in outcome.err) == (2, True)
        else:
            assert_clear_error(outcome, message)
    assert call("evaluate", "run=runs/mine/checkpoints/step_00000002").code == 0


class Attack:
    """Object whose pickle creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.path}",)


def craft(folder: Path, kind: str, trace: Path) -> str:
    """Crafts a checkpoint that fits its own record but that no save writes, and returns the expected error message."""
    index = read_index(folder)
    messages = {"pickle": "holds more than tensors", "bytes": "is not a tensor", "path": "outside of the checkpoint"}
    if kind == "bytes":
        index.state_dict_metadata[next(iter(index.state_dict_metadata))] = BytesStorageMetadata()
    elif kind == "path":
        next(iter(index.storage_data.values())).relative_path = "../../../../secret"
    (folder / ".metadata").write_bytes(pickle.dumps(Attack(trace) if kind == "pickle" else index))
    (folder / "COMPLETE").unlink()
    mark_complete(folder)
    return messages[kind]


@pytest.mark.parametrize("kind", ["pickle", "bytes", "path"])
def test_no_way_of_reading_a_checkpoint_runs_what_it_holds(kind, checkpoints, call, tmp_path):
    for folder in checkpoints.iterdir():
        message = craft(folder, kind, tmp_path / "trace")
    (checkpoints.parent / "summary.json").unlink()
    ways = readers("runs/mine") | {"own resume": ["train", *FOUR_STEPS, "trainer.max_steps=6"]}
    for name, command in ways.items():
        outcome = call(*command)
        assert outcome.code == 2, name
        assert "No checkpoint in" in outcome.err and message in outcome.err and "do not trust" in outcome.err, name
    assert not (tmp_path / "trace").exists()


def test_a_run_goes_on_although_a_crash_has_emptied_its_records(checkpoints, call):
    run = checkpoints.parent
    before, rows = json.loads((run / "summary.json").read_text()), (run / "metrics.jsonl").read_bytes()
    for name in ("summary.json", "provenance.json"):
        (run / name).write_text("")
    outcome = call("train", *FOUR_STEPS)
    assert outcome.code == 0, outcome.err
    assert "summary.json is damaged (the file is empty)" in outcome.out
    assert "provenance.json is damaged (the file is empty)" in outcome.out
    after = json.loads((run / "summary.json").read_text())
    assert {name: after[name] for name in ("ended", "steps", "tokens", "best")} == {
        name: before[name] for name in ("ended", "steps", "tokens", "best")
    }
    assert (run / "metrics.jsonl").read_bytes() == rows
    assert call("export", "run=runs/mine", "output=exported").code == 0
