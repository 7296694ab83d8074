"""Small models of several families with micro-batches of one fixed shape, and one step of any kind of passes."""

import numpy as np
import torch
from torch import Tensor

from framework.batch import PackedBatch, StepBatch
from framework.data.planning.collate import FixedShape, Target, pack_sequences
from framework.distributed.parallel.precision import Precision
from framework.distributed.parallel.sharding import DEFAULT_SHARDING
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.modules.passes.captured import CapturedSteps
from framework.modules.passes.model_passes import ModelPasses
from framework.modules.passes.sum_count import SumCountSteps
from framework.nn.dropout import has_dropout
from framework.tasks.pretraining.task import PretrainingTask
from framework.tasks.sequence_classification.task import SequenceClassificationTask
from framework.tasks.task import Task, TaskModel

SEED = 5
VOCAB = 100
TINY = {"vocab_size": VOCAB, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 48}
CONFIGS = {
    "bert": EncoderConfig(family="bert", max_position_embeddings=32, hidden_dropout=0.1, embedding_dropout=0.1, **TINY),
    "modernbert": EncoderConfig(
        **TINY | {"num_layers": 4},
        family="modernbert",
        max_position_embeddings=32,
        position_encoding="rotary",
        norm_placement="pre",
        gated=True,
        bias=False,
        norm_bias=False,
        type_vocab_size=0,
        local_attention_window=8,
        hidden_dropout=0.1,
        embedding_dropout=0.1,
    ),
}
SHAPE = FixedShape.around(96, 8, 20, 24)


def pretraining(config: EncoderConfig) -> Task:
    return PretrainingTask(24, nsp=config.type_vocab_size > 0, z_loss=1e-3)


def classification(config: EncoderConfig) -> Task:
    task = SequenceClassificationTask(pooling="mean")
    task.problem.learn(("no", "yes"), ["no", "yes"])
    return task


def build_model(task: Task, config: EncoderConfig) -> TaskModel:
    torch.manual_seed(0)
    encoder = TransformerEncoder(config)
    model = TaskModel(encoder, task.build_head(encoder, config))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def micro_batch(task: Task, seed: int, shape: FixedShape = SHAPE) -> PackedBatch:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(4, 24, 8)
    lengths = lengths[np.cumsum(lengths) <= 96]
    tokens, sequences = int(lengths.sum()), len(lengths)
    if isinstance(task, PretrainingTask):
        count = max(1, tokens // 6)
        positions = np.sort(rng.choice(tokens, count, replace=False))
        targets = {
            "mlm_positions": Target(positions, "targets", 0),
            "mlm_labels": Target(rng.integers(0, VOCAB, count), "targets"),
        }
        counts = {"mlm": float(count), "z": float(count), "nsp": float(sequences)}
        if task.nsp:
            targets["nsp_labels"] = Target(rng.integers(0, 2, sequences), "sequences")
    else:
        targets = {"labels": Target(rng.integers(0, 2, sequences), "sequences")}
        counts = {"classification": float(sequences)}
    ids, segments = rng.integers(0, VOCAB, tokens), rng.integers(0, 2, tokens)
    return pack_sequences(ids, lengths, rng.integers(0, 10**6, sequences), segments, targets, counts, shape)


def passes_of(model: TaskModel, task: Task, step: int) -> ModelPasses:
    return ModelPasses(
        model=model,
        task=task,
        precision=Precision("bf16"),
        has_dropout=has_dropout(model),
        seed=SEED,
        step=step,
        sharding=DEFAULT_SHARDING,
        mesh=None,
        loss_scale=1.0,
        run_backward=Tensor.backward,
    )


def run_step(
    steps: SumCountSteps | CapturedSteps, model: TaskModel, task: Task, step: StepBatch, device: str = "cpu"
) -> list[Tensor]:
    """Runs the passes of a step; returns its sums, the sums of its micro-batches, and the gradients."""
    model.zero_grad(set_to_none=True)
    counts = steps.counts(task, step)
    if device != "cpu":
        counts = counts.pin_memory().to(device, non_blocking=True)
    own = step if isinstance(steps, CapturedSteps) else step.to(device)
    sums, parts = steps.run(passes_of(model, task, step.step), own, counts)
    return [sums, parts, *(parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None)]
