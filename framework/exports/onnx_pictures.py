"""Writes the encoder of pictures of an image-text export as ONNX, and compares it with the packed encoder of Cloze.

The graph runs the transformers class of the export on embeddings of patches. Such classes add positions and segments
to given embeddings, which the packed encoder does not do for patches, so the graph subtracts them before.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from framework.data.planning.collate import FILLER_TOKEN_ID, Patches, pack_sequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import CheckpointError
from framework.exports.model_card import CARD_FILE
from framework.exports.onnx import TOLERANCE, suppressed_warnings
from framework.models.encoder import TransformerEncoder
from framework.nn.patch_embeddings import PatchEmbeddings
from framework.published.kinds import IMAGE_TEXT
from framework.published.pretrained import PretrainedWeights, load_pretrained
from framework.tasks.pooling import POOLINGS

PICTURES_FILE = "onnx/pictures.onnx"
_INPUTS = ("patches", "places", "patch_mask")
_OUTPUT = "embeddings"
_EXAMPLE_SIDES = (2, 3)
_TRIAL_SIDES = ((1, 1), (3, 2), (2, 5))
"""Rows and columns of pictures for tracing and for the comparison."""

_CARD = f"""
## ONNX of pictures

`{PICTURES_FILE}` maps `{_INPUTS[0]}` (uint8, batch x patches x patch values in the order row, column, channel),
`{_INPUTS[1]}` (int64, batch x patches x 2, row and column of each patch) and `{_INPUTS[2]}` (int64, batch x patches,
1 for real patches) to `{_OUTPUT}`, one vector per picture, for any batch size and number of patches.
"""


def export_picture_onnx(folder: Path) -> Path | None:
    """Writes `onnx/pictures.onnx` into an export and compares its vectors; does nothing for other tasks.

    Args:
        folder: Folder that `export_huggingface` wrote.

    Returns:
        Path of the ONNX file; None: the export is not one of the task image_text.

    Raises:
        CheckpointError: The class cannot be converted, or its vectors differ from those of Cloze. The file is then
            removed.
    """
    weights = load_pretrained(str(folder))
    if weights.head_kind != IMAGE_TEXT:
        return None
    cls_id = Tokenizer.from_folder(folder).cls_id
    file = folder / PICTURES_FILE
    file.parent.mkdir(exist_ok=True)
    try:
        _write(file, _PictureVectors(folder, weights, cls_id))
        difference = _largest_difference(file, weights, cls_id)
    except (torch.onnx.OnnxExporterError, AttributeError) as error:
        file.unlink(missing_ok=True)
        raise CheckpointError(
            f"The encoder of pictures in {folder} cannot be written as ONNX ({str(error).strip().splitlines()[0]}). "
            "The export is complete without it. Use framework.predict for pictures."
        ) from error
    if not difference <= TOLERANCE:
        file.unlink()
        raise CheckpointError(
            f"{file} computes other vectors than Cloze: they differ by {difference:.1e}, and {TOLERANCE:.0e} is "
            "allowed. The file was removed, and the export without it is complete. Try another version of torch or "
            "onnxruntime."
        )
    card = folder / CARD_FILE
    if card.is_file():
        with card.open("a", encoding="utf-8") as stream:
            stream.write(_CARD)
    return file


class _PictureVectors(nn.Module):
    """Transformers class of an export that reads patches and returns one vector per picture."""

    added: Tensor
    first: Tensor

    def __init__(self, folder: Path, weights: PretrainedWeights, cls_id: int) -> None:
        # Imported here, because only ONNX needs it.
        import transformers

        super().__init__()
        config = weights.config
        with torch.device("meta"):
            # The encoder knows which kind of positions its patches have.
            patches = TransformerEncoder(config).embeddings.patch_embeddings
        assert isinstance(patches, PatchEmbeddings)
        prefix = "embeddings.patch_embeddings."
        own = {name.removeprefix(prefix): each for name, each in weights.encoder.items() if name.startswith(prefix)}
        patches.load_state_dict(own, assign=True)
        self.patches = patches
        self.model = transformers.AutoModel.from_pretrained(folder)
        self.has_mean = weights.task_record["pooling"] == "mean"
        self.normalizes = bool(weights.task_record["normalize"])
        encoder = weights.encoder
        added = torch.zeros(config.max_sequence_length, config.hidden_size)
        if "embeddings.position_embeddings.weight" in encoder:
            added = added + encoder["embeddings.position_embeddings.weight"][config.position_offset :]
        if "embeddings.token_type_embeddings.weight" in encoder:
            added = added + encoder["embeddings.token_type_embeddings.weight"][0]
        self.register_buffer("added", added)
        self.register_buffer("first", encoder["embeddings.word_embeddings.weight"][cls_id].clone())
        self.eval()

    def forward(self, patches: Tensor, places: Tensor, patch_mask: Tensor) -> Tensor:
        """Maps (batch, patches, patch_dim) uint8, (batch, patches, 2) and (batch, patches) to (batch, hidden)."""
        batch, count, _ = patches.shape
        embedded = self.patches.embed(patches.flatten(0, 1), places.flatten(0, 1)).unflatten(0, (batch, count))
        first = self.first.expand(batch, 1, -1)
        mask = torch.cat([patch_mask.new_ones(batch, 1), patch_mask], dim=1)
        embeddings = torch.cat([first, embedded - self.added[1 : count + 1]], dim=1)
        hidden = self.model(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
        vectors = hidden[:, 0]
        if self.has_mean:
            weight = mask[:, :, None].to(hidden.dtype)
            vectors = (hidden * weight).sum(dim=1) / weight.sum(dim=1)
        return normalize(vectors, dim=1) if self.normalizes else vectors


def _inputs(sides: tuple[tuple[int, int], ...], patch_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns patches, places and mask of one picture per entry, padded to the longest."""
    longest = max(rows * columns for rows, columns in sides)
    patches = torch.arange(len(sides) * longest * patch_dim) * 7919 % 256
    places, mask = torch.zeros(len(sides), longest, 2, dtype=torch.int64), torch.zeros(len(sides), longest)
    for index, (rows, columns) in enumerate(sides):
        grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        places[index, : len(grid)] = grid
        mask[index, : len(grid)] = 1
    return patches.view(len(sides), longest, patch_dim).to(torch.uint8), places, mask.long()


