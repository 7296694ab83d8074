"""Projection of a late-interaction model: in the folder of PyLate and sentence-transformers, or of the first ColBERT.

PyLate (https://github.com/lightonai/pylate) keeps it in a folder of its own; the checkpoints of ColBERT
(https://github.com/stanford-futuredata/ColBERT) among the weights of the encoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from framework.published.files import (
    CONFIG_FILE,
    DENSE_FILE,
    DENSE_FOLDER,
    LIBRARY_CONFIG_FILE,
    MODULES_FILE,
    read_json,
    read_optional_safetensors,
)
from framework.published.kinds import LATE_INTERACTION

PROJECTION = "projection.weight"
"""Our name for the weight of the projection."""
PUBLISHED_PROJECTION = "linear.weight"
COLBERT = "ColBERT"
"""Model type of PyLate, which sentence-transformers reads too."""
_MODEL_TYPES = (COLBERT, "MultiVectorEncoder")
_FIRST_CLASS = "HF_ColBERT"
_NO_ACTIVATION = "Identity"


@dataclass(frozen=True)
class Projection:
    """Projection that a folder holds.

    Attributes:
        tensors: Its weight under our name; empty if the folder holds no projection that Cloze supports.
        used: Names of the tensors of the encoder's file that are part of it.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    used: frozenset[str] = frozenset()

    @property
    def head_kind(self) -> str | None:
        """Returns the kind of head; None without a projection."""
        return LATE_INTERACTION.name if self.tensors else None


def read_projection(folder: Path, published: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Projection:
    """Reads the projection of a late-interaction model: one linear layer without bias or activation.

    Args:
        folder: Folder of the model.
        published: Content of config.json.
        tensors: Tensors of the encoder's file, without the prefix of the base model.

    Raises:
        CheckpointError: A file of the folder is damaged.
    """
    if _FIRST_CLASS in (published.get("architectures") or ()) and PUBLISHED_PROJECTION in tensors:
        used = frozenset({PUBLISHED_PROJECTION})
        return Projection({PROJECTION: tensors[PUBLISHED_PROJECTION].float()}, used)
    files = [folder / name for name in (MODULES_FILE, LIBRARY_CONFIG_FILE, f"{DENSE_FOLDER}/{CONFIG_FILE}", DENSE_FILE)]
    if not all(file.is_file() for file in files) or (folder / "2_Dense").exists():
        return Projection()
    settings = read_json(folder / DENSE_FOLDER / CONFIG_FILE)
    is_plain = str(settings.get("activation_function")).endswith(_NO_ACTIVATION) and not settings.get("use_residual")
    if read_json(folder / LIBRARY_CONFIG_FILE).get("model_type") not in _MODEL_TYPES or not is_plain:
        return Projection()
    own = read_optional_safetensors(folder / DENSE_FILE)
    return (
        Projection({PROJECTION: own[PUBLISHED_PROJECTION].float()})
        if set(own) == {PUBLISHED_PROJECTION}
        else Projection()
    )
