"""Writes an export as a smaller ONNX file, and measures on rows of the data how far it agrees with the fp32 file.

int8 is the dynamic quantization of onnxruntime: 8-bit weights with one scale per output channel, and activations that
are quantized while the model runs. fp16 stores weights and computes in half precision; inputs and outputs stay fp32.
"""

import logging
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from framework.errors import CheckpointError
from framework.exports.model_card import CARD_FILE, onnx_section
from framework.exports.onnx import ONNX_FILE, OnnxModel, write_onnx
from framework.published.files import CONFIG_FILE, read_json

SmallKind = Literal["fp16", "int8"]
_DESCRIPTIONS = {
    "fp16": "fp16 weights and products; inputs and outputs are fp32",
    "int8": "int8 weights with a scale per output channel; activations are quantized at run time",
}
_BATCH_TOKENS = 1024
"""Tokens of a batch, padding included. Scores over a vocabulary of 50,000 words then take 200 MB."""
_SPANS = ("start_logits", "end_logits")


@dataclass(frozen=True)
class TokenRow:
    """One item of the data: its sequences, more than one only for a class with choices.

    Attributes:
        input_ids: (tokens,) ids of each sequence.
        token_type_ids: (tokens,) segments of each sequence.
    """

    input_ids: Sequence[np.ndarray]
    token_type_ids: Sequence[np.ndarray]


@dataclass(frozen=True)
class SmallOnnx:
    """A smaller ONNX file beside the fp32 file that it was made of.

    Attributes:
        file: Path of the file.
        size_bytes: Size of the file.
        fp32_bytes: Size of the fp32 file.
        agreement: Lowest agreement of an output with that of the fp32 file (`_agreements`), at most 1.
        largest_difference: Largest absolute difference of a score or of a coordinate of an embedding.
        speedup: Rows per second divided by those of the fp32 file, on this machine.
        num_rows: Number of compared rows.
    """

    file: Path
    size_bytes: int
    fp32_bytes: int
    agreement: float
    largest_difference: float
    speedup: float
    num_rows: int

    def describe(self) -> str:
        """Returns sizes, agreement and speed in one line."""
        return (
            f"{self.size_bytes / 1e6:.1f} MB (fp32: {self.fp32_bytes / 1e6:.1f} MB), agreement with fp32 "
            f"{self.agreement:.4f} on {self.num_rows:,} rows, largest difference {self.largest_difference:.2g}, "
            f"{self.speedup:.1f} times as fast as fp32 on this machine"
        )


def export_small_onnx(folder: Path, kind: SmallKind, rows: Sequence[TokenRow], minimum: float) -> SmallOnnx:
    """Writes `onnx/model_KIND.onnx` into an export, and appends its measurements to the model card.

    Args:
        folder: Folder that `export_huggingface` wrote.
        kind: "fp16" or "int8".
        rows: Rows of the data that both files run on; at least one.
        minimum: Lowest accepted agreement with the fp32 file.

    Raises:
        CheckpointError: The class cannot be converted, or the agreement is below `minimum`. The file is then removed.
    """
    # The agreement needs the fp32 file, which is removed afterwards.
    model = write_onnx(folder)
    original = folder / ONNX_FILE
    file = original.with_name(f"model_{kind}.onnx")
    is_accepted = False
    try:
        _convert(original, file, kind)
        written = _measured(original, file, model, rows, read_json(folder / CONFIG_FILE))
        is_accepted = written.agreement >= minimum
    finally:
        original.unlink()
        if not is_accepted:
            shutil.rmtree(file.parent)
    if not is_accepted:
        raise CheckpointError(
            f"{file}: {written.describe()}. `onnx_min_agreement` is {minimum}, and the agreement must reach it. The "
            "file was removed, and the export without it is complete. Use onnx=fp16 or onnx=true, or lower "
            "onnx_min_agreement."
        )
    card = folder / CARD_FILE
    if card.is_file():
        with card.open("a", encoding="utf-8") as stream:
            names = model.input_names, model.output_names
            stream.write(onnx_section(f"onnx/{file.name}", *names, model.describe_vectors()))
            stream.write(
                f"\nThe file has {_DESCRIPTIONS[kind]}. Its size is {written.size_bytes / 1e6:.1f} MB (fp32: "
                f"{written.fp32_bytes / 1e6:.1f} MB). On {written.num_rows:,} rows of the data, its agreement with "
                f"fp32 is {written.agreement:.4f} ({_measure_of(model.results)}), and its outputs differ by at "
                f"most {written.largest_difference:.2g}.\n"
            )
    return written


