"""Miniature training run: real encoder, plan, module, callbacks and checkpoints, with a task and data from hashes.

Three loss terms, two of them with different counts, and sequences of 4 to 20 tokens reveal a step that is divided
wrongly among ranks and micro-batches.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import lightning.pytorch as pl
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric, Metric

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.callbacks.cadence import Cadence
from framework.callbacks.early_stopping import Patience
from framework.callbacks.finite_guard import STOP, NonFinite
from framework.callbacks.resume import Resume
from framework.callbacks.standard import Endings, standard_callbacks
from framework.checkpoint.retention import Retention
from framework.checkpoint.storage import Location
from framework.data.planning.collate import RoundedShape, Shape, Target, pack_sequences
from framework.data.planning.order import Shuffle
from framework.data.planning.plan import StepSequences
from framework.datamodules.datamodule import EncoderDataModule
from framework.distributed.mesh import mesh_shape
from framework.distributed.parallel.precision import Precision
from framework.distributed.parallel.sharding import DEFAULT_SHARDING, Sharding
from framework.distributed.processes.environment import process_info
from framework.distributed.strategy import build_strategy
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.models.freezing import freeze, freeze_others
from framework.modules.encoder_module import EncoderModule
from framework.modules.passes.regularization import Regularization
from framework.modules.trainer import build_trainer
from framework.nn.cross_entropy import cross_entropy_and_z_sum
from framework.nn.initialization import initial_values
from framework.nn.lora import LORA_PARAMETERS, LoraSettings, apply_lora
from framework.optim.combined import CombinedOptimizer
from framework.optim.parameter_groups import AdamW
from framework.privacy.secret import Secret
from framework.random import key, mix, random_integers
from framework.tasks.probing.probe import Probe
from framework.tasks.task import Task, TaskModel
from framework.tracking.study import StudyTrial

VOCAB = 40
SEED = 3
FP32 = Precision("fp32")
CONFIG = EncoderConfig(
    family="bert",
    vocab_size=VOCAB,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    intermediate_size=32,
    max_position_embeddings=32,
)


class ToySource:
    """Source whose lengths, tokens and labels are hashes of the index."""

    max_length = 20
    shuffle = Shuffle()
    mean_length = 12.0

    def __init__(self, size: int) -> None:
        self.size = size
        self.fingerprint = f"toy {size}"

    def read_ahead(self, epoch: int, start: int, stop: int) -> None:
        """Does nothing, since the source reads no files."""

    def __len__(self) -> int:
        return self.size

    def lengths(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        return 4 + random_integers(mix(key("length"), indices), 17)

    def build(self, sequences: StepSequences, step: int, shape: Shape = None) -> PackedBatch:
        indices, lengths = sequences.indices, self.lengths(sequences.epochs, sequences.indices)
        tokens = [
            random_integers(mix(key("token", int(index)), np.arange(n)), VOCAB)
            for index, n in zip(indices, lengths, strict=True)
        ]
        starts = np.cumsum(lengths) - lengths
        # Every third token is predicted, but only sequences with an even index have a second label.
        per_sequence = [start + np.arange(0, n, 3) for start, n in zip(starts, lengths, strict=True)]
        positions = np.concatenate([np.zeros(0, dtype=np.int64), *per_sequence])
        labels = np.where(indices % 2 == 0, indices // 2 % 2, IGNORE_INDEX)
        flat = np.concatenate([np.zeros(0, dtype=np.int64), *tokens])
        targets = {
            "positions": Target(positions, "targets", filler=0),
            "words": Target((flat[positions] + 1) % VOCAB, "targets"),
            "labels": Target(labels, "sequences"),
        }
        counts = {"word": len(positions), "z": len(positions), "pair": int((labels != IGNORE_INDEX).sum())}
        return pack_sequences(flat, lengths, sequences.sequence_ids, targets=targets, counts=counts, shape=shape)


class ToyHead(nn.Module):
    """Head that predicts words at positions, and a label from each sequence's first token."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.word = nn.Linear(hidden_size, VOCAB)
        self.pair = nn.Linear(hidden_size, 2)

    def forward(self, hidden_states: Tensor, batch: PackedBatch, dropout_keys: Tensor | None) -> dict[str, Tensor]:
        first = hidden_states[batch.cu_seqlens[:-1].long()]
        return {"word": self.word(hidden_states[batch.targets["positions"]]), "pair": self.pair(first)}


