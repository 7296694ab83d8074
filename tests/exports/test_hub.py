"""Uploads of exports to a hub on loopback, and their errors."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from framework.errors import ConfigError
from framework.exports.hub import check_access, push
from tests.support.exports.fake_hub import LARGE, Hub, serving

FILES = {"README.md": "---\nlibrary_name: transformers\n---\ntext\n", "config.json": "{}", f"model{LARGE}": "12345"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(monkeypatch) as hub:
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_every_file_of_the_folder_arrives_in_a_private_repository(hub: Hub, folder: Path):
    check_access("acme/faq-model")
    hub.files["acme/faq-model"] = {"notes.txt": b"kept"}
    assert push(folder, "acme/faq-model", is_private=True) == f"{hub.address}/acme/faq-model"
    (created,) = hub.created
    assert (created["organization"], created["name"]) == ("acme", "faq-model")
    assert created.get("private", created.get("visibility")) in (True, "private")
    assert hub.files["acme/faq-model"] == {
        "notes.txt": b"kept",
        **{name: text.encode() for name, text in FILES.items()},
    }


def test_a_repository_is_public_only_if_asked(hub: Hub, folder: Path):
    push(folder, "me/open", is_private=False)
    assert hub.created[0].get("private", hub.created[0].get("visibility")) in (False, "public")


def test_a_refused_upload_names_the_folder_and_how_to_upload_it(hub: Hub, folder: Path):
    hub.refuses_writing = True
    with pytest.raises(ConfigError, match=f"{folder} is written, but the upload to acme/m failed.*hf upload acme/m"):
        push(folder, "acme/m", is_private=True)
    assert {path.name for path in folder.iterdir()} == set(FILES)


@pytest.mark.parametrize("name", ["model", "a/b/c", "acme/my model", "/x", "acme/"])
def test_a_name_that_is_no_repository(name: str):
    with pytest.raises(ConfigError, match="A repository of the Hugging Face Hub is OWNER/NAME"):
        check_access(name)


def test_access_is_checked_before_anything_is_read(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(ConfigError, match="answered HfHubHTTPError: Invalid user token"):
        check_access("acme/m")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(ConfigError, match="there is no token of the Hugging Face Hub"):
        check_access("acme/m")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        check_access("acme/m")
    assert hub.created == []
