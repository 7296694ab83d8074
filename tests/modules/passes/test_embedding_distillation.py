"""Embeddings follow a teacher that runs on the texts, or its vectors in the data, however the step was split."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from framework.callbacks.cadence import Cadence
from framework.config.checks import check_regularization
from framework.data.planning.plan import SequenceSource, StepSequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.parallel.materialization import materialize
from framework.errors import ConfigError
from framework.modules.passes.embedding_distillation import EmbeddingDistillation
from framework.modules.passes.teacher import Teacher
from framework.nn.initialization import initial_values
from framework.runs.task_parts import build_model
from framework.tasks.embedding.data import TextGroup
from framework.tasks.embedding.features import labelled_source
from framework.tasks.embedding.task import EmbeddingTask
from tests.support.exports.small_exports import make_tokenizer
from tests.support.processes.workers import WorkerPool
from tests.support.training.distilled import TEACHER_CONFIG
from tests.support.training.tiny_run import rows
from tests.support.training.toy_run import FP32, ToyTask, build_module, train

STEPS = 3
CADENCE = Cadence(max_steps=STEPS, log_every_n_steps=1, validate_every_n_steps=STEPS)
TEXTS = [" ".join("abcdefgh"[(number * step) % 8] for step in range(1, 3 + number % 9)) for number in range(24)]


class LabelledLetters(EmbeddingTask):
    """Task on texts of letters with three labels, with or without the vectors of a teacher."""

    def __init__(self, vectors: np.ndarray | None = None) -> None:
        super().__init__(max_length=16, normalize=False)
        self.vectors = vectors

    def build_sources(self, data: object, tokenizer: object, seed: int) -> dict[str, SequenceSource]:
        vectors = [None] * len(TEXTS) if self.vectors is None else list(self.vectors)
        groups = [
            TextGroup("", (text,), str(number % 3), vector=vector)
            for number, (text, vector) in enumerate(zip(TEXTS, vectors, strict=True))
        ]
        with tempfile.TemporaryDirectory() as folder:
            own = Tokenizer.from_folder(make_tokenizer(Path(folder), 0))
        return {
            split: labelled_source(part, [], ["contrast"], own, 16, seed)
            for split, part in (("train", groups), ("validation", groups[:6]))
        }


def embedding_teacher() -> Teacher:
    model = build_model(LabelledLetters(), TEACHER_CONFIG)
    materialize(model, initial_values(model, TEACHER_CONFIG, 9), "cpu")
    return Teacher("toy", "", model.requires_grad_(False))


def teacher_vectors(teacher: Teacher) -> np.ndarray:
    """Returns the vectors of all texts, each computed by itself."""
    source = LabelledLetters().build_sources(None, None, 0)["train"].source  # type: ignore[attr-defined]
    vectors = []
    for index in range(len(TEXTS)):
        batch = source.build(StepSequences(np.zeros(1), np.array([index]), np.array([index])), 0)
        vectors.append(teacher.outputs(batch, FP32)["embeddings"][0].numpy())
    return np.stack(vectors)


def run(folder: str, strategy: str, budget: int, reads_column: bool = False) -> None:
    teacher = embedding_teacher()
    regularization = EmbeddingDistillation("toy", weight=3.0)
    task = LabelledLetters(teacher_vectors(teacher) if reads_column else None)
    module = build_module(task=task, regularization=regularization)  # type: ignore[arg-type]
    regularization.follow(None if reads_column else teacher, TEACHER_CONFIG.hidden_size, module.model)
    train(Path(folder), strategy, CADENCE, budget, module=module)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    folder = tmp_path_factory.mktemp("whole")
    run(str(folder), "single", 1000)
    found = rows(folder)
    assert len(found) == STEPS and all(row["train/distillation_loss"] > 0 for row in found)
    assert {key for key in found[-1] if key.startswith("val/") and key.endswith("loss")} == {"val/loss"}
    return found


def same(folder: Path, whole: list[dict[str, float]]) -> None:
    assert len(rows(folder)) == STEPS
    for row, expected in zip(rows(folder), whole, strict=True):
        assert row == pytest.approx(expected, rel=1e-5)


def test_vectors_of_the_data_are_as_good_as_the_teacher(whole: list[dict[str, float]], tmp_path: Path) -> None:
    run(str(tmp_path), "single", 40, reads_column=True)
    same(tmp_path, whole)


def test_the_number_of_ranks_and_micro_batches_does_not_matter(
    whole: list[dict[str, float]], tmp_path: Path, workers: WorkerPool
) -> None:
    workers.run(run, 2, str(tmp_path), "fsdp2", 40)
    same(tmp_path, whole)


def test_the_error_is_that_of_torch_over_texts_with_a_vector() -> None:
    generator = torch.Generator().manual_seed(0)
    own, taught = torch.randn(2, 4, 6, generator=generator)
    column = {"embeddings": own, "teacher_vectors": taught, "has_teacher_vector": torch.tensor([1, 0, 0, 1])}
    expected = sum(torch.nn.functional.mse_loss(own[index], taught[index]) for index in (0, 3))
    torch.testing.assert_close(EmbeddingDistillation().sums(column)["distillation"], expected)


class Named(ToyTask):
    """Toy task with the name of a head."""

    head_kind = "toy"


def test_other_tasks_have_no_embeddings() -> None:
    with pytest.raises(ConfigError, match="Named computes no embeddings of texts"):
        check_regularization(EmbeddingDistillation(), Named(), build_module(task=ToyTask()).model)