def _convert(original: Path, file: Path, kind: SmallKind) -> None:
    import onnx

    with _quiet():
        if kind == "fp16":
            from onnxruntime.transformers.float16 import convert_float_to_float16

            onnx.save(convert_float_to_float16(onnx.load(original), keep_io_types=True), file)
            return
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(original, file, per_channel=True, weight_type=QuantType.QInt8)


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses advice of the converters about preparations that a transformer encoder does not need."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)


def _measured(
    original: Path, file: Path, model: OnnxModel, rows: Sequence[TokenRow], config: Mapping[str, Any]
) -> SmallOnnx:
    import onnxruntime

    sessions = [onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in (original, file)]
    seconds = np.zeros(2)
    values: dict[str, list[np.ndarray]] = {name: [] for name in model.results}
    largest = 0.0
    is_regression = config.get("problem_type") == "regression"
    is_multi_label = config.get("problem_type") == "multi_label_classification"
    for feeds in _batches(rows, model):
        outputs = []
        for index, session in enumerate(sessions):
            start = time.perf_counter()
            outputs.append(session.run(model.results, feeds))
            seconds[index] += time.perf_counter() - start
        mask = feeds["attention_mask"] == 1
        for name, expected, actual in zip(model.results, *outputs, strict=True):
            pair = _outcomes(name, expected, actual, mask)
            largest = max(largest, float(np.abs(pair[0] - pair[1]).max()))
            if _has_scores(name) and not is_regression and (pair.shape[2] > 1 or is_multi_label):
                pair = (pair > 0) if is_multi_label else pair.argmax(axis=2)
            values[name].append(pair)
    agreements = [_agreement(name, np.concatenate(pairs, axis=1)) for name, pairs in values.items()]
    sizes = (file.stat().st_size, original.stat().st_size)
    return SmallOnnx(file, *sizes, min(agreements), largest, float(seconds[0] / seconds[1]), len(rows))


def _batches(rows: Sequence[TokenRow], model: OnnxModel) -> Iterator[dict[str, np.ndarray]]:
    """Yields padded inputs by name, with sequences of similar length together."""
    if model.has_choices:
        for row in rows:
            yield {name: each[None] for name, each in _padded(row.input_ids, row.token_type_ids, model).items()}
        return
    sequences = [each for row in rows for each in zip(row.input_ids, row.token_type_ids, strict=True)]
    sequences.sort(key=lambda each: len(each[0]))
    while sequences:
        # The last of the sequences in a batch is its longest.
        fits = (size for size in range(len(sequences), 1, -1) if size * len(sequences[size - 1][0]) <= _BATCH_TOKENS)
        size = next(fits, 1)
        ids, segments = zip(*sequences[:size], strict=True)
        sequences = sequences[size:]
        yield _padded(ids, segments, model)


def _padded(ids: Sequence[np.ndarray], segments: Sequence[np.ndarray], model: OnnxModel) -> dict[str, np.ndarray]:
    """Returns (sequences, longest) int64 arrays of the inputs that the class takes."""
    shape = len(ids), max(map(len, ids))
    padded = {name: np.zeros(shape, dtype=np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    padded["input_ids"][:] = model.config.pad_token_id
    for index, (own_ids, own_segments) in enumerate(zip(ids, segments, strict=True)):
        padded["input_ids"][index, : len(own_ids)] = own_ids
        padded["attention_mask"][index, : len(own_ids)] = 1
        padded["token_type_ids"][index, : len(own_ids)] = own_segments
    return {name: padded[name] for name in model.input_names}


def _outcomes(name: str, expected: np.ndarray, actual: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns what the agreement compares: (2, outcomes, values), fp32 outputs first.

    Padding is left out: scores of real tokens, spans over real tokens, and the mean over real tokens of hidden states.
    """
    pair = np.stack([expected, actual]).astype(np.float32)
    if name in _SPANS:
        return np.where(mask, pair, pair.min())
    if pair.shape[1:-1] != mask.shape:
        return pair.reshape(2, -1, pair.shape[-1])
    return pair[:, mask] if _has_scores(name) else (pair * mask[..., None]).sum(axis=2) / mask.sum(axis=1)[:, None]


def _has_scores(name: str) -> bool:
    """Returns False for an output of vectors, such as hidden states."""
    return name.endswith("logits")


def _agreement(name: str, pair: np.ndarray) -> float:
    """Returns the agreement of (2, outcomes) choices, (2, outcomes, labels) decisions, or scores or vectors."""
    if pair.dtype.kind in "bi":
        return float((pair[0] == pair[1]).mean())
    first, second = pair.astype(np.float64)
    if _has_scores(name):
        first, second = ((each - each.mean()).reshape(1, -1) for each in (first, second))
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(((first * second).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)).mean())


def _measure_of(output_names: Sequence[str]) -> str:
    if any(_has_scores(name) for name in output_names):
        return "share of equal predictions, or the correlation of scores without labels"
    return "mean cosine of the vectors of a text"
