"""Training steps of conf/model's encoders on drawn sequences, built without Hydra, data files and a tokenizer.

Operation counts and `tests.benchmarks.gpu_step` share them. Module, data module and plan are the product's own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from framework.batch import PackedBatch
from framework.data.flat_source import HeldItems
from framework.data.planning.collate import Shape, Target, pack_sequences
from framework.data.planning.plan import StepSequences
from framework.distributed.parallel.precision import Precision
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.nn.initialization import initial_values
from framework.optim.parameter_groups import AdamW
from framework.tasks.pretraining.task import PretrainingTask
from framework.tasks.sequence_classification.task import SequenceClassificationTask
from framework.tasks.task import Task, TaskModel

CONF = Path(__file__).resolve().parents[3] / "conf"
SEED = 0
BF16 = Precision("bf16")


@dataclass(frozen=True)
class Workload:
    """One training step to measure.

    Attributes:
        model: Name of a file of conf/model.
        max_length: Most tokens of a sequence.
        min_length: Fewest tokens of a sequence. Lengths are uniform between the two; for fine-tuning see `lengths`.
        sequences: Sequences of a step.
        mask_rate: Share of masked tokens; None: fine-tuning with two classes.
        overrides: Fields of the encoder configuration that differ from the file.
    """

    model: str
    max_length: int
    min_length: int
    sequences: int
    mask_rate: float | None
    overrides: tuple[tuple[str, Any], ...] = ()

    @property
    def micro_batch_tokens(self) -> int:
        """Returns the token budget of a micro-batch, into which every step fits."""
        return self.sequences * self.max_length

    @property
    def encoder(self) -> EncoderConfig:
        """Returns the encoder configuration."""
        fields = yaml.safe_load((CONF / "model" / f"{self.model}.yaml").read_text(encoding="utf-8"))
        return EncoderConfig(**fields | dict(self.overrides))

    def lengths(self, num_sequences: int) -> np.ndarray:
        """Draws lengths: uniform for pre-training; for fine-tuning normal with mean 24, as sentences of SST-2."""
        rng = np.random.default_rng(SEED)
        if self.mask_rate is None:
            return rng.normal(24, 10, num_sequences).round().clip(self.min_length, self.max_length).astype(np.int64)
        return rng.integers(self.min_length, self.max_length + 1, num_sequences)


def workload(name: str, length: int | None = None, tokens: int | None = None) -> Workload:
    """Returns the workload of a name that `gpu_step --models` accepts.

    BERT-base has sequences of 8 to 512 tokens (mean 260, as pairs from IMDB have), other models have full sequences.

    Args:
        name: A file of conf/model for pre-training, or "minilm_sst2" for fine-tuning.
        length: Most tokens of a sequence; None: 512, for fine-tuning 64.
        tokens: Mean number of tokens of a step; None: 16,384, for fine-tuning 768.
    """
    if name == "minilm_sst2":
        return Workload("minilm_l6", length or 64, 4, (tokens or 768) // 24, None)
    length, tokens = length or 512, tokens or 16384
    shortest = 8 if name == "bert_base" else length
    rate = 0.3 if name.startswith("modernbert") else 0.15
    return Workload(name, length, shortest, max(1, round(2 * tokens / (shortest + length))), rate)


class DrawnSource(HeldItems):
    """Sequences of random words with targets of a workload's task (`framework.data.planning.plan.SequenceSource`)."""

    def __init__(self, drawn: Workload, num_sequences: int) -> None:
        super().__init__(drawn.lengths(num_sequences))
        config, rng = drawn.encoder, np.random.default_rng(SEED)
        self.max_length = drawn.max_length
        self.fingerprint = repr(drawn)
        self._mask_rate, self._has_pairs = drawn.mask_rate, config.type_vocab_size > 1
        self.words = [rng.integers(1, config.vocab_size, length) for length in self._item_lengths]
        self.labels = rng.integers(0, 2, num_sequences)
        self._masked = [
            np.sort(rng.choice(length, round((self._mask_rate or 0.0) * length), replace=False))
            for length in self._item_lengths
        ]

    def most_targets(self, tokens: int, sequences: int) -> int:
        """Returns the number of masked tokens that a micro-batch of this many tokens and sequences never exceeds."""
        return round((self._mask_rate or 0.0) * tokens) + sequences

    def build(self, sequences: StepSequences, step: int, shape: Shape = None) -> PackedBatch:
        """Builds one micro-batch."""
        indices, sequence_ids = sequences.indices, sequences.sequence_ids
        lengths = self._item_lengths[indices]
        empty = [np.zeros(0, dtype=np.int64)]
        words = np.concatenate(empty + [self.words[index] for index in indices])
        labels, count = Target(self.labels[indices], "sequences"), float(len(indices))
        if self._mask_rate is None:
            return pack_sequences(
                words, lengths, sequence_ids, None, {"labels": labels}, {"classification": count}, shape
            )
        starts = np.cumsum(lengths) - lengths
        positions = np.concatenate(
            empty + [start + self._masked[index] for start, index in zip(starts, indices, strict=True)]
        )
        targets = {
            "mlm_positions": Target(positions, "targets", 0),
            "mlm_labels": Target(words[positions], "targets"),
        }
        counts = {"mlm": float(len(positions))}
        segments = np.zeros(len(words), dtype=np.int64)
        if self._has_pairs:
            targets["nsp_labels"], counts["nsp"] = labels, count
        return pack_sequences(words, lengths, sequence_ids, segments, targets, counts, shape)


def build_task(drawn: Workload) -> Task:
    """Builds the task of a workload: pre-training, with pairs if the encoder has segments, or two classes."""
    if drawn.mask_rate is not None:
        return PretrainingTask(drawn.max_length, nsp=drawn.encoder.type_vocab_size > 1, mask_rate=drawn.mask_rate)
    task = SequenceClassificationTask(drawn.max_length, pooling="mean")
    task.problem.learn(("0", "1"), ["0", "1"])
    return task


def build_model(drawn: Workload, task: Task, device: str = "meta") -> TaskModel:
    """Builds encoder and head."""
    config = drawn.encoder
    with torch.device(device):
        encoder = TransformerEncoder(config)
        return TaskModel(encoder, task.build_head(encoder, config))


def module_arguments(drawn: Workload, task: Task, device: str = "meta") -> dict[str, Any]:
    """Returns the arguments of `framework.modules.encoder_module.EncoderModule`, which imports Lightning."""
    return {
        "model": build_model(drawn, task, device),
        "task": task,
        "seed": SEED,
        "precision": BF16,
        "initial_values": lambda model: initial_values(model, drawn.encoder, SEED),
        "build_optimizer": lambda model: AdamW(lr=1e-4).build(model.named_parameters(), {}, torch.bfloat16),
        "schedule": lambda step: 1.0,
        "max_grad_norm": 1.0,
    }
