"""`--help` shows the config files with their comments, and a reader that closes its end early is no error."""

import os
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from framework.config.command import start

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
        "\nexperiment: finetune_choice, " in output and "\nstrategy: ddp, fsdp2, fsdp2_tp, hsdp, single, tp\n" in output
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
