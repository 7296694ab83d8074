"""Gradient norms of units equal a loop of backward passes over single units, for every task that supports privacy."""

import functools
import importlib
import json
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from framework.batch import PackedBatch
from framework.config.command import resolve_config
from framework.config.resolvers import conf_folder, register_resolvers
from framework.data.planning.collate import RoundedShape, Shape
from framework.data.planning.plan import StepSequences
from framework.data.preparation.prepare import StoreSpec, prepare_store
from framework.data.reading.sources import TextFiles
from framework.data.tokenization.word_counts import WordCounts
from framework.data.tokenization.wordpiece_training import WordPieceTraining
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.models.freezing import freeze_others
from framework.modules.passes.row_units import BatchUnits
from framework.modules.passes.tape import Tape
from framework.nn.dropout import dropout_base, token_keys
from framework.nn.lora import LORA_PARAMETERS, LoraSettings, apply_lora
from framework.runs.build import Parts, build_parts, build_settings
from framework.tasks.task import Task, TaskModel

USERS = ("ada", "bela", "cem", "dora", "eva")
"""Users of consecutive rows in turn; the last one has every fifth row."""
KINDS = MappingProxyType({
    "single_label": ("sequence_classification", ("data.labels=[bad,good]",), "row"),
    "multi_label": ("sequence_classification", ("data.labels=[bad,good]", "task.problem=multi_label"), "row"),
    "regression": ("sequence_classification", ("data.label_column=score", "task.problem=regression"), "row"),
    "users": ("sequence_classification", ("data.labels=[bad,good]", "privacy.unit_column=user"), "user"),
    "token_classification": (
        "token_classification",
        ("data.labels=[person,place]", "data.scheme=bio", "task.max_length=6", "task.stride=2"),
        "row",
    ),
    "question_answering": ("question_answering", ("task.max_length=16", "task.stride=3"), "row"),
    "multiple_choice": ("multiple_choice", (), "row"),
    "choices_of_users": ("multiple_choice", ("privacy.unit_column=user", "privacy.max_rows_per_unit=3"), "user"),
    "reranking": ("reranking", (), "row"),
    "relation_extraction": (
        "relation_extraction",
        ('data.labels=["Inside(e1,e2)","Inside(e2,e1)",Other]',),
        "row",
    ),
    "sequences": ("pretraining", ("task.z_loss=0.01",), "sequence"),
    "documents": ("pretraining", ("privacy.unit=document", "privacy.max_rows_per_unit=2"), "document"),
})  # fmt: skip
FAMILIES = MappingProxyType({
    "bert": {"family": "bert"},
    "modernbert": {
        "family": "modernbert", "position_encoding": "rotary", "norm_placement": "pre", "gated": True,
        "type_vocab_size": 0, "bias": False, "norm_bias": False, "local_attention_window": 8,
        "global_attention_every": 2,
    },
})  # fmt: skip


@pytest.fixture(scope="module")
def parts_of(tmp_path_factory: pytest.TempPathFactory):
    """Returns by kind the parts of a private run."""
    folder = tmp_path_factory.mktemp("private")

    @functools.cache
    def once(kind: str) -> Parts:
        name, overrides, _ = KINDS[kind]
        own = folder / name
        if not own.exists():
            own.mkdir()
            write(name, own)
        register_resolvers()
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            config = resolve_config(compose("train", [*overrides_of(name, own), *overrides]))
        return build_parts(build_settings(config, world_size=1), 1)

    return once


