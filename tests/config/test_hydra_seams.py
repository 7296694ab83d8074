"""`--help` shows the config files with their comments, and the config of a job is composed once."""

import os
import sys
from pathlib import Path

import hydra
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode

from framework.config.command import start
from framework.config.hydra_seams import GroupSweepLoader
from framework.config.resolvers import register_resolvers

CONF = Path(__file__).resolve().parents[2] / "conf"


def leave_with(monkeypatch, *arguments: str, command: str = "train") -> object:
    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", [command, *arguments])
    try:
        start(f"framework.{command}")
    except SystemExit as leaving:
        return leaving.code or 0
    return 0


@pytest.mark.parametrize("chosen", ["experiment/finetune_sst2", "trainer/default", "data/table", "train"])
def test_help_shows_the_comments_of_the_chosen_files(chosen, monkeypatch, capsys):
    assert leave_with(monkeypatch, "--help", "experiment=finetune_sst2") == 0
    output = capsys.readouterr()
    assert f"# {chosen}.yaml\n{(CONF / f'{chosen}.yaml').read_text(encoding='utf-8')}" in output.out
    assert output.err == "" and "schedule: constant, cosine, linear" in output.out


@pytest.mark.parametrize(
    ("command", "groups"),
    [
        ("prepare", ["corpus", "vocabulary"]),
        ("evaluate", ["data", "precision"]),
        ("audit", ["audit", "data", "precision"]),
        ("export", []),
    ],
)
def test_help_offers_the_groups_of_the_command_and_no_bases(command, groups, monkeypatch, capsys):
    assert leave_with(monkeypatch, "--help", command=command) == 0
    lines = capsys.readouterr().out.partition("== Files")[0].partition("==\n")[2].split("\n")
    offered = dict(line.split(": ") for line in lines if line)
    assert list(offered) == groups
    assert not [name for options in offered.values() for name in options.split(", ") if name.startswith("_")]


def test_help_of_training_offers_no_group_of_prepare(monkeypatch, capsys):
    assert leave_with(monkeypatch, "--help") == 0
    output = capsys.readouterr().out
    assert "\ncorpus: " not in output and "\nvocabulary: " not in output
    assert (
        "\nexperiment: clue, continue_pretraining, " in output
        and "\nstrategy: ddp, fsdp2, fsdp2_tp, hsdp, single, tp\n" in output
    )


def test_help_names_the_keys_that_a_base_belongs_to(monkeypatch, capsys):
    assert leave_with(monkeypatch, "--help", "experiment=finetune_sst2") == 0
    assert "# data/_format.yaml, keys of data.format\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "offered"),
    [(("experiment=pretrain_demo", "strategy=dpd"), "ddp, fsdp2, fsdp2_tp, hsdp, single, tp"), ((), "finetune_choice")],
)
def test_messages_offer_options_and_no_bases(arguments, offered, monkeypatch, capsys):
    assert leave_with(monkeypatch, *arguments) == 2
    output = capsys.readouterr().err
    assert offered in output and " _" not in output


@pytest.mark.parametrize("arguments", [("--help",), ("--cfg", "job", "experiment=pretrain_demo")])
def test_a_reader_that_closes_early_is_no_error(arguments, monkeypatch, capfd):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert leave_with(monkeypatch, *arguments) == 0
    assert capfd.readouterr().err == ""


def test_a_job_is_composed_once_and_as_hydra_composes_it(monkeypatch):
    register_resolvers()
    composed = []
    compose = ConfigLoaderImpl._load_configuration_impl
    monkeypatch.setattr(
        ConfigLoaderImpl,
        "_load_configuration_impl",
        lambda self, **given: composed.append(given["run_mode"]) or compose(self, **given),
    )
    line = ["experiment=pretrain_demo", "seed=7"]
    job = [*line, "hydra.mode=RUN"]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        search_path = GlobalHydra.instance().config_loader().config_search_path
        expected = ConfigLoaderImpl(search_path).load_configuration("train", job, RunMode.RUN)
        loader = GroupSweepLoader(search_path)
        # Hydra's calls for a command line: the mode, then the job.
        asked = loader.load_configuration("train", line, RunMode.MULTIRUN, validate_sweep_overrides=False)
        assert asked.hydra.mode is None
        assert loader.load_configuration("train", job, RunMode.RUN) == expected
        assert composed == [RunMode.RUN] * 2
        # Another line is composed anew, and a sweep as one.
        other = loader.load_configuration("train", [job[0], "seed=8", job[2]], RunMode.RUN)
        assert (other.seed, expected.seed) == (8, 7)
        swept = [line[0], "seed=1,2"]
        asked = loader.load_configuration("train", swept, RunMode.MULTIRUN, validate_sweep_overrides=False)
        assert asked.hydra.overrides.task == swept and composed[-1] == RunMode.MULTIRUN
        with pytest.raises(HydraException, match="add --multirun"):
            loader.load_configuration("train", [*swept, job[2]], RunMode.RUN)
