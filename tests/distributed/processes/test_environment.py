"""The identity of this process, and the id of a run."""

from pathlib import Path

import pytest

import framework.train
from framework.distributed.processes.environment import ProcessInfo, check_launcher, process_info, resolve_run_id
from framework.errors import ConfigError, DistributedError


def test_without_torchrun_there_is_one_process() -> None:
    assert process_info({}) == ProcessInfo(rank=0, local_rank=0, world_size=1, local_world_size=1)
    assert process_info({}).num_nodes == 1


def test_torchrun_on_two_hosts() -> None:
    info = process_info({"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"})
    assert info == ProcessInfo(rank=5, local_rank=1, world_size=8, local_world_size=4)
    assert info.num_nodes == 2


def test_uneven_hosts_are_rejected() -> None:
    with pytest.raises(DistributedError, match="runs 2 of 5 processes"):
        process_info({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "5", "LOCAL_WORLD_SIZE": "2"})


UUID = "0d1fd3a6-0b3c-4a4e-9d6c-2b0c3b7d7f11"


@pytest.mark.parametrize(
    ("given", "environ", "expected"),
    [
        ("mine", {"SLURM_JOB_ID": "7"}, "mine"),
        (None, {"SLURM_JOB_ID": "7", "TORCHELASTIC_RUN_ID": "job"}, "slurm-7"),
        (None, {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}, "slurm-7-2"),
        (None, {"TORCHELASTIC_RUN_ID": "job"}, "torchrun-job"),
        (None, {"TORCHELASTIC_RUN_ID": "none"}, "config-"),
        (None, {"TORCHELASTIC_RUN_ID": UUID}, "config-"),
        (None, {}, "config-"),
    ],
)
def test_run_id(given: str | None, environ: dict[str, str], expected: str) -> None:
    run_id = resolve_run_id(given, "identity", environ)
    assert run_id.startswith(expected) if expected.endswith("-") else run_id == expected


def test_run_id_is_a_function_of_the_identity() -> None:
    # sha256("identity") begins with 689f6a627384c7dc.
    assert resolve_run_id(None, "identity", {}) == "config-689f6a627384"
    assert resolve_run_id(None, "identity2", {}) != resolve_run_id(None, "identity", {})


@pytest.mark.parametrize("given", ["", "a/b", "../x", ".hidden", "a b", "a" * 300])
def test_run_id_must_name_a_folder(given: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a folder"):
        resolve_run_id(given, "identity", {})


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"RANK": "abc", "WORLD_SIZE": "2"}, r"RANK is 'abc' .* a whole number from 0 to 1\."),
        ({"RANK": "2", "WORLD_SIZE": "2"}, r"RANK is '2' .* from 0 to 1\."),
        ({"RANK": "0", "WORLD_SIZE": "-2"}, "WORLD_SIZE is '-2' .* of at least 1"),
        ({"RANK": "0", "WORLD_SIZE": "1.0"}, "WORLD_SIZE is '1.0'"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "4"}, "LOCAL_WORLD_SIZE is '4' .* from 1 to 2"),
        ({"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "2"}, "LOCAL_RANK is '2'"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is '2', but RANK is not set"),
        ({"RANK": "0", "WORLD_SIZE": ""}, "RANK is '0', but WORLD_SIZE is not set"),
    ],
)
def test_variables_of_a_launcher_are_checked(environ, words):
    with pytest.raises(DistributedError, match=words):
        check_launcher(environ)


def test_empty_variables_count_as_unset():
    assert process_info({"RANK": "", "WORLD_SIZE": ""}) == ProcessInfo()
    ranks = process_info({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": ""})
    assert ranks == ProcessInfo(rank=3, local_rank=1, world_size=4, local_world_size=2)


def test_lightning_does_not_see_an_empty_rank():
    environ = {"RANK": "", "LOCAL_RANK": "", "WORLD_SIZE": "", "SLURM_PROCID": "3"}
    check_launcher(environ)
    assert environ == {"SLURM_PROCID": "3"}
    with pytest.raises(DistributedError, match="SLURM_PROCID is 'abc'"):
        check_launcher({"SLURM_PROCID": "abc"})
    with pytest.raises(DistributedError, match="SLURM_NTASKS is 'x'"):
        check_launcher({"SLURM_NTASKS": "x"})


@pytest.mark.parametrize("command", ["train", "prepare", "evaluate", "predict", "export", "report", "preflight"])
def test_commands_check_the_variables_before_they_import_lightning(command):
    """Lightning reads RANK with `int` during its import."""
    source = (Path(framework.train.__file__).with_name(f"{command}.py")).read_text(encoding="utf-8")
    modules = [line.split()[1] for line in source.splitlines() if line.startswith(("import ", "from "))]
    own = [name for name in modules if name.startswith("framework.")]
    assert own[0] == "framework.distributed.processes.early_check"
    assert not any(name.startswith(("lightning", "torch")) for name in modules)


def test_one_process_is_assumed_after_lightning_has_removed_the_number_of_ranks():
    assert process_info({"RANK": "1", "LOCAL_RANK": "1"}) == ProcessInfo()
