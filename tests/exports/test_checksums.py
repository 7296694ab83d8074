"""The checksums of an export's files, and the changes that are rejected."""

import hashlib
import json
from pathlib import Path

import pytest
from torch import nn

from framework.errors import CheckpointError
from framework.exports.huggingface import export_huggingface
from framework.exports.model_card import RunFacts
from framework.published.pretrained import load_pretrained
from tests.support.exports.random_models import random_model
from tests.support.exports.small_exports import CONFIGS

FACTS = RunFacts("run", {}, {}, {}, {})


@pytest.fixture
def folder(tmp_path: Path, tokenizer_dirs) -> Path:
    """Writes an export with every kind of file that Cloze reads, and a card."""
    folder, config = tmp_path / "export", CONFIGS["bert"]
    state = random_model(config, nn.Linear(32, 3)).state_dict()
    files = {"catalogue.json": "[]"}
    export_huggingface(folder, config, state, "foreign", tokenizer_dirs["bert"], {}, FACTS, files)
    return folder


READ = {
    *("config.json", "model.safetensors", "cloze_heads.safetensors", "tokenizer.json", "tokenizer_config.json"),
    "catalogue.json",
}


def flip(path: Path) -> None:
    """Flips the lowest bit of a byte in the second half, which contains values in all of these files."""
    content = bytearray(path.read_bytes())
    content[-len(content) // 4] ^= 1
    path.write_bytes(content)


def test_the_record_describes_the_bytes_on_disk(folder):
    record = json.loads((folder / "cloze.json").read_text())
    assert record["blake2b"] == {
        name: hashlib.blake2b((folder / name).read_bytes(), digest_size=16).hexdigest() for name in READ
    }
    assert set(record["files"]) == READ | {"cloze.json", "README.md"}


@pytest.mark.parametrize("name", sorted(READ))
def test_a_changed_file_is_rejected_until_its_checksum_is_removed(name, folder):
    load_pretrained(str(folder))
    if name == "catalogue.json":
        (folder / name).write_text("[1]")
    elif name.endswith(".json"):
        # As an editor writes it, so that it can be read without its checksum.
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text())))
    else:
        flip(folder / name)
    with pytest.raises(CheckpointError, match=rf"{name} has changed since its export.*remove '{name}' from"):
        load_pretrained(str(folder))
    record = json.loads((folder / "cloze.json").read_text())
    del record["blake2b"][name]
    (folder / "cloze.json").write_text(json.dumps(record))
    load_pretrained(str(folder))


def test_an_export_without_checksums_loads(folder):
    record = json.loads((folder / "cloze.json").read_text())
    del record["blake2b"]
    (folder / "cloze.json").write_text(json.dumps(record))
    flip(folder / "model.safetensors")
    load_pretrained(str(folder))
    (folder / "cloze.json").write_text(json.dumps(record | {"blake2b": ["config.json"]}))
    with pytest.raises(CheckpointError, match=r"blake2b=\['config.json'\], not an object"):
        load_pretrained(str(folder))


def test_other_files_may_be_edited_and_removed(folder):
    (folder / "README.md").write_text("What I think of this model.")
    (folder / "notes.txt").write_text("mine")
    load_pretrained(str(folder))
    # The task reads it, and reports it if it is missing; weights alone do not need it.
    (folder / "catalogue.json").unlink()
    load_pretrained(str(folder))
    (folder / "cloze_heads.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"cloze_heads\.safetensors is missing"):
        load_pretrained(str(folder))