def _write(file: Path, model: _PictureVectors) -> None:
    example = _inputs((_EXAMPLE_SIDES, _EXAMPLE_SIDES[::-1]), model.patches.projection.in_features)
    axes = {0: "batch", 1: "patches"}
    with suppressed_warnings():
        program = torch.onnx.export(
            model,
            example,
            dynamo=True,
            verbose=False,
            input_names=list(_INPUTS),
            output_names=[_OUTPUT],
            dynamic_shapes=tuple(axes for _ in example),
        )
        assert program is not None
        program.save(file)


def _largest_difference(file: Path, weights: PretrainedWeights, cls_id: int) -> float:
    """Returns the largest difference from the vectors of the packed encoder, relative to the largest value or 1."""
    import onnxruntime

    encoder = TransformerEncoder(weights.config)
    encoder.load_state_dict(weights.encoder, strict=False)
    encoder.eval()
    patches, places, mask = _inputs(_TRIAL_SIDES, 3 * weights.config.patch_size**2)
    counts = mask.sum(dim=1).numpy()
    lengths = counts + 1
    starts = np.cumsum(lengths) - lengths
    ids = np.full(int(lengths.sum()), FILLER_TOKEN_ID)
    ids[starts] = cls_id
    is_real = mask.bool()
    tokens = np.delete(np.arange(len(ids)), starts)
    packed = Patches(patches[is_real].numpy(), tokens, places[is_real].numpy())
    batch = pack_sequences(ids, lengths, np.arange(len(lengths)), patches=packed)
    with torch.no_grad():
        expected = POOLINGS[str(weights.task_record["pooling"])](encoder(batch), batch)
        if weights.task_record["normalize"]:
            expected = normalize(expected, dim=1)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (actual,) = session.run(
        [_OUTPUT], {name: each.numpy() for name, each in zip(_INPUTS, (patches, places, mask), strict=True)}
    )
    difference = np.abs(actual - expected.numpy()).max() / max(float(expected.abs().max()), 1.0)
    return float(difference) if np.isfinite(difference) else float("inf")
