"""Measures the processor time of a private step beside a plain one, by part, on a CPU with one thread.

The model has the shape of MiniLM (6 layers of 384, 22.7 million weights) and the texts the lengths of SST-2's. Both
kinds of step take turns, with AdamW. The numbers are medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from framework.batch import PackedBatch
from framework.data.planning.collate import Target, pack_sequences
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.models.freezing import freeze_others
from framework.modules.passes.private import add_noise
from framework.modules.passes.row_units import BatchUnits
from framework.modules.passes.tape import Tape
from framework.nn.dropout import dropout_base, token_keys
from framework.nn.lora import LORA_PARAMETERS, LoraSettings, apply_lora
from framework.privacy.secret import Secret
from framework.tasks.sequence_classification.head import build_sequence_classification_head
from framework.tasks.task import TaskModel

Times = dict[str, float]


def build_model(has_lora: bool) -> TaskModel:
    config = EncoderConfig(
        family="bert",
        vocab_size=30522,
        hidden_size=384,
        num_layers=6,
        num_heads=12,
        intermediate_size=1536,
        max_position_embeddings=512,
    )
    encoder = TransformerEncoder(config)
    model = TaskModel(encoder, build_sequence_classification_head(config, 2, "mean"))
    if has_lora:
        apply_lora(encoder.layers, config.num_heads, LoraSettings(8, 16.0, ("query", "value")))
        freeze_others(model, [*LORA_PARAMETERS, "head.*"], "benchmark")
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def build_batch(num_rows: int) -> PackedBatch:
    draws = np.random.default_rng(0)
    lengths = np.clip(draws.normal(24, 11, num_rows), 4, 64).astype(np.int64)
    ids = draws.integers(1000, 30000, lengths.sum())
    return pack_sequences(
        ids, lengths, np.arange(num_rows), targets={"labels": Target(np.arange(num_rows) % 2, "sequences")}, counts={}
    )


class Steps:
    """Plain and private steps on one micro-batch, which return the seconds of their parts."""

    def __init__(self, model: TaskModel, batch: PackedBatch, precision: str) -> None:
        self._model, self._batch, self._is_bf16 = model, batch, precision == "bf16"
        self._keys = token_keys(dropout_base(1, 2, 0), batch)
        self._tape = Tape(model, {"": "sequences"})
        self._secret = Secret()
        self._secret.set(bytes(32))
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)

    def plain(self) -> Times:
        self._optimizer.zero_grad()
        timer = Timer()
        losses = self._losses()
        timer.end("forward")
        losses.sum().backward()
        timer.end("backward")
        self._optimizer.step()
        return timer.end("optimizer")

    def private(self) -> Times:
        self._optimizer.zero_grad()
        timer = Timer()
        units = BatchUnits(self._batch)
        with self._tape.recording() as recording:
            losses = self._losses()
        timer.end("forward")
        gradients = self._tape.differentiate(recording, losses, units, retain_graph=False)
        timer.end("gradients of outputs")
        norms = gradients.squares().sqrt()
        timer.end("norms")
        gradients.accumulate((1 / norms).clamp(max=1).float() / units.num_units)
        timer.end("gradients of weights")
        add_noise(self._model, self._secret, 0, 1e-3)
        timer.end("noise")
        self._optimizer.step()
        return timer.end("optimizer")

    def _losses(self) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._is_bf16):
            logits = self._model(self._batch, self._keys)["logits"]
        return cross_entropy(logits.float(), self._batch.targets["labels"], reduction="none")


class Timer:
    """Processor time of the parts of a step."""

    def __init__(self) -> None:
        self._times: Times = {}
        self._start = time.process_time()

    def end(self, part: str) -> Times:
        """Ends a part; returns the seconds of all parts."""
        now = time.process_time()
        self._times[part], self._start = now - self._start, now
        return self._times


def described(times: list[Times]) -> str:
    """Returns the median of each part, in ms."""
    medians: Mapping[str, float] = {part: statistics.median(each[part] for each in times) for part in times[0]}
    return ", ".join(f"{part} {1000 * seconds:.0f}" for part, seconds in medians.items())


def measure(step: Callable[[], Times], other: Callable[[], Times], repeats: int) -> tuple[list[Times], list[Times]]:
    step(), other()
    pairs = [(step(), other()) for _ in range(repeats)]
    return [one for one, _ in pairs], [two for _, two in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    batch = build_batch(options.rows)
    steps = Steps(build_model(options.lora), batch, options.precision)
    plain, private = measure(steps.plain, steps.private, options.repeats)
    ratio = statistics.median(sum(b.values()) / sum(a.values()) for a, b in zip(plain, private, strict=True))
    print(f"{options.rows} rows, {batch.num_tokens} tokens, {options.precision}, lora={options.lora}: {ratio:.2f}")
    print(f"plain, ms: {described(plain)}\nprivate, ms: {described(private)}")


if __name__ == "__main__":
    main()