class ToyTask(Task):
    """Task with two cross-entropy terms, the second with half the weight, and a z-loss in training."""

    best_metric = "loss"
    best_mode = "min"
    wraps_epochs = True

    def __init__(self) -> None:
        self.loss_weights = {"word": 1.0, "pair": 0.5, "z": 0.01}

    @property
    def validation_weights(self) -> Mapping[str, float]:
        return {"word": 1.0, "pair": 0.5}

    @property
    def class_scores(self) -> Mapping[str, str]:
        return {"word": "words", "pair": "labels"}

    def build_sources(self, data: object, tokenizer: object, seed: int) -> dict[str, ToySource]:
        return {"train": ToySource(37), "validation": ToySource(11)}

    def build_head(self, encoder: TransformerEncoder, config: EncoderConfig) -> nn.Module:
        return ToyHead(config.hidden_size)

    def loss_sums(self, outputs: Mapping[str, Tensor], batch: PackedBatch) -> dict[str, Tensor]:
        word, z = cross_entropy_and_z_sum(outputs["word"], batch.targets["words"])
        pair = functional.cross_entropy(
            outputs["pair"].float(), batch.targets["labels"], ignore_index=IGNORE_INDEX, reduction="sum"
        )
        return {"word": word, "pair": pair, "z": z}

    def build_metrics(self) -> dict[str, Metric]:
        return {"word_accuracy": MeanMetric()}

    def update_metrics(self, metrics: Mapping[str, Metric], outputs: Mapping[str, Tensor], batch: PackedBatch) -> None:
        real = batch.targets["words"] != IGNORE_INDEX
        metrics["word_accuracy"].update((outputs["word"].argmax(-1) == batch.targets["words"]).float()[real])


def build_module(
    lr: float = 1e-2,
    max_grad_norm: float | None = 1.0,
    ema_decay: float | None = None,
    precision: Precision = FP32,
    task: Task | None = None,
    regularization: Regularization | None = None,
    frozen: tuple[str, ...] = (),
    adapter: LoraSettings | None = None,
    sharding: Sharding = DEFAULT_SHARDING,
    config: EncoderConfig = CONFIG,
) -> EncoderModule:
    """Builds the module of a toy run on the meta device."""
    task = task or ToyTask()

    def build_optimizer(built: TaskModel) -> CombinedOptimizer:
        optimizer = AdamW(lr=lr).build(built.named_parameters(), {}, torch.float32)
        if ema_decay is not None:
            optimizer.keep_average(ema_decay)
        return optimizer

    with torch.device("meta"):
        encoder = TransformerEncoder(config)
        model = TaskModel(encoder, task.build_head(encoder, config))
        if adapter is not None:
            apply_lora(encoder.layers, config.num_heads, adapter)
            freeze_others(model, (*LORA_PARAMETERS, *adapter.train_also), "adapter.train_also")
    freeze(model, frozen, "trainer.freeze")
    return EncoderModule(
        model=model,
        task=task,
        seed=SEED,
        precision=precision,
        initial_values=lambda built: initial_values(built, config, SEED),
        build_optimizer=build_optimizer,
        schedule=lambda step: 1.0 / (1 + step),
        max_grad_norm=max_grad_norm,
        sharding=sharding,
        regularization=regularization,
    )


def train(
    run_folder: Path,
    strategy: str = "single",
    cadence: Cadence | None = None,
    budget: int = 24,
    global_batch_size: int = 6,
    checkpoint: Location | None = None,
    extra_callbacks: tuple[pl.Callback, ...] = (),
    module: EncoderModule | None = None,
    checkpoint_async: bool = True,
    non_finite: NonFinite = STOP,
    retention: Retention | None = None,
    checkpoints: Location | None = None,
    patience: Patience | None = None,
    probes: Mapping[str, Probe] = MappingProxyType({}),
    trial: StudyTrial | None = None,
    shape: RoundedShape | None = None,
    accepts_missing_rows: bool = False,
    has_fixed_shapes: bool = False,
    secret: Secret | None = None,
) -> EncoderModule:
    """Runs or resumes a toy run in this process, which is one of the ranks that the environment defines.

    With a secret, the steps are Poisson samples.
    """
    cadence = cadence or Cadence(max_steps=7, log_every_n_steps=1, validate_every_n_steps=3, checkpoint_every_n_steps=2)
    info = process_info() if dist.is_initialized() and strategy != "single" else None
    rank, num_ranks = (info.rank, info.world_size) if info else (0, 1)
    mesh = mesh_shape(strategy, num_ranks)
    module = module or build_module()
    checkpoints = checkpoints or run_folder / "checkpoints"
    resume = None
    if checkpoint is not None:
        resume = Resume(checkpoint, checkpoints, accepts_missing_rows=accepts_missing_rows)
    callbacks = standard_callbacks(
        run_folder,
        cadence,
        module.task,
        retention or Retention(keep_last=2),
        resume,
        checkpoint_async=checkpoint_async,
        checkpoints=checkpoints,
        probes=probes,
        endings=Endings(None, non_finite, patience, trial),
    )
    trainer = build_trainer(
        build_strategy(strategy, mesh, 60.0),
        "cpu",
        num_ranks,
        1,
        cadence.max_steps,
        cadence.validate_every_n_steps,
        [*callbacks, *extra_callbacks],
    )
    sources = module.task.build_sources(None, None, SEED)
    data = EncoderDataModule(
        sources,
        SEED,
        global_batch_size,
        budget,
        cadence.max_steps,
        module.task.wraps_epochs,
        mesh.data_parallel_size,
        mesh.data_parallel_rank(rank),
        shape=shape,
        has_fixed_shapes=has_fixed_shapes or module.compile_backend != "none",
    )
    if secret is not None:
        data.sample_privately(secret)
    trainer.fit(module, datamodule=data)
    return module
