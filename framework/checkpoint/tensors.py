"""The tensors of a checkpoint by name, and reading their index without giving its pickle any power.

Keys: `model.<parameter>` (a tied parameter once, under its first name) and `optimizer.<parameter>.<state>`. All values
    are
tensors, so that nothing in a checkpoint has to be unpickled but torch.distributed.checkpoint's own index.
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

from framework.checkpoint.integrity import HashingFileSystem
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
    """Stands in for torch's own look-up of a layout by name; dense is the only one that checkpoints hold."""
    if name != "torch.strided":
        raise pickle.UnpicklingError(f"layout {name}")
    return torch.strided


class _IndexUnpickler(pickle._Unpickler):
    """Knows the classes of the index, dtypes and the dense layout, and nothing else that could be called.

    The one in Python, as that in C cannot be kept from setting attributes of the classes themselves.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)  # type: ignore[misc]

    def load_build(self) -> None:
        """Fills an object; a class or a function is not to be changed."""
        if callable(self.stack[-2]):  # type: ignore[attr-defined]
            raise pickle.UnpicklingError(f"a change of {self.stack[-2]}")  # type: ignore[attr-defined]
        super().load_build()  # type: ignore[misc]

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module: str, name: str) -> Any:
        """Looks a global name up in the short list."""
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
        DamagedError: It cannot be read, names something that a checkpoint of tensors does not need, or a foreign file.
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
            f"{path} is damaged or holds more than tensors ({error}), do not trust this checkpoint"
        ) from error
    if not isinstance(index, Metadata) or not all(
        isinstance(part, dict) for part in (index.state_dict_metadata, index.storage_data)
    ):
        raise DamagedError(f"{path} is not the index of a checkpoint, do not trust this checkpoint")
    for key, entry in index.state_dict_metadata.items():
        # Anything else would be unpickled by torch when it is loaded.
        if not _is_tensor_entry(entry):
            raise DamagedError(f"{path}: {key} is not a tensor, do not trust this checkpoint")
    for info in index.storage_data.values():  # type: ignore[union-attr]
        if not _is_inside(info):
            raise DamagedError(f"{path} points to a file outside of the checkpoint, do not trust this checkpoint")
    return index


def _is_tensor_entry(entry: Any) -> bool:
    return (
        isinstance(entry, TensorStorageMetadata)
        and isinstance(entry.size, torch.Size)
        and isinstance(entry.properties, metadata.TensorProperties)
        and isinstance(entry.properties.dtype, torch.dtype)
    )


def _is_inside(info: Any) -> bool:
    """True for the bytes of a file beside the index, as they are: nothing that a reader would have to decode."""
    return (
        isinstance(info, _StorageInfo)
        and isinstance(info.relative_path, str)
        and info.relative_path not in ("", ".", "..")
        and Path(info.relative_path).name == info.relative_path
        and not info.transform_descriptors
    )


class IndexWriter(FileSystemWriter):
    """Torch's writer of checkpoint folders, with an index that does not keep the folder's path (a pickled object).

    Attributes:
        checksums: Of the files that this rank wrote, by name.
    """

    fs: Any  # torch's types know local folders only
    path: Any

    def __init__(self, folder: Location) -> None:
        # No look-ahead on a GPU: it would use the current device, which in another thread than the main one is GPU 0.
        # Files behind a URL are not flushed: torch would flush all disks of the host instead.
        super().__init__(folder.name, single_file_per_rank=True, sync_files=has_rename(folder), per_thread_copy_ahead=0)
        hashing = HashingFileSystem()
        self.fs = hashing
        self.path = folder
        self.checksums = hashing.checksums

    def storage_meta(self) -> StorageMeta:
        """Only the id of the save."""
        return StorageMeta(save_id=self.save_id)


class IndexReader(FileSystemReader):
    """Torch's reader of checkpoint folders, with `read_index` in place of an unlimited unpickler.

    The index is passed in, because torch logs tracebacks if it fails to read one.
    """

    fs: Any  # as above
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
    """Torch warns at each save and load without a process group; a single process is meant here.

    For good, not for the time of a save: filters are of the process, and putting them back would undo what another
    thread has changed in the meantime.
    """
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters by name, each once, sharded where the model is. Loading into them in place restores the model."""
    # FSDP may still hold the root's parameters gathered after a pass without backward; its hook on state_dict puts
    # the sharded ones back, and only then do the module's parameters have those.
    model.state_dict(keep_vars=True)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def checkpoint_tensors(model: nn.Module, optimizer: CombinedOptimizer) -> dict[str, Tensor]:
    """All tensors that a checkpoint holds, under their keys in the checkpoint."""
    tensors = {MODEL_PREFIX + name: tensor for name, tensor in model_tensors(model).items()}
    return tensors | {OPTIMIZER_PREFIX + name: tensor for name, tensor in optimizer.named_state().items()}


def check_index(folder: Location, index: Metadata, wanted: dict[str, Tensor]) -> None:
    """Compares names, shapes and dtypes of a checkpoint with those that are wanted.

    Raises:
        CheckpointError: They differ; the message names the first difference.
    """
    entries: dict[str, Any] = index.state_dict_metadata
    missing, unexpected = sorted(set(wanted) - set(entries)), sorted(set(entries) - set(wanted))
    if missing or unexpected:
        which = f"lacks {missing[0]}" if missing else f"holds {unexpected[0]}, which is not wanted"
        raise CheckpointError(
            f"{folder} {which} ({len(missing)} lacking, {len(unexpected)} too many); "
            "resume with the model and optimizer that wrote it, or take only its weights with init_from."
        )
    for key, tensor in wanted.items():
        entry = entries[key]
        if tuple(entry.size) != tuple(tensor.shape) or entry.properties.dtype != tensor.dtype:
            raise CheckpointError(
                f"{folder}: {key} is {tuple(entry.size)} {entry.properties.dtype} there and {tuple(tensor.shape)} "
                f"{tensor.dtype} here; resume with the model that wrote it."
            )