def write(name: str, folder: Path) -> None:
    """Writes data with a column of users and a column of numbers, and a vocabulary; or a token store."""
    if name == "pretraining":
        texts = [" ".join(f"{USERS[k % 5]} lives in town {k * n % 7}." for k in range(1 + n % 9)) for n in range(30)]
        for number, text in enumerate(texts):
            (folder / f"{number}.txt").write_text(text, encoding="utf-8")
        documents = TextFiles(str(folder / "*.txt"))
        prepare_store(StoreSpec({"texts": documents}, WordPieceTraining(90), folder / "store"))
        return
    task = importlib.import_module(f"tests.support.tasks.examples.{name}")
    training = WordPieceTraining(200)
    training.train(WordCounts(training.count(task.TEXTS)), folder / "tokenizer")
    task.write(folder)
    file = next(folder.glob("rows.*"))
    lines = file.read_text(encoding="utf-8").splitlines()
    if file.suffix == ".csv":
        rows = [f"{line},{USERS[number % 5]},{number / 7}" for number, line in enumerate(lines[1:])]
        lines = [f"{lines[0]},user,score", *rows]
    elif file.suffix == ".jsonl":
        lines = [json.dumps(json.loads(line) | {"user": USERS[number % 5]}) for number, line in enumerate(lines)]
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def overrides_of(name: str, folder: Path) -> list[str]:
    common = [
        *("privacy=dp_sgd", "privacy.delta=1e-3", "logger=none", "precision=fp32", "trainer.gradient_clip=null"),
        *("model=bert_tiny", "model.hidden_size=16", "model.num_layers=2", "model.num_heads=2"),
        *("model.intermediate_size=24", "model.max_position_embeddings=64", f"run.dir={folder}/runs"),
        *("trainer.max_steps=4", "trainer.global_batch_size=4", "trainer.micro_batch_tokens=4096"),
    ]
    if name == "pretraining":
        own = ("experiment=pretrain_demo", f"data.store={folder}/store", "data.validation_fraction=0")
        return [*own, "task.nsp=false", "task.sequence_length=16", *common]
    task = importlib.import_module(f"tests.support.tasks.examples.{name}")
    file = next(folder.glob("rows.*"))
    return [*task.OVERRIDES, *common, "model.vocab_size=null", "tokenizer=folder", f"tokenizer.path={folder}/tokenizer",
            f"data.train={file}"]  # fmt: skip


def model_of(task: Task, config: EncoderConfig, family: str, has_lora: bool) -> TaskModel:
    changed = EncoderConfig(**{
        "vocab_size": config.vocab_size, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 24,
        "max_position_embeddings": 64, **FAMILIES[family],
    })  # fmt: skip
    encoder = TransformerEncoder(changed)
    model = TaskModel(encoder, task.build_head(encoder, changed))
    if has_lora:
        apply_lora(encoder.layers, 2, LoraSettings(3, 6.0, ("query", "value", "output", "up")))
        freeze_others(model, [*LORA_PARAMETERS, "head.*"], "test")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model


def losses_of(model: TaskModel, task: Task, batch: PackedBatch) -> Tensor:
    losses = task.sequence_losses(model(batch, token_keys(dropout_base(3, 5, 0), batch)), batch)
    assert losses is not None
    return losses


@pytest.mark.parametrize(("family", "has_lora"), [("bert", False), ("bert", True), ("modernbert", False)])
@pytest.mark.parametrize("kind", KINDS)
def test_norms_equal_a_loop_over_single_units(kind, family, has_lora, parts_of):
    parts = parts_of(kind)
    task, source = parts.task, parts.sources["train"]
    model = model_of(task, parts.config, family, has_lora)
    units = np.linspace(0, len(source) - 1, min(len(source), 5)).astype(np.int64)

    def batch_of(chosen: np.ndarray, shape: Shape = None) -> PackedBatch:
        return source.build(StepSequences(np.full_like(chosen, 1), chosen, chosen + 100), 2, shape)

    expected = []
    for unit in units:
        model.zero_grad()
        losses_of(model, task, batch_of(np.array([unit]))).sum().backward()
        grads = [each.grad for each in model.parameters() if each.grad is not None]
        expected.append(sum(grad.double().square().sum() for grad in grads) ** 0.5)
    model.zero_grad()
    for shape in (None, RoundedShape()):
        batch = batch_of(units, shape)
        owners = BatchUnits(batch)
        assert owners.num_real == len(units)
        with Tape(model, task.head_rows).recording() as recording:
            losses = owners.losses(losses_of(model, task, batch))
        tape = Tape(model, task.head_rows)
        norms = tape.differentiate(recording, losses, owners, retain_graph=False).squares().sqrt()
        torch.testing.assert_close(norms[: len(units)], torch.stack(expected), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_the_guarantee_names_and_counts_the_units(kind, parts_of):
    parts = parts_of(kind)
    assert parts.privacy is not None
    unit = KINDS[kind][2]
    guarantee, num_units = parts.privacy.guarantee, len(parts.sources["train"])
    assert guarantee.unit == (f"value of the column {unit}" if unit == "user" else unit)
    assert guarantee.sampling_rate == 4 / num_units
    if unit == "user":
        assert num_units == len(USERS)
    elif unit == "row":
        assert num_units == parts.sources["train"].facts.rows
