"""Run folders: the runs that may use one, the identity of a run, and the files written into the folder."""

import json
from itertools import pairwise

import pytest
import yaml
from omegaconf import OmegaConf

from framework.config.identity import check_same_run, identity, identity_text
from framework.config.run_config import RunConfig
from framework.errors import CheckpointError, ConfigError
from framework.runs.folder import (
    find_checkpoint,
    find_run_folder,
    read_config,
    read_task_record,
    write_start,
)
from framework.runs.weights import find_run
from tests.support.files.no_rename import NoRenameFileSystem

CONFIG = {
    "seed": 0,
    "init_from": None,
    "model": {"hidden_size": 8, "num_heads": 2},
    "data": {"_target_": "x.Y", "labels": ["a", "b"]},
    "trainer": {
        "max_steps": 10,
        "max_epochs": None,
        "global_batch_size": 4,
        "global_batch_tokens": None,
        "batch_warmup_start": None,
        "batch_warmup_steps": None,
        "num_workers": 0,
    },
    "strategy": {"name": "single"},
}


def changed(**values):
    flat = OmegaConf.create(CONFIG)
    for key, value in values.items():
        OmegaConf.update(flat, key.replace("__", "."), value)
    return OmegaConf.to_container(flat)


def test_the_identity_contains_all_keys_that_affect_the_numbers():
    assert identity(CONFIG) == {
        "seed": 0,
        "init_from": None,
        "model.hidden_size": 8,
        "model.num_heads": 2,
        "data._target_": "x.Y",
        "data.labels": ["a", "b"],
        "trainer.global_batch_size": 4,
        "trainer.global_batch_tokens": None,
        "trainer.batch_warmup_start": None,
        "trainer.batch_warmup_steps": None,
    }
    assert identity_text(CONFIG) == identity_text(changed(trainer__max_steps=20, strategy__name="ddp"))
    assert identity_text(CONFIG) != identity_text(changed(seed=1))


@pytest.mark.parametrize(
    "values", [{"strategy__name": "fsdp2"}, {"trainer__num_workers": 2}, {"trainer__max_steps": 11}]
)
def test_free_keys_may_change(values):
    assert identity(changed(**values)) == identity(CONFIG)
    check_same_run("runs/x", CONFIG, changed(**values))


def test_an_empty_key_is_the_same_run_as_one_without_the_key():
    assert identity_text(CONFIG) == identity_text(changed(trainer__freeze=[]))
    check_same_run("runs/x", CONFIG, changed(trainer__freeze=[]))
    check_same_run("runs/x", changed(trainer__freeze=[]), CONFIG)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"trainer__freeze": ["encoder.*"]}, "`trainer.freeze` was None and is now .'encoder.*'."),
        ({"seed": 1}, "`seed` was 0 and is now 1"),
        ({"model__hidden_size": 16}, "`model.hidden_size` was 8 and is now 16"),
        ({"trainer__batch_warmup_steps": 7}, "`trainer.batch_warmup_steps` was None and is now 7"),
        ({"trainer__batch_warmup_start": 7}, "`trainer.batch_warmup_start` was None and is now 7"),
        ({"trainer__global_batch_tokens": 7}, "`trainer.global_batch_tokens` was None and is now 7"),
        ({"data__labels": ["a"]}, "`data.labels` was"),
        ({"data__extra": 1}, "`data.extra` was None and is now 1"),
        (
            {"trainer__max_steps": 9},
            "`trainer.max_steps` is 9, but the run in runs/x was started with 10. This key may only grow",
        ),
    ],
)
def test_another_run_is_rejected_by_name(values, words):
    with pytest.raises(ConfigError, match=words):
        check_same_run("runs/x", CONFIG, changed(**values))


def test_a_new_folder_is_written_once_and_found_again(tmp_path):
    run = RunConfig(id="x", dir=str(tmp_path))
    folder = find_run_folder(run, [CONFIG])
    assert (folder.path, folder.checkpoint, folder.is_new) == (tmp_path / "x", None, True)
    assert not folder.path.exists()
    write_start(folder, CONFIG, {"commit": "1", "fingerprints": {}}, {"labels": ["a"]})
    again = find_run_folder(run, [CONFIG])
    assert not again.is_new
    write_start(again, CONFIG, {"commit": "2", "fingerprints": {}}, {"labels": ["a"]})
    assert read_task_record(folder.path) == {"labels": ["a"]}
    assert read_config(folder.path) == CONFIG == yaml.safe_load((folder.path / "config.yaml").read_text())
    assert [start["commit"] for start in json.loads((folder.path / "provenance.json").read_text())["starts"]] == [
        "1",
        "2",
    ]


def test_a_foreign_or_used_folder_is_rejected_and_not_changed(tmp_path):
    run = RunConfig(id="x", dir=str(tmp_path))
    write_start(find_run_folder(run, [CONFIG]), CONFIG, {}, {})
    before = {path: path.read_bytes() for path in (tmp_path / "x").iterdir()}
    with pytest.raises(ConfigError, match="belongs to another config"):
        find_run_folder(run, [changed(seed=5)])
    with pytest.raises(ConfigError, match=r"`run\.resume` is never"):
        find_run_folder(RunConfig(id="x", dir=str(tmp_path), resume="never"), [CONFIG])
    assert {path: path.read_bytes() for path in (tmp_path / "x").iterdir()} == before


