"""Tensors of a checkpoint by key, and a safe reader for their index, which is a pickle.

Keys: `model.<parameter>` (a tied parameter once, under its first name) and `optimizer.<parameter>.<state>`. All values
are tensors. The index of torch.distributed.checkpoint is therefore the only pickle that has to be read.
"""

import pickle
import warnings
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import metadata
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from framework.checkpoint.hashing import HashingFileSystem
from framework.checkpoint.layout import DamagedError
from framework.checkpoint.storage import Location, has_rename
from framework.errors import CheckpointError
from framework.optim.combined import CombinedOptimizer

MODEL_PREFIX = "model."
OPTIMIZER_PREFIX = "optimizer."

_CLASSES: dict[tuple[str, str], Any] = {
    (entry.__module__, entry.__qualname__): entry
    for entry in (
        Metadata,
        metadata.MetadataIndex,
        TensorStorageMetadata,
        metadata.ChunkStorageMetadata,
        metadata.BytesStorageMetadata,
        metadata.TensorProperties,
        StorageMeta,
        metadata._MEM_FORMAT_ENCODING,
        _StorageInfo,
        torch.Size,
    )
}
_LAYOUT = ("torch.serialization", "_get_layout")


def _layout(name: str) -> torch.layout:
    """Replaces torch's lookup of a layout by name. Checkpoints hold dense tensors only."""
    if name != "torch.strided":
        raise pickle.UnpicklingError(f"layout {name}")
    return torch.strided


