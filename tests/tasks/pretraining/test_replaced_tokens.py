"""Replaced-token detection on one device: replacements, loss, metrics and the size of the generator."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.data.planning.collate import FixedShape
from framework.data.planning.plan import StepSequences
from framework.data.store_data import StoreData
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.nn.dropout import dropout_base, token_keys
from framework.nn.norm import LayerNorm, ResidualNorm
from framework.nn.sampling import draw_classes
from framework.tasks.pooling import pool_first
from framework.tasks.pretraining.generator import GeneratorSize
from framework.tasks.pretraining.replaced_tokens import ReplacedTokensTask
from framework.tasks.pretraining.replaced_tokens_head import KEYS, LABELS, ReplacedTokensHead
from framework.tasks.pretraining.replacements import ReplacementSource
from framework.tasks.task import TaskModel
from tests.support.training.tiny_run import make_store

CONFIG = EncoderConfig(
    family="electra",
    vocab_size=120,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    intermediate_size=48,
    max_position_embeddings=64,
    embedding_size=16,
    initializer_range=0.3,
)
SHARINGS = ("embeddings", "gradient_disentangled", "none")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("replaced") / "data")


def task_of(sharing: str = "embeddings", width: float = 0.5, **options) -> ReplacedTokensTask:
    return ReplacedTokensTask(GeneratorSize(width, 0.5), sequence_length=32, sharing=sharing, **options)


def sources_of(store: Path, seed: int = 0) -> dict[str, ReplacementSource]:
    data = StoreData(str(store), validation_fraction=0.2)
    return task_of().build_sources(data, Tokenizer.from_folder(store / "tokenizer"), seed)


def build(source: ReplacementSource, indices, step: int = 3, epoch: int = 0, shape: FixedShape | None = None):
    indices = np.asarray(indices, dtype=np.int64)
    return source.build(StepSequences(np.full(len(indices), epoch), indices, indices + 1000), step, shape)


def model_of(task: ReplacedTokensTask) -> TaskModel:
    torch.manual_seed(0)
    encoder = TransformerEncoder(CONFIG)
    model = TaskModel(encoder, task.build_head(encoder, CONFIG))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def keys_of_sequences(batch: PackedBatch) -> list[list[int]]:
    positions, keys = batch.targets["mlm_positions"], batch.targets[KEYS]
    is_target = batch.targets["mlm_labels"] != IGNORE_INDEX
    ends = batch.cu_seqlens.tolist()
    return [
        keys[is_target & (positions >= begin) & (positions < end)].tolist()
        for begin, end in pairwise(ends[: batch.num_sequences + 1])
    ]


def test_keys_of_draws_depend_on_seed_step_and_sequence_and_not_on_the_batch(store: Path):
    train = sources_of(store)["train"]
    base = keys_of_sequences(build(train, range(20)))
    flat = [key for keys in base for key in keys]
    assert len(set(flat)) == len(flat) > 40
    shape = FixedShape(400, 16, 100, 32)
    parts = [build(train, range(13, 20), shape=shape), build(train, range(13))]
    assert keys_of_sequences(parts[0]) + keys_of_sequences(parts[1]) == base[13:] + base[:13]
    others = (build(train, range(20), step=4), build(sources_of(store, 1)["train"], range(20)))
    for other in (*others, build(train, range(20), epoch=1)):
        assert not set(flat) & {key for keys in keys_of_sequences(other) for key in keys}
    held_out = [sources_of(store, seed)["validation"] for seed in (0, 1)]
    assert keys_of_sequences(build(held_out[0], range(9))) == keys_of_sequences(build(held_out[1], range(9), step=8))


def test_filler_is_no_target(store: Path):
    train = sources_of(store)["train"]
    batch = build(train, range(5), shape=FixedShape(400, 16, 100, 32))
    assert (batch.targets[LABELS] != IGNORE_INDEX).sum() == batch.num_tokens == batch.counts["discriminator"] < 400
    plain = build(train, range(5))
    model = model_of(task_of()).eval()
    outputs, expected = model(batch), model(plain)
    assert torch.equal(outputs[LABELS][: plain.num_tokens], expected[LABELS])
    assert (outputs[LABELS][plain.num_tokens :] == IGNORE_INDEX).all()
    empty = build(train, [])
    assert task_of().loss_sums(model(empty), empty)["discriminator"] == 0


@pytest.mark.parametrize("sharing", SHARINGS)
def test_loss_of_a_slow_reference(store: Path, sharing: str):
    """Sequence by sequence: the generator scores masked words, draws replace them, the encoder scores each token."""
    task = task_of(sharing)
    batch, model = build(sources_of(store)["train"], range(6)), model_of(task).eval()
    with torch.no_grad():
        sums = task.loss_sums(model(batch), batch)
    head = model.head
    assert isinstance(head, ReplacedTokensHead)
    generator_sum, discriminator_sum, num_replaced, first = 0.0, 0.0, 0, 0
    for index, length in enumerate(batch.lengths):
        ids = batch.input_ids[first : first + length].clone()
        here = (batch.targets["mlm_positions"] >= first) & (batch.targets["mlm_positions"] < first + length)
        positions, words = batch.targets["mlm_positions"][here] - first, batch.targets["mlm_labels"][here]
        alone = replace(build(sources_of(store)["train"], [index]), input_ids=ids, targets={"mlm_positions": positions})
        logits = head.generator(model.encoder, alone, None)
        generator_sum += torch.nn.functional.cross_entropy(logits, words, reduction="sum").item()
        drawn = draw_classes(logits, batch.targets[KEYS][here])
        ids[positions] = drawn
        original = batch.input_ids[first : first + length].clone()
        original[positions] = words
        is_replaced = ids != original
        scores = head.discriminator(model.encoder(replace(alone, input_ids=ids)))
        discriminator_sum += -torch.where(is_replaced, scores, -scores).sigmoid().log().sum().item()
        num_replaced += int(is_replaced.sum())
        first += length
    assert 0 < num_replaced <= batch.counts["generator"]
    assert float(sums["generator"]) == pytest.approx(generator_sum, rel=1e-5)
    assert float(sums["discriminator"]) == pytest.approx(discriminator_sum, rel=1e-5)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_no_gradient_flows_from_the_discriminator_into_the_generator(store: Path, sharing: str):
    task = task_of(sharing)
    batch, model = build(sources_of(store)["train"], range(6)), model_of(task)
    task.loss_sums(model(batch), batch)["discriminator"].backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert "encoder.embeddings.word_embeddings.weight" in reached
    assert not any(name.startswith("head.generator.") for name in reached)
    model.zero_grad(set_to_none=True)
    task.loss_sums(model(batch), batch)["generator"].backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    shared = {name for name in reached if name.startswith("encoder.")}
    tables = ("word_embeddings", "position_embeddings", "token_type_embeddings", "norm")
    expected = {f"encoder.embeddings.{table}.weight" for table in tables} | {"encoder.embeddings.norm.bias"}
    assert shared == (expected if sharing == "embeddings" else set())


def test_dropout_of_the_generator_differs_from_that_of_the_discriminator(store: Path):
    config = replace(CONFIG, embedding_size=None)
    task = task_of("embeddings", width=1.0)
    encoder = TransformerEncoder(config)
    head = task.build_head(encoder, config)
    batch = build(sources_of(store)["train"], range(3))
    keys = token_keys(dropout_base(0, 0, 0), batch)
    seen: list[Tensor] = []
    encoder.embeddings.dropout.register_forward_hook(lambda module, args, output: seen.append(args[1]))
    TaskModel(encoder, head)(batch, keys)
    assert torch.equal(seen[1], keys) and not (seen[0] == keys).any()


def test_all_norms_run_if_a_pooling_replaces_the_head(store: Path):
    """The norms are one group of FSDP2, which torch before 2.13 gathers anew only after all of them have run."""
    model, run = model_of(task_of("none")), []
    norms = [module for module in model.modules() if isinstance(module, LayerNorm)]
    for module in norms:
        module.register_forward_hook(lambda module, args, output: run.append(module))
    with torch.no_grad():
        model(build(sources_of(store)["train"], range(3)), pooling=pool_first)
    assert set(run) == set(norms) and any(isinstance(module, ResidualNorm) for module in model.head.modules())


def test_metrics_of_written_out_scores():
    task = task_of()
    metrics = task.build_metrics()
    labels = torch.tensor([0, 1, 1, 0, 0, 1, IGNORE_INDEX])
    outputs = {
        "discriminator": torch.tensor([-1.0, 2.0, -1.0, 3.0, -2.0, 1.0, 5.0]),
        LABELS: labels,
        "generator": torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]),
    }
    batch = type("Batch", (), {"targets": {"mlm_labels": torch.tensor([1, 1, 1])}})
    task.update_metrics(metrics, outputs, batch)
    assert {name: float(metric.compute()) for name, metric in metrics.items()} == pytest.approx(
        {
            "generator_accuracy": 2 / 3,
            "discriminator_accuracy": 4 / 6,
            "replaced_precision": 2 / 3,
            "replaced_recall": 2 / 3,
            "replaced_share": 3 / 6,
        }
    )


@pytest.mark.parametrize(
    ("size", "shape", "expected"),
    [
        ((0.25, 1.0), (256, 12, 4, 1024), (64, 12, 1, 256)),  # small
        ((1 / 3, 1.0), (768, 12, 12, 3072), (256, 12, 4, 1024)),  # base
        ((0.25, 1.0), (1024, 24, 16, 4096), (256, 24, 4, 1024)),  # large
        ((1.0, 0.5), (768, 12, 12, 3072), (768, 6, 12, 3072)),  # DeBERTaV3 base
    ],
)
def test_sizes_of_published_generators(size, shape, expected):
    names = ("hidden_size", "num_layers", "num_heads", "intermediate_size")
    config = GeneratorSize(*size).config(replace(CONFIG, embedding_size=128, **dict(zip(names, shape, strict=True))))
    assert tuple(getattr(config, name) for name in names) == expected
    assert config.table_size == 128


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_rate": 1.5}, r"task\.mask_rate is 1\.5"),
        ({"temperature": 0.0}, r"task\.temperature is 0\.0"),
        ({"sharing": "all"}, r"task\.sharing is 'all', which is unknown"),
        ({"discriminator_weight": -1.0}, r"task\.discriminator_weight is -1\.0"),
        ({"width": 0.0}, r"task\.generator\.width is 0\.0"),
    ],
)
def test_bad_settings_are_errors(options, message):
    with pytest.raises(ConfigError, match=message):
        task_of(**options)
