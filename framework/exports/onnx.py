"""An export as ONNX: the class of transformers, as it loads from the folder, and onnxruntime's word that both agree.

The extra `onnx` brings what is imported here; nothing else needs it.
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
from framework.models.config import EncoderConfig
from framework.published.encoder_decoder import CLASS_NAME as ENCODER_DECODER
from framework.published.files import CONFIG_FILE, SIDE_CONFIG_FILE, read_json
from framework.published.own_class import auto_class

ONNX_FILE = "onnx/model.onnx"
_PACKAGES = ("transformers", "onnx", "onnxruntime", "onnxscript")
_TOLERANCE = 1e-4
"""Largest difference of an output, relative to its largest value or to 1, whichever is larger."""
_EXAMPLE_SHAPE = (2, 3, 8)
"""(batch, choices, seq)"""
_TRIAL_SHAPES = ((3, 2, 13), (2, 4, 150))
"""Neither is that of the example, both have padding, and the long one goes beyond the usual window of local layers."""


def check_onnx_installed() -> None:
    """Looks for what `export_onnx` imports.

    Raises:
        ConfigError: One of the packages is not installed.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"onnx=true needs {', '.join(missing)}, which is not installed; install the extra: "
            "pip install -e '.[onnx]'."
        )


def export_onnx(folder: Path) -> Path:
    """Writes `onnx/model.onnx` into an export, with any batch and sequence length, and compares it with the class.

    Args:
        folder: That `export_huggingface` wrote.

    Returns:
        The file.

    Raises:
        ConfigError: See `check_onnx_installed`.
        CheckpointError: The class cannot be written, or onnxruntime computes something else than it; no file is kept.
    """
    check_onnx_installed()
    model = _Outputs(folder)
    file = folder / ONNX_FILE
    file.parent.mkdir(exist_ok=True)
    try:
        _write(file, model)
    except torch.onnx.OnnxExporterError as error:
        shutil.rmtree(file.parent)
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{model.class_name} in {folder} cannot be written as ONNX ({reason}); try another version of torch or "
            "transformers."
        ) from error
    difference = _largest_difference(file, model)
    if not difference <= _TOLERANCE:
        shutil.rmtree(file.parent)
        raise CheckpointError(
            f"{file} computes something else than {model.class_name}: outputs differ by {difference:.1e} of their "
            f"largest value (or of 1), and {_TOLERANCE:.0e} is allowed. It was removed, the export beside it is whole; "
            "try another version of torch or onnxruntime."
        )
    card = folder / CARD_FILE
    if card.is_file():
        with card.open("a", encoding="utf-8") as stream:
            stream.write(onnx_section(ONNX_FILE, model.input_names, model.output_names))
    return file


class _Outputs(nn.Module):
    """A class of transformers with tensors in and a tuple of tensors out."""

    def __init__(self, folder: Path) -> None:
        # Imported here because only ONNX needs it.
        import transformers

        super().__init__()
        self.class_name = str(read_json(folder / CONFIG_FILE)["architectures"][0])
        if self.class_name == ENCODER_DECODER:
            raise CheckpointError(
                f"{folder} is an {ENCODER_DECODER}, whose search for words is no fixed graph; it is whole without ONNX."
            )
        self.config = EncoderConfig(**read_json(folder / SIDE_CONFIG_FILE)["encoder"])
        self.has_choices = self.class_name.endswith("ForMultipleChoice")
        own = auto_class(self.class_name)
        published_class = getattr(transformers, own or self.class_name, None)
        if published_class is None:
            raise CheckpointError(
                f"transformers {transformers.__version__} has no {self.class_name}; install a newer version."
            )
        # The code that is trusted is the file that the export wrote.
        trusted = {"trust_remote_code": True} if own is not None else {}
        model, report = published_class.from_pretrained(folder, output_loading_info=True, **trusted)
        self.model = model
        self.eval()
        segments = ["token_type_ids"] if self.config.type_vocab_size > 1 else []
        self.input_names = ["input_ids", "attention_mask", *segments]
        with torch.no_grad():
            outputs = self.model(**dict(zip(self.input_names, self.inputs(_EXAMPLE_SHAPE), strict=True)))
        # A pooler without weights of its own, in a base class, is random.
        left_out = {"pooler_output"} if report["missing_keys"] else set()
        self.output_names = [name for name in outputs if name not in left_out]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Runs the class; inputs and outputs in the order of their names."""
        outputs = self.model(**dict(zip(self.input_names, inputs, strict=True)))
        return tuple(outputs[name] for name in self.output_names)

    def inputs(self, shape: tuple[int, int, int]) -> tuple[Tensor, ...]:
        """Ids, mask and segments, (batch, seq) or (batch, choices, seq), of sequences that get shorter and shorter."""
        batch, choices, wanted = shape
        length = min(wanted, self.config.max_position_embeddings - self.config.position_offset)
        rows = batch * (choices if self.has_choices else 1)
        places = torch.arange(rows * length).view(rows, length)
        lengths = torch.arange(length, length - rows, -1).clamp(min=2)
        mask = (torch.arange(length) < lengths[:, None]).long()
        # Any ids do, so long as they differ and padding is where the mask says.
        ids, padding = (places * 7919 + 5) % self.config.vocab_size, self.config.pad_token_id
        ids = torch.where(ids == padding, (ids + 1) % self.config.vocab_size, ids)
        ids = torch.where(mask == 1, ids, padding)
        segments = (torch.arange(length) >= length // 2).long() * mask
        tensors = (ids, mask, segments)[: len(self.input_names)]
        return tuple(tensor.view(batch, choices, length) if self.has_choices else tensor for tensor in tensors)


def _write(file: Path, model: _Outputs) -> None:
    example = model.inputs(_EXAMPLE_SHAPE)
    # The names are those of the axes in the file.
    axes = dict(enumerate(("batch", "choices", "sequence") if model.has_choices else ("batch", "sequence")))
    with _quiet():
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


def _largest_difference(file: Path, model: _Outputs) -> float:
    """Compares the outputs of onnxruntime and the class (see `_TOLERANCE`); infinite if not finite."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    largest = 0.0
    for shape in _TRIAL_SHAPES:
        inputs = model.inputs(shape)
        with torch.no_grad():
            expected = model(*inputs)
        feeds = {name: tensor.numpy() for name, tensor in zip(model.input_names, inputs, strict=True)}
        found = session.run(model.output_names, feeds)
        mask = feeds["attention_mask"] == 1
        for values, wanted in zip(found, (tensor.numpy() for tensor in expected), strict=True):
            # A padding token that sees no other (in a local layer) is anything, in either of them.
            real = mask if wanted.shape[: mask.ndim] == mask.shape else ...
            difference = np.abs(values[real] - wanted[real]).max() / max(np.abs(wanted[real]).max(), 1.0)
            largest = max(largest, float(difference if np.isfinite(difference) else np.inf))
    return largest


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that no encoder needs."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=FutureWarning)
            warnings.simplefilter("ignore", category=DeprecationWarning)
            # Inputs share their axes, and one name for all of them is what is wanted.
            warnings.filterwarnings("ignore", message=".*The axis name", category=UserWarning)
            yield
    finally:
        logger.setLevel(level)
