"""Uploads an exported folder to a repository of the Hugging Face Hub."""

import re
from pathlib import Path

from framework.errors import ConfigError
from framework.published.files import hub_errors

_NAME = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


def check_access(name: str) -> None:
    """Checks the name of a repository and, with the hub, the token. Call it before work is spent on the export.

    Raises:
        ConfigError: The name is no OWNER/NAME, the hub is switched off, there is no token, or the hub does not answer
            or rejects the token.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import LocalTokenNotFoundError

    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"push is {name!r}. A repository of the Hugging Face Hub is OWNER/NAME, of letters, digits, -, _ and . "
            "only. Give such a name."
        )
    if constants.HF_HUB_OFFLINE:
        raise ConfigError(
            f"push is {name}, and HF_HUB_OFFLINE is set. An upload needs the hub. Unset HF_HUB_OFFLINE, or remove push."
        )
    try:
        HfApi().whoami()
    except LocalTokenNotFoundError as error:
        raise ConfigError(
            f"push is {name}, but there is no token of the Hugging Face Hub. An upload needs one that may write. Set "
            "HF_TOKEN, or call `hf auth login`."
        ) from error
    except hub_errors() as error:
        raise ConfigError(
            f"push is {name}, but {constants.ENDPOINT} answered {_reason(error)}. An upload needs the network "
            "and a token that may write. Check HF_TOKEN, HF_ENDPOINT and the network."
        ) from error


def push(folder: Path, name: str, is_private: bool) -> str:
    """Uploads all files of a folder in one commit, and returns the address of the repository.

    Args:
        folder: Exported folder.
        name: OWNER/NAME. A repository that exists keeps its visibility and its other files.
        is_private: Visibility of a repository that does not exist yet.

    Raises:
        ConfigError: The hub refused the repository or the files, or the network failed. The folder stays.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(name, private=is_private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=name, commit_message="Export of Cloze")
    except hub_errors() as error:
        raise ConfigError(
            f"{folder} is written, but the upload to {name} failed ({_reason(error)}). An upload needs the "
            f"network and a token that may write. Mend the cause, and call: hf upload {name} {folder}"
        ) from error
    return str(address)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
