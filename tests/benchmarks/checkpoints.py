"""How long training stands still for a checkpoint: `python -m tests.benchmarks.checkpoints [--folder .] [--rounds 5]`.

The state of BERT-base with AdamW (weights and two moments, fp32) in one process. A round makes both saves of the same
state, one after the other: synchronous, where training stands still until COMPLETE is written, and in the background,
where it stands still while the tensors are copied. Steps of matrix products are timed alone and beside the writing.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from framework.checkpoint.save import write_checkpoint
from framework.checkpoint.staging import Staging
from framework.checkpoint.tensors import checkpoint_tensors
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.optim.parameter_groups import AdamW

_SETTLE_SECONDS = 2.0


def bert_base_state() -> dict[str, Tensor]:
    """Weights and optimizer state by key, as a checkpoint holds them, with random values."""
    config = EncoderConfig(
        family="bert",
        vocab_size=30_522,
        hidden_size=768,
        num_layers=12,
        num_heads=12,
        intermediate_size=3_072,
        max_position_embeddings=512,
    )
    model = TransformerEncoder(config)
    tensors = checkpoint_tensors(model, AdamW(lr=1e-3).build(model.named_parameters(), {}, torch.float32))
    generator = torch.Generator().manual_seed(0)
    for tensor in tensors.values():
        if tensor.is_floating_point():
            tensor.normal_(generator=generator)
    return tensors


def step_seconds(weight: Tensor, batch: Tensor) -> float:
    """One step's worth of matrix products."""
    began = time.perf_counter()
    for _ in range(8):
        batch @ weight
    return time.perf_counter() - began


def measure(tensors: dict[str, Tensor], staging: Staging, folder: Path) -> dict[str, float]:
    """One round: seconds of each part, and of a step alone and beside the writing."""
    weight, batch = torch.ones(768, 768), torch.ones(4_096, 768)
    times: dict[str, Any] = {}
    began = time.perf_counter()
    write_checkpoint(folder, 1, tensors, {})
    times["synchronous"] = time.perf_counter() - began
    times["alone"] = statistics.median(step_seconds(weight, batch) for _ in range(20))
    with ThreadPoolExecutor(max_workers=1) as writer:
        began = time.perf_counter()
        write: Future[Path] = writer.submit(write_checkpoint, folder, 2, staging.copy(tensors), {})
        times["stall"] = time.perf_counter() - began
        beside = [step_seconds(weight, batch)]
        while not write.done():
            beside.append(step_seconds(weight, batch))
        write.result()
        times["background"] = time.perf_counter() - began
    times["beside"], times["longest beside"] = statistics.median(beside), max(beside)
    shutil.rmtree(folder)
    time.sleep(_SETTLE_SECONDS)
    return times


def main() -> None:
    """Measures and tells."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk that is measured")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    tensors, staging = bert_base_state(), Staging()
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    began = time.perf_counter()
    staging.copy(tensors)
    print(f"{num_bytes / 1e9:.2f} GB; first copy, before the first step, {time.perf_counter() - began:.2f} s")
    ratios = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        for _ in range(arguments.rounds):
            times = measure(tensors, staging, Path(name) / "checkpoints")
            ratios.append(times["stall"] / times["synchronous"])
            print(
                f"synchronous {times['synchronous']:.2f} s, stall {times['stall']:.3f} s ({100 * ratios[-1]:.1f} %), "
                f"written after {times['background']:.2f} s; a step {1000 * times['alone']:.0f} ms alone, "
                f"{1000 * times['beside']:.0f} ms beside the writing (longest {1000 * times['longest beside']:.0f} ms)"
            )
    print(f"stall / synchronous save: median {100 * statistics.median(ratios):.1f} %, worst {100 * max(ratios):.1f} %")


if __name__ == "__main__":
    main()