class _IndexUnpickler(pickle._Unpickler):
    """Unpickler that allows only the classes of the index, dtypes and the dense layout.

    It extends Python's own unpickler, because the one in C would let a pickle set attributes of the classes themselves.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)  # type: ignore[misc]

    def load_build(self) -> None:
        """Sets the attributes of an object; rejects classes and functions."""
        if callable(self.stack[-2]):  # type: ignore[attr-defined]
            raise pickle.UnpicklingError(f"it changes {self.stack[-2]}")  # type: ignore[attr-defined]
        super().load_build()  # type: ignore[misc]

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module: str, name: str) -> Any:
        """Returns an allowed global object; rejects all other names."""
        if (module, name) in _CLASSES:
            return _CLASSES[module, name]
        if (module, name) == _LAYOUT:
            return _layout
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"{module}.{name}")


def read_index(folder: Location) -> Metadata:
    """Reads `.metadata` of torch.distributed.checkpoint and checks that it names only tensors and files of this folder.

    Raises:
        DamagedError: The index cannot be read, or it names an object other than tensors or a file outside the folder.
    """
    path = folder / ".metadata"
    try:
        with path.open("rb") as file:
            index = _IndexUnpickler(file).load()
    except OSError as error:
        raise DamagedError(f"{path} cannot be read ({error})") from error
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        OverflowError,
    ) as error:
        raise DamagedError(
            f"{path} is damaged or holds more than tensors ({error}), so do not trust this checkpoint"
        ) from error
    if not isinstance(index, Metadata) or not all(
        isinstance(part, dict) for part in (index.state_dict_metadata, index.storage_data)
    ):
        raise DamagedError(f"{path} is not the index of a checkpoint, so do not trust this checkpoint")
    for key, entry in index.state_dict_metadata.items():
        # torch would unpickle any other kind of entry while loading it.
        if not _is_tensor_entry(entry):
            raise DamagedError(f"{path}: {key} is not a tensor, so do not trust this checkpoint")
    for info in index.storage_data.values():  # type: ignore[union-attr]
        if not _is_inside(info):
            raise DamagedError(f"{path} points to a file outside of the checkpoint, so do not trust this checkpoint")
    return index


def _is_tensor_entry(entry: Any) -> bool:
    return (
        isinstance(entry, TensorStorageMetadata)
        and isinstance(entry.size, torch.Size)
        and isinstance(entry.properties, metadata.TensorProperties)
        and isinstance(entry.properties.dtype, torch.dtype)
    )


def _is_inside(info: Any) -> bool:
    """Returns True if the data are plain bytes of a file in the folder of the index, without a transform to decode."""
    return (
        isinstance(info, _StorageInfo)
        and isinstance(info.relative_path, str)
        and info.relative_path not in ("", ".", "..")
        and Path(info.relative_path).name == info.relative_path
        and not info.transform_descriptors
    )


class IndexWriter(FileSystemWriter):
    """Writer of checkpoint folders. Its index does not contain the folder's path, which torch would pickle.

    Attributes:
        checksums: Checksums, by name, of the files that this rank wrote.
    """

    fs: Any  # torch's annotations allow local folders only
    path: Any

    def __init__(self, folder: Location) -> None:
        # No look-ahead copies: they would use the current device, which is GPU 0 in a thread other than the main one.
        # No sync for files behind a URL: torch would flush all disks of the host instead.
        super().__init__(folder.name, single_file_per_rank=True, sync_files=has_rename(folder), per_thread_copy_ahead=0)
        hashing = HashingFileSystem()
        self.fs = hashing
        self.path = folder
        self.checksums = hashing.checksums

    def storage_meta(self) -> StorageMeta:
        """Returns metadata that contains only the id of the save."""
        return StorageMeta(save_id=self.save_id)


class IndexReader(FileSystemReader):
    """Reader of checkpoint folders that uses an index from `read_index` instead of torch's unrestricted unpickler.

    The caller reads the index and passes it in, because torch logs tracebacks if it fails to read one.
    """

    fs: Any  # see IndexWriter
    path: Any

    def __init__(self, folder: Location, index: Metadata) -> None:
        super().__init__(folder.name)
        self.fs = HashingFileSystem()
        self.path = folder
        self._index = index

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:  # noqa: ARG002  torch's signature
        """Returns the index."""
        index = self._index
        index.storage_meta = index.storage_meta or StorageMeta()
        index.storage_meta.load_id = self.load_id
        return index


def ignore_single_process_warning() -> None:
    """Hides the warning of torch at each save and load without a process group, which is intended here.

    The filter stays for the life of the process. Filters belong to the whole process, so restoring them after a save
    would undo changes that another thread made in the meantime.
    """
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns each parameter once by name, sharded if the model is. Loading into them in place restores the model."""
    # After a forward pass without backward, FSDP may keep the root's parameters gathered. Its hook on state_dict
    # restores the sharded parameters of the module.
    model.state_dict(keep_vars=True)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def checkpoint_tensors(model: nn.Module, optimizer: CombinedOptimizer) -> dict[str, Tensor]:
    """Returns all tensors of a checkpoint by key."""
    tensors = {MODEL_PREFIX + name: tensor for name, tensor in model_tensors(model).items()}
    return tensors | {OPTIMIZER_PREFIX + name: tensor for name, tensor in optimizer.named_state().items()}


def check_index(folder: Location, index: Metadata, expected: dict[str, Tensor]) -> None:
    """Compares names, shapes and dtypes of a checkpoint with the expected tensors.

    Raises:
        CheckpointError: They differ; the message names the first difference.
    """
    entries: dict[str, Any] = index.state_dict_metadata
    missing, unexpected = sorted(set(expected) - set(entries)), sorted(set(entries) - set(expected))
    if missing or unexpected:
        problem = f"lacks {missing[0]}" if missing else f"holds the unexpected tensor {unexpected[0]}"
        raise CheckpointError(
            f"{folder} {problem} ({len(missing)} missing, {len(unexpected)} unexpected). "
            "Resume with the model and optimizer that wrote it, or load only its weights with init_from."
        )
    for key, tensor in expected.items():
        entry = entries[key]
        if tuple(entry.size) != tuple(tensor.shape) or entry.properties.dtype != tensor.dtype:
            raise CheckpointError(
                f"{folder}: {key} is {tuple(entry.size)} {entry.properties.dtype} in the checkpoint and "
                f"{tuple(tensor.shape)} {tensor.dtype} in the model. Resume with the model that wrote it."
            )
