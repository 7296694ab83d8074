"""Files of published models, in a folder or on the Hugging Face Hub: lookup, JSON and tensors.

Code in a folder is never run. Pickles are read with `weights_only=True`.
"""

import pickle
import re
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from framework.errors import CheckpointError
from framework.files import TOKENIZER_FILES, read_json_object

CONFIG_FILE = "config.json"
EXPORT_RECORD_FILE = "cloze.json"
EXTRA_WEIGHTS_FILE = "cloze_heads.safetensors"
WEIGHTS_FILE = "model.safetensors"
MODULES_FILE = "modules.json"
LIBRARY_CONFIG_FILE = "config_sentence_transformers.json"
LENGTH_FILE = "sentence_bert_config.json"
POOLING_FOLDER = "1_Pooling"
POOLING_FILE = f"{POOLING_FOLDER}/{CONFIG_FILE}"
DENSE_FOLDER = "1_Dense"
DENSE_FILE = f"{DENSE_FOLDER}/{WEIGHTS_FILE}"
_VOCABULARY_FILES = ("tokenizer.json", "vocab.txt", "vocab.json")
_PICKLE_FILE = "pytorch_model.bin"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_HUB_FILES = (
    *("preprocessor_config.json", CONFIG_FILE, EXPORT_RECORD_FILE, EXTRA_WEIGHTS_FILE, *TOKENIZER_FILES),
    *(MODULES_FILE, LIBRARY_CONFIG_FILE, LENGTH_FILE, POOLING_FILE, f"{DENSE_FOLDER}/{CONFIG_FILE}", DENSE_FILE),
)
_HUB_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
_HUB_PICKLES = (_PICKLE_FILE, "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")


def find_folder(source: str) -> Path:
    """Returns the local folder of a source. A hub name without such a folder is downloaded, or read from the cache.

    Raises:
        CheckpointError: The source is neither a folder with a config.json nor an accessible hub name.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / CONFIG_FILE).is_file():
            raise CheckpointError(
                f"The folder {source} has no {CONFIG_FILE}. Give the folder of a Hugging Face model or of an export."
            )
        return folder
    if folder.exists():
        raise CheckpointError(f"{source} is a file. Give the folder that holds the model's {CONFIG_FILE}.")
    if not _HUB_NAME.fullmatch(source):
        raise CheckpointError(
            f"The folder {source} does not exist. Give the folder of a model, or a Hugging Face Hub name."
        )
    return _download(source)


def hub_errors() -> tuple[type[Exception], ...]:
    """Returns the exceptions of huggingface_hub for names, networks and access."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError  # imported here: only hub names need it

    # The hub's own errors derive from OSError. The bases of HfHubHTTPError include the root error of its HTTP library,
    # which differs between versions.
    library_errors = cast(tuple[type[Exception], ...], HfHubHTTPError.__bases__)
    return (OSError, HFValidationError, *library_errors)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    errors = hub_errors()
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*_HUB_FILES, *_HUB_SAFETENSORS]))
        if not any((folder / file).exists() for file in _HUB_SAFETENSORS[:2]):
            folder = Path(snapshot_download(name, allow_patterns=[*_HUB_FILES, *_HUB_PICKLES]))
    except errors as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{name!r} is not a local folder and could not be downloaded from the Hugging Face Hub "
            f"({type(error).__name__}: {reason}). Check the name and the network, or give a local folder."
        ) from error
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(
            f"{name!r} has no {CONFIG_FILE} on the Hugging Face Hub. Choose a repository with a model."
        )
    return folder


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        CheckpointError: The file cannot be read, or it does not hold a JSON object.
    """
    try:
        return read_json_object(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}). Fetch or export the model again.") from error


def tokenizer_folder(folder: Path) -> Path | None:
    """Returns the folder if it holds a tokenizer's vocabulary, else None."""
    return folder if any((folder / name).is_file() for name in _VOCABULARY_FILES) else None


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Reads all weights of a folder, from safetensors files, or from pickles if there are none.

    Empty tensors are omitted. An export contains them so that transformers rejects it for unsupported heads.

    Raises:
        CheckpointError: There are no weights, or a file is missing, damaged or a pickle with more than tensors.
    """
    return {name: tensor for name, tensor in _read_all(folder).items() if tensor.numel()}


def _read_all(folder: Path) -> dict[str, Tensor]:
    for name, read in ((WEIGHTS_FILE, _read_safetensors), (_PICKLE_FILE, _read_pickle)):
        if (folder / name).is_file():
            return read(folder / name)
        index = folder / f"{name}.index.json"
        if index.is_file():
            tensors: dict[str, Tensor] = {}
            for shard in _shards(index):
                tensors.update(read(shard))
            return tensors
    raise CheckpointError(
        f"The folder {folder} has neither {WEIGHTS_FILE} nor {_PICKLE_FILE}. Fetch or export it again."
    )


def read_optional_safetensors(path: Path) -> dict[str, Tensor]:
    """Reads a safetensors file. Returns an empty dict if it does not exist."""
    return _read_safetensors(path) if path.is_file() else {}


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map. Fetch the model again.")
    shards = []
    for name in sorted({str(file) for file in weight_map.values()}):
        path = index.parent / name
        if Path(name).name != name or not path.is_file():
            raise CheckpointError(f"{index} names {name!r}, which is not a file of its folder. Fetch the model again.")
        shards.append(path)
    return shards


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is not a complete safetensors file ({error}). Fetch or export it again."
        ) from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{path} is damaged or holds more than tensors, so it is not loaded ({reason}). "
            f"Convert it to {WEIGHTS_FILE} first."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} must hold a dict of tensors. Convert it to {WEIGHTS_FILE} first.")
    return content
