"""Measures pictures per second of a training step: packed in their own aspect ratio, and padded to squares.

Pictures are scaled so that their longer side has at most 8 patches of 8 pixels. Packed, a picture has the patches that
it covers; padded, all have 64. The padded ones run through the same encoder, and through the ViT of transformers of the
same shape (6 layers of 384). All three take turns, forward and backward, with one thread. Numbers are medians of
processor time; reading the pictures is not included.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from PIL import Image
from torch import Tensor

from framework.batch import PackedBatch
from framework.data.planning.plan import StepPlan
from framework.data.reading.images import PatchGrid, PictureFolder
from framework.data.tokenization.tokenizer import Tokenizer
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.tasks.image_text.features import single_source
from framework.tasks.pooling import pool_mean

PATCH, SIDE = 8, 8
GRID = PatchGrid(PATCH, SIDE * SIDE, SIDE)


def packed(folder: Path, names: list[str], tokenizer: Tokenizer, budget: int) -> list[PackedBatch]:
    files = PictureFolder(folder)
    source = single_source([files.find(name, name) for name in names], (), tokenizer, GRID, max_length=8)
    return list(StepPlan(source, 0, len(names), budget, shuffle=False).batches(0, 0))


def write_squares(folder: Path, names: list[str], target: Path) -> Tensor:
    """Writes the pictures on white squares; returns them as (pictures, 3, edge, edge) for the ViT."""
    pixels = []
    for name in names:
        with Image.open(folder / name) as opened:
            picture = opened.convert("RGBA")
        square = Image.new("RGBA", (max(picture.size),) * 2, (255, 255, 255, 255))
        place = tuple((square.width - size) // 2 for size in picture.size)
        square.alpha_composite(picture, place)
        square = square.convert("RGB").resize((PATCH * SIDE,) * 2)
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        square.save(target / name, format="PNG")
        pixels.append(torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(*square.size, 3))
    return torch.stack(pixels).permute(0, 3, 1, 2) / 127.5 - 1


def build_encoder(tokenizer: Tokenizer) -> TransformerEncoder:
    config = EncoderConfig(
        family="bert",
        vocab_size=tokenizer.vocab_size,
        hidden_size=384,
        num_layers=6,
        num_heads=12,
        intermediate_size=1536,
        max_position_embeddings=128,
        hidden_dropout=0.0,
        embedding_dropout=0.0,
        patch_size=PATCH,
    )
    encoder = TransformerEncoder(config)
    for parameter in encoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    return encoder


def build_vit() -> transformers.ViTModel:
    return transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=1536,
            image_size=PATCH * SIDE,
            patch_size=PATCH,
            hidden_dropout_prob=0.0,
        )
    )


def seconds_of(step: Callable[[], Tensor], model: torch.nn.Module) -> float:
    model.zero_grad()
    start = time.process_time()
    with torch.autocast("cpu", torch.bfloat16):
        loss = step()
    loss.backward()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of pictures")
    parser.add_argument("tokenizer", help="folder of a tokenizer")
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_folder(options.tokenizer)
    found = sorted(str(path.relative_to(options.folder)) for path in options.folder.rglob("*") if path.is_file())
    names = found[:: max(1, len(found) // options.pictures)][: options.pictures]
    encoder, vit = build_encoder(tokenizer), build_vit()
    with tempfile.TemporaryDirectory() as squares:
        pixels = write_squares(options.folder, names, Path(squares))
        own, padded = (packed(Path(each), names, tokenizer, 4096) for each in (options.folder, squares))

    def step_of(batches: list[PackedBatch]) -> Callable[[], Tensor]:
        return lambda: torch.stack(
            [pool_mean(encoder(batch), batch).float().square().mean() for batch in batches]
        ).sum()

    steps = {
        "packed": (step_of(own), encoder),
        "padded, same encoder": (step_of(padded), encoder),
        "padded, ViT of transformers": (lambda: vit(pixels).last_hidden_state.float().square().mean(), vit),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.rounds + 1):
        for name, (step, model) in steps.items():
            seconds = seconds_of(step, model)
            if number:  # the first round warms up
                times[name].append(seconds)
    patches = sum(len(batch.patches) for batch in own if batch.patches is not None) / len(names)
    print(f"{len(names)} pictures, {patches:.1f} patches each packed, {SIDE * SIDE} padded")
    for name, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(values, times["packed"], strict=True))
        print(f"{name}: {len(names) / statistics.median(values):.1f} pictures a second; {ratio:.2f} times the time")


if __name__ == "__main__":
    main()
