"""`--help` shows the config files with their comments, and a reader that leaves early is no error."""

import os
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from framework.train import train

CONF = Path(__file__).resolve().parents[2] / "conf"


def leave_with(monkeypatch, *arguments: str) -> object:
    GlobalHydra.instance().clear()
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    try:
        train()
    except SystemExit as leaving:
        return leaving.code or 0
    return 0


@pytest.mark.parametrize("chosen", ["experiment/finetune_sst2", "trainer/default", "data/table", "train"])
def test_help_shows_the_comments_of_the_chosen_files(chosen, monkeypatch, capsys):
    assert leave_with(monkeypatch, "--help", "experiment=finetune_sst2") == 0
    told = capsys.readouterr()
    assert f"# {chosen}.yaml\n{(CONF / f'{chosen}.yaml').read_text(encoding='utf-8')}" in told.out
    assert told.err == "" and "schedule: constant, cosine, linear" in told.out


@pytest.mark.parametrize("arguments", [("--help",), ("--cfg", "job", "experiment=pretrain_demo")])
def test_a_reader_that_leaves_early_is_no_error(arguments, monkeypatch, capfd):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert leave_with(monkeypatch, *arguments) == 0
    assert capfd.readouterr().err == ""