def test_resume_from_a_path_without_a_checkpoint_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="contains no complete checkpoint"):
        find_run_folder(RunConfig(id="x", dir=str(tmp_path), resume=str(tmp_path)), [CONFIG])


def test_the_newest_complete_checkpoint_is_resumed(tmp_path):
    run = RunConfig(id="x", dir=str(tmp_path))
    for step, complete in ((2, True), (4, True), (6, False)):
        step_folder = tmp_path / "x" / "checkpoints" / f"step_{step:08d}"
        step_folder.mkdir(parents=True)
        if complete:
            (step_folder / "COMPLETE").touch()
    assert find_run_folder(run, [CONFIG]).checkpoint == tmp_path / "x" / "checkpoints" / "step_00000004"


def complete(folder, step):
    (folder / f"step_{step:08d}").mkdir(parents=True)
    (folder / f"step_{step:08d}" / "COMPLETE").touch()


def test_checkpoints_may_be_kept_in_another_folder(tmp_path):
    elsewhere = RunConfig(id="x", dir=str(tmp_path / "runs"), checkpoints=str(tmp_path / "big"))
    folder = find_run_folder(elsewhere, [CONFIG])
    assert (folder.checkpoints, folder.checkpoint) == (tmp_path / "big" / "x", None)
    config = CONFIG | {"run": {"checkpoints": f"file://{tmp_path}/big"}}
    write_start(folder, config, {}, {})
    complete(tmp_path / "big" / "x", 2)
    assert find_run_folder(elsewhere, [CONFIG]).checkpoint == tmp_path / "big" / "x" / "step_00000002"
    assert find_checkpoint(tmp_path / "runs" / "x") == (tmp_path / "big" / "x" / "step_00000002", True)
    assert find_checkpoint(tmp_path / "big" / "x") == (tmp_path / "big" / "x" / "step_00000002", True)
    assert find_run(str(tmp_path / "big" / "x" / "step_00000002"), tmp_path / "runs") == (
        tmp_path / "runs" / "x",
        tmp_path / "big" / "x" / "step_00000002",
    )


def test_checkpoints_in_another_folder_are_not_forgotten(tmp_path):
    inside = RunConfig(id="x", dir=str(tmp_path))
    moved = RunConfig(id="x", dir=str(tmp_path), checkpoints=str(tmp_path / "big"))
    write_start(find_run_folder(inside, [CONFIG]), CONFIG, {}, {})
    assert find_run_folder(moved, [CONFIG]).checkpoint is None, "there is nothing to forget yet"
    complete(tmp_path / "x" / "checkpoints", 4)
    complete(tmp_path / "big" / "x", 2)
    with pytest.raises(
        ConfigError, match=r"which contains checkpoints only up to step_00000002, but .* up to step_00000004 in"
    ):
        find_run_folder(moved, [CONFIG])
    complete(tmp_path / "big" / "x", 4)
    assert find_run_folder(moved, [CONFIG]).checkpoint == tmp_path / "big" / "x" / "step_00000004"


def test_a_storage_that_does_not_answer_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(NoRenameFileSystem, "unreachable", True)
    run = RunConfig(id="x", dir=str(tmp_path), checkpoints=f"norename://{tmp_path}/big")
    with pytest.raises(CheckpointError, match=r"/big/x cannot be read \(no answer\)\. Make it readable"):
        find_run_folder(run, [CONFIG])


def test_a_new_run_does_not_use_checkpoints_that_may_be_another_s(tmp_path):
    complete(tmp_path / "big" / "x", 2)
    folder = {"id": "x", "dir": str(tmp_path / "runs"), "checkpoints": str(tmp_path / "big")}
    for resume in ("auto", "never"):
        with pytest.raises(ConfigError, match=r"may belong to another run. .* run\.resume=.*/big/x/step_00000002"):
            find_run_folder(RunConfig(**folder, resume=resume), [CONFIG])
    named = str(tmp_path / "big" / "x" / "step_00000002")
    assert str(find_run_folder(RunConfig(**folder, resume=named), [CONFIG]).checkpoint) == named


def test_a_changed_default_is_no_other_run_if_the_data_are_the_same():
    saved, now = ({"data": {"format": {"quote": quote}, "train": "a.csv"}} for quote in ('"', "auto"))
    check_same_run("runs/mine", saved, now)
    with pytest.raises(ConfigError, match=r"data\.format\.quote"):
        check_same_run("runs/mine", now, saved)


@pytest.mark.parametrize("start", ["a: &a [*a]\nb: *a\n", "a: &a [x,x,x,x,x,x,x,x]\n"])
def test_a_config_whose_aliases_stand_for_billions_of_values_is_an_error(tmp_path, start):
    lines = [f"{now}: &{now} [{','.join([f'*{before}'] * 8)}]" for before, now in pairwise("abcdefghijklm")]
    (tmp_path / "config.yaml").write_text(start + "\n".join(lines))
    with pytest.raises(CheckpointError, match="contains more than 1,000,000 values"):
        read_config(tmp_path)
