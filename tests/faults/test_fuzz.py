"""Tests of random keys with random values: a command passes its checks, or ends with one error, code 2 and no file.

CLOZE_FUZZ_CASES sets the number of cases per test (default 40), CLOZE_FUZZ_SEED the seed.
"""

import os
import random
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from framework.config.identity import flatten
from framework.config.resolvers import conf_folder, register_resolvers
from tests.support.commands.in_process import FINETUNE, files_below

CASES = int(os.environ.get("CLOZE_FUZZ_CASES", "40"))
SEED = int(os.environ.get("CLOZE_FUZZ_SEED", "0"))
SECONDS = 60
VALUES = (
    *("null", "true", "-1", "0", "1.5", "nan", "inf", "-inf", "1e30", "1e-400", "999999999999", "2024-01-01", "NO"),
    *("abc", "''", "'a b'", "a/b", "é中文", "'*'", "???", "rows.csv", ".", "/dev/null"),
    *("[]", "{}", "[1,2]", "[null]", "[[1]]", "{a: 1}", "${oc.env:NOT_SET}", "${no_such_key}"),
)


@pytest.fixture
def deadline() -> Iterator[None]:
    """Fails a case that hangs."""

    def late(*_: object) -> None:
        raise TimeoutError(f"no answer after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def keys_and_groups(overrides: list[str]) -> list[str]:
    """Returns every key and every group of keys of a composed config."""
    register_resolvers()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = OmegaConf.to_container(compose("train", overrides), resolve=False)
    keys = list(flatten(config))
    groups = {key.rsplit(".", depth)[0] for key in keys for depth in range(1, key.count(".") + 1)}
    return sorted({*keys, *groups} - {"check"})


def test_no_value_of_any_key_ends_in_a_traceback_or_harms_a_file(here, call, deadline):
    line = [*FINETUNE, "check=true"]
    keys, choose = keys_and_groups(line), random.Random(SEED)
    before = files_below(here)
    for _ in range(CASES):
        override = f"{choose.choice(keys)}={choose.choice(VALUES)}"
        signal.alarm(SECONDS)
        outcome = call("train", *line, override)
        passed = outcome.code == 0 and outcome.out.startswith("check passed")
        refused = outcome.code == 2 and outcome.err.count("\n") == 1 and "Error" in outcome.err.split(":")[0]
        assert passed or refused, (override, outcome)
        assert outcome.files == before, override


def damage(file: Path, kind: str, choose: random.Random) -> None:
    """Damages a file as disks, editors and other programs do."""
    content = file.read_bytes()
    if kind == "empty":
        file.write_bytes(b"")
    elif kind == "half":
        file.write_bytes(content[: len(content) // 2])
    elif kind == "bit":
        index = choose.randrange(len(content))
        file.write_bytes(content[:index] + bytes([content[index] ^ (1 << choose.randrange(8))]) + content[index + 1 :])
    elif kind == "other JSON":
        file.write_text(choose.choice(["[]", "{}", "null", '"text"', "1e999", '{"a": [1]}', "[" * 5000]))
    elif kind == "binary":
        file.write_bytes(choose.randbytes(200))
    else:
        file.unlink()
        if kind == "folder":
            file.mkdir()


DAMAGES = ("empty", "half", "bit", "other JSON", "binary", "gone", "folder")


def readers() -> dict[str, list[str]]:
    text = ["text=a good film"]
    line = [each for each in FINETUNE if not each.startswith(("model.", "tokenizer.path", "run.id", "experiment"))]
    start = ["experiment=finetune_demo", *line, "model=from_weights", "tokenizer=from_weights", "check=true"]
    return {
        "predict a run": ["predict", "run=runs/mine", *text],
        "predict an export": ["predict", "run=runs/mine/export", *text],
        "evaluate": ["evaluate", "run=runs/mine", "output=scores.json"],
        "export": ["export", "run=runs/mine", "output=exported"],
        "init_from a run": ["train", *start, "run.id=second", "init_from=runs/mine"],
        "init_from an export": ["train", *start, "run.id=second", "init_from=runs/mine/export"],
        "resume": ["train", *FINETUNE, "trainer.max_steps=4", "check=true"],
        "start again": ["train", *FINETUNE, "trainer.max_steps=4"],
    }


def test_no_damaged_file_ends_in_a_traceback(here, call, deadline):
    assert call("train", *FINETUNE).code == 0
    assert call("export", "run=mine").code == 0
    shutil.copytree("runs", "as_written", symlinks=True)
    files = sorted(str(path.relative_to("as_written")) for path in Path("as_written").rglob("*") if path.is_file())
    choose = random.Random(SEED)
    for _ in range(CASES):
        file, kind = choose.choice([each for each in files if not each.endswith(".png")]), choose.choice(DAMAGES)
        name, command = choose.choice(list(readers().items()))
        shutil.rmtree("runs")
        shutil.copytree("as_written", "runs", symlinks=True)
        if not Path("runs", file).stat().st_size:
            continue
        damage(Path("runs", file), kind, choose)
        signal.alarm(SECONDS)
        outcome = call(*command)
        case = f"{name}: {file} {kind}"
        assert outcome.code in (0, 2), (case, outcome)
        assert "Traceback" not in outcome.out + outcome.err, (case, outcome)
        if outcome.code == 2:
            assert re.search(r"^[A-Z][a-z]+Error[:( ]", outcome.err, re.MULTILINE), (case, outcome)
