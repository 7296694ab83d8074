"""Converts the transformers class of an export to ONNX, and compares its outputs with those of onnxruntime.

Only this module needs the packages of the extra `onnx`.
"""

import importlib.util
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from framework.errors import CheckpointError, ConfigError
from framework.exports.model_card import CARD_FILE, onnx_section
from framework.exports.onnx_vectors import text_vectors
from framework.models.config import EncoderConfig
from framework.published.encoder_decoder import CLASS_NAME as ENCODER_DECODER
from framework.published.families import FAMILIES
from framework.published.files import CONFIG_FILE, EXPORT_RECORD_FILE, read_json
from framework.published.own_class import auto_class

ONNX_FILE = "onnx/model.onnx"
_PACKAGES = ("transformers", "onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-4
"""Largest allowed difference of an output, relative to its largest value or to 1, whichever is larger."""
_EXAMPLE_SHAPE = (2, 3, 8)
"""Shape (batch, choices, seq) of the inputs for tracing."""
_TRIAL_SHAPES = ((3, 2, 13), (2, 4, 150))
"""Shapes for the comparison. Both have padding, and the longer one exceeds the usual window of local layers."""


def check_onnx_installed() -> None:
    """Checks that the packages for `export_onnx` are installed.

    Raises:
        ConfigError: A package is not installed.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"onnx needs {', '.join(missing)}, but these packages are not installed. Install the extra: "
            "pip install -e '.[onnx]'."
        )


def export_onnx(folder: Path) -> Path:
    """Writes `onnx/model.onnx` into an export (`write_onnx`), and describes it in the model card.

    Args:
        folder: Folder that `export_huggingface` wrote.

    Returns:
        Path of the ONNX file.

    Raises:
        ConfigError: See `write_onnx`.
        CheckpointError: See `write_onnx`.
    """
    model = write_onnx(folder)
    card = folder / CARD_FILE
    if card.is_file():
        with card.open("a", encoding="utf-8") as stream:
            stream.write(onnx_section(ONNX_FILE, model.input_names, model.output_names, model.describe_vectors()))
    return folder / ONNX_FILE


def write_onnx(folder: Path) -> "OnnxModel":
    """Writes `onnx/model.onnx`, for any batch size and sequence length, into an export and compares its outputs.

    Pictures have the size of the position table.

    Args:
        folder: Folder that `export_huggingface` wrote.

    Returns:
        The class that was converted.

    Raises:
        ConfigError: A package is not installed.
        CheckpointError: The class cannot be converted, or its outputs differ from those of onnxruntime. The file is
            then removed.
    """
    check_onnx_installed()
    model = OnnxModel(folder)
    file = folder / ONNX_FILE
    file.parent.mkdir(exist_ok=True)
    try:
        _write(file, model)
    except torch.onnx.OnnxExporterError as error:
        shutil.rmtree(file.parent)
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{model.class_name} in {folder} cannot be written as ONNX ({reason}). Try another version of torch or "
            "transformers."
        ) from error
    difference = _largest_difference(file, model)
    if not difference <= TOLERANCE:
        shutil.rmtree(file.parent)
        raise CheckpointError(
            f"{file} computes other outputs than {model.class_name}: they differ by {difference:.1e} of their largest "
            f"value (or of 1), and {TOLERANCE:.0e} is allowed. The file was removed, and the export without it is "
            "complete. Try another version of torch or onnxruntime."
        )
    return model


class OnnxModel(nn.Module):
    """Wrapper of a transformers class that takes tensors and returns a tuple of tensors.

    The last of them is the vector of each text, if the task of the export computes one (`text_vectors`).
    """

    def __init__(self, folder: Path) -> None:
        # Imported here, because only ONNX needs it.
        import transformers

        super().__init__()
        self.class_name = str(read_json(folder / CONFIG_FILE)["architectures"][0])
        if self.class_name == ENCODER_DECODER:
            raise CheckpointError(
                f"{folder} is an {ENCODER_DECODER}, which ONNX cannot represent: its search is not a fixed graph. The "
                "export is complete without it. Leave out onnx=true."
            )
        self.config = EncoderConfig(**read_json(folder / EXPORT_RECORD_FILE)["encoder"])
        self.has_choices = self.class_name.endswith("ForMultipleChoice")
        own = auto_class(self.class_name)
        published_class = getattr(transformers, own or self.class_name, None)
        if published_class is None:
            raise CheckpointError(
                f"transformers {transformers.__version__} has no {self.class_name}. Install a newer version."
            )
        # trust_remote_code is safe here: the export itself wrote the code.
        trusted = {"trust_remote_code": True} if own is not None else {}
        model, report = published_class.from_pretrained(folder, output_loading_info=True, **trusted)
        self.model = model
        self.eval()
        self.reads_pictures = FAMILIES[self.config.family].pixels is not None
        segments = ["token_type_ids"] if self.config.type_vocab_size > 1 else []
        self.input_names = ["pixel_values"] if self.reads_pictures else ["input_ids", "attention_mask", *segments]
        with torch.no_grad():
            outputs = self.model(**dict(zip(self.input_names, self.inputs(_EXAMPLE_SHAPE), strict=True)))
        # The export has no weights for the pooler of a base class, so its output is random.
        left_out = {"pooler_output"} if report["missing_keys"] else set()
        self.class_outputs = [name for name in outputs if name not in left_out]
        self.vectors = text_vectors(folder)
        self.output_names = [*self.class_outputs, *([] if self.vectors is None else [self.vectors.name])]

    @property
    def results(self) -> list[str]:
        """Names of the outputs that the task is about: the vectors if there are any, otherwise all."""
        return self.output_names if self.vectors is None else [self.vectors.name]

    def describe_vectors(self) -> str:
        """Returns a sentence on the output of vectors; empty if there is none."""
        return "" if self.vectors is None else f"`{self.vectors.name}` holds {self.vectors.meaning}."

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Runs the class. Inputs and outputs are in the order of `input_names` and `output_names`."""
        by_name = dict(zip(self.input_names, inputs, strict=True))
        outputs = self.model(**by_name)
        of_class = tuple(outputs[name] for name in self.class_outputs)
        if self.vectors is None:
            return of_class
        return (*of_class, self.vectors.compute(outputs, by_name["attention_mask"]))

    def inputs(self, shape: tuple[int, int, int]) -> tuple[Tensor, ...]:
        """Returns ids, mask (1 for real tokens) and segments of shape (batch, seq) or (batch, choices, seq).

        Each sequence is one token shorter than the one before, but has at least two tokens. For models of pictures it
        returns pixels of shape (batch, channel, row, column), of the size of the position table.
        """
        batch, choices, max_length = shape
        if self.reads_pictures:
            edge = self.config.patch_grid * self.config.patch_size
            values = torch.arange(batch * 3 * edge * edge) * 7919 % 256
            return ((values / 127.5 - 1).view(batch, 3, edge, edge),)
        length = min(max_length, self.config.max_position_embeddings - self.config.position_offset)
        rows = batch * (choices if self.has_choices else 1)
        positions = torch.arange(rows * length).view(rows, length)
        lengths = torch.arange(length, length - rows, -1).clamp(min=2)
        mask = (torch.arange(length) < lengths[:, None]).long()
        # Any ids work, as long as they differ, and the padding id is exactly where the mask is 0.
        ids, padding = (positions * 7919 + 5) % self.config.vocab_size, self.config.pad_token_id
        ids = torch.where(ids == padding, (ids + 1) % self.config.vocab_size, ids)
        ids = torch.where(mask == 1, ids, padding)
        segments = (torch.arange(length) >= length // 2).long() * mask
        tensors = (ids, mask, segments)[: len(self.input_names)]
        return tuple(tensor.view(batch, choices, length) if self.has_choices else tensor for tensor in tensors)


def _write(file: Path, model: OnnxModel) -> None:
    example = model.inputs(_EXAMPLE_SHAPE)
    # These become the names of the axes in the file.
    names = ("batch", "choices", "sequence") if model.has_choices else ("batch", "sequence")
    axes = {0: "batch"} if model.reads_pictures else dict(enumerate(names))
    with suppressed_warnings():
        program = torch.onnx.export(
            model,
            example,
            dynamo=True,
            verbose=False,
            input_names=model.input_names,
            output_names=model.output_names,
            dynamic_shapes=(tuple(axes for _ in example),),
        )
        assert program is not None
        program.save(file)


def _largest_difference(file: Path, model: OnnxModel) -> float:
    """Returns the largest relative difference of the two outputs (see `TOLERANCE`); infinite if one is not finite."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    largest = 0.0
    for shape in _TRIAL_SHAPES:
        inputs = model.inputs(shape)
        with torch.no_grad():
            expected = model(*inputs)
        feeds = {name: tensor.numpy() for name, tensor in zip(model.input_names, inputs, strict=True)}
        actual = session.run(model.output_names, feeds)
        mask = feeds["attention_mask"] == 1 if "attention_mask" in feeds else None
        for values, reference in zip(actual, (tensor.numpy() for tensor in expected), strict=True):
            # Outputs are undefined for padding tokens that attend to no other token (in a local layer).
            real = mask if mask is not None and reference.shape[: mask.ndim] == mask.shape else ...
            difference = np.abs(values[real] - reference[real]).max() / max(np.abs(reference[real]).max(), 1.0)
            largest = max(largest, float(difference if np.isfinite(difference) else np.inf))
    return largest


@contextmanager
def suppressed_warnings() -> Iterator[None]:
    """Suppresses the exporter's messages about packages that encoders do not need."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=FutureWarning)
            warnings.simplefilter("ignore", category=DeprecationWarning)
            # All inputs share their axes on purpose, so each axis has one name.
            warnings.filterwarnings("ignore", message=".*The axis name", category=UserWarning)
            yield
    finally:
        logger.setLevel(level)
