"""A student follows its teacher: the terms against the encoders' own outputs, splits of a step, ranks, and resuming."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from framework.batch import IGNORE_INDEX, PackedBatch
from framework.callbacks.cadence import Cadence
from framework.checkpoint.layout import newest_complete
from framework.data.planning.collate import RoundedShape
from framework.data.planning.plan import StepSequences
from framework.distributed.parallel.activation_checkpoint import ActivationCheckpointing
from framework.distributed.parallel.materialization import materialize
from framework.distributed.parallel.sharding import DEFAULT_SHARDING
from framework.errors import ConfigError
from framework.modules.passes.distillation import TERM, Distillation, Match
from framework.modules.passes.model_passes import ModelPasses
from framework.modules.passes.r_drop import RDrop
from framework.modules.passes.teacher import Teacher
from framework.nn.initialization import initial_values
from framework.tasks.sequence_classification.task import SequenceClassificationTask
from tests.support.processes.workers import WorkerPool
from tests.support.training.distilled import MATCHES, TEACHER_CONFIG, distilled_module, toy_teacher
from tests.support.training.tiny_run import rows
from tests.support.training.toy_run import CONFIG, FP32, SEED, ToySource, ToyTask, build_module, train

STEPS = 4
CADENCE = Cadence(max_steps=STEPS, log_every_n_steps=1, validate_every_n_steps=STEPS)


def one_batch() -> PackedBatch:
    return ToySource(37).build(StepSequences(np.zeros(5), np.arange(5), np.arange(5)), 0)


def sums_of(match: Match, **settings: object) -> tuple[dict[str, Tensor], Teacher, ModelPasses]:
    """Runs the passes of one micro-batch without dropout; returns the sums, the teacher and the passes."""
    module = distilled_module(match, **settings)
    materialize(module.model, initial_values(module.model, CONFIG, SEED), "cpu")
    regularization = module.runner.steps.regularization  # type: ignore[union-attr]
    assert isinstance(regularization, Distillation) and regularization.followed is not None
    passes = ModelPasses(
        module.model, module.task, FP32, False, SEED, 0, DEFAULT_SHARDING, None, 1.0, lambda loss: loss.backward()
    )
    counts = regularization.counts(module.task, one_batch())
    return dict(regularization.run(passes, one_batch(), counts, True)), regularization.followed, passes


def test_logits_are_compared_at_the_targets_without_dropout_of_the_teacher() -> None:
    sums, teacher, passes = sums_of("logits", temperature=3.0)
    batch = one_batch()
    own, taught = passes.model(batch), teacher.model(batch)
    for name, labels in passes.task.class_scores.items():
        counted = batch.targets[labels] != IGNORE_INDEX
        q, p = (each[name][counted].div(3.0).log_softmax(1) for each in (own, taught))
        expected = 9.0 * functional.kl_div(q, p, reduction="sum", log_target=True)
        torch.testing.assert_close(sums[f"{TERM}_{name}"], expected, rtol=1e-5, atol=1e-6)
        assert expected > 0.1


def test_hidden_states_are_those_that_the_encoders_return_projected_to_the_teacher() -> None:
    sums, teacher, passes = sums_of("hidden", layers={0: 0, 1: 3, 2: 4})
    own, taught = (each.encoder.hidden_states(one_batch()) for each in (passes.model, teacher.model))
    projections = passes.model.distillation
    assert projections is not None
    expected = sum(
        (projections[str(layer)](own[layer]) - taught[other]).square().mean(1).sum()
        for layer, other in {0: 0, 1: 3, 2: 4}.items()
    )
    torch.testing.assert_close(sums[TERM], expected, rtol=1e-5, atol=0)
    assert all(weight.grad is not None and weight.grad.any() for weight in projections.parameters())


def test_relations_are_those_of_the_last_layers() -> None:
    sums, teacher, passes = sums_of("relations", relation_heads=8)
    batch, total = one_batch(), torch.zeros(())
    kinds = []
    for model, config in ((teacher.model, TEACHER_CONFIG), (passes.model, CONFIG)):
        before = model.encoder.hidden_states(batch)[-2]
        joint = model.encoder.layers[-1].attention.qkv(before).view(-1, config.num_heads, 3, config.head_dim)
        kinds.append([joint[:, :, kind].reshape(len(before), 8, -1) for kind in range(3)])
    for taught, own in zip(*kinds, strict=True):
        for p, q in zip(taught.split(batch.lengths), own.split(batch.lengths), strict=True):
            log_p, log_q = (
                (torch.einsum("ihd,jhd->hij", each, each) / each.shape[2] ** 0.5).log_softmax(2) for each in (p, q)
            )
            total += functional.kl_div(log_q, log_p, reduction="sum", log_target=True) / 8
    torch.testing.assert_close(sums[TERM], total, rtol=1e-5, atol=0)


def run(
    folder: str, strategy: str = "single", budget: int = 20, mode: str = "none", shape: RoundedShape | None = None
) -> None:
    """Trains a student of each kind."""
    for match in MATCHES:
        module = distilled_module(match)
        module.activation_checkpointing = ActivationCheckpointing(mode)  # type: ignore[arg-type]
        train(Path(folder) / match, strategy, CADENCE, budget, module=module, shape=shape)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the runs of one process whose steps are one micro-batch each."""
    folder = tmp_path_factory.mktemp("whole")
    run(str(folder), budget=1000)
    return folder


def same(folder: Path, whole: Path) -> None:
    for match in MATCHES:
        assert len(rows(folder / match)) == STEPS
        for row, expected in zip(rows(folder / match), rows(whole / match), strict=True):
            assert row == pytest.approx(expected, rel=1e-5)


def test_micro_batches_dummies_and_recomputation_do_not_matter(whole: Path, tmp_path: Path) -> None:
    run(str(tmp_path), mode="full", shape=RoundedShape())
    same(tmp_path, whole)


@pytest.mark.parametrize(("strategy", "budget"), [("ddp", 20), ("fsdp2", 1000)])
def test_the_number_of_ranks_does_not_matter(
    strategy: str, budget: int, whole: Path, tmp_path: Path, workers: WorkerPool
) -> None:
    workers.run(run, 2, str(tmp_path), strategy, budget, "selective")
    same(tmp_path, whole)


def test_validation_measures_the_task_alone(whole: Path) -> None:
    for match in MATCHES:
        validated = {key for key in rows(whole / match)[-1] if key.startswith("val/") and key.endswith("loss")}
        assert validated == {"val/loss", "val/word_loss", "val/pair_loss"}


def test_a_resumed_student_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    cadence = functools.partial(Cadence, log_every_n_steps=1, validate_every_n_steps=STEPS, checkpoint_every_n_steps=2)
    train(tmp_path / "once", cadence=cadence(max_steps=STEPS), module=distilled_module("hidden"))
    train(tmp_path / "twice", cadence=cadence(max_steps=2), module=distilled_module("hidden"))
    checkpoint = newest_complete(tmp_path / "twice" / "checkpoints")
    module = distilled_module("hidden")
    train(tmp_path / "twice", cadence=cadence(max_steps=STEPS), checkpoint=checkpoint, module=module)
    losses = [
        [(row["train/loss"], row["optim/grad_norm"]) for row in rows(tmp_path / name)] for name in ("once", "twice")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == STEPS


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Distillation("x", weight=-1.0), r"regularization\.weight is -1.0"),
        (lambda: Distillation("x", temperature=0.0), r"regularization\.temperature is 0.0"),
        (lambda: Distillation("x", layers={"last": 2}), r"regularization\.layers has the key 'last'"),  # type: ignore[dict-item]
        (lambda: followed("hidden", layers={3: 4}), r"layer 3 of the student\. Its layers are 0 to 2"),
        (lambda: followed("relations", layers={0: 4}), r"layer 0 of the student\. Its layers are 1 to 2"),
        (lambda: followed("hidden", layers={1: 5}), r"layer 5 of the teacher\. Its layers are 0 to 4"),
        (
            lambda: followed("relations", relation_heads=1),
            "teacher has 4 attention heads, the student 2, and .* 1 heads",
        ),
        (lambda: followed("relations", relation_heads=3), "3 heads, which do not divide the width 16 of the student"),
        (lambda: followed("relations", relation_heads=16), "16 heads, which do not divide the width 24 of the teacher"),
    ],
)
def test_impossible_settings_are_rejected(make: Callable[[], Distillation], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def followed(match: Match, **settings: object) -> Distillation:
    distillation = Distillation("x", match, **settings)  # type: ignore[arg-type]
    distillation.follow(toy_teacher(), build_module(task=ToyTask()).model)
    return distillation


@pytest.mark.parametrize("problem", ["multi_label", "regression"])
def test_problems_without_a_softmax_have_no_logits_to_compare(problem: str) -> None:
    task, model = SequenceClassificationTask(problem=problem), build_module(task=ToyTask()).model
    for regularization in (Distillation("x"), RDrop(1.0)):
        with pytest.raises(ConfigError, match="SequenceClassificationTask has no class scores"):
            regularization.check(task, model)
    Distillation("x", "hidden").check(task, model)


def test_layers_and_heads_follow_from_the_models() -> None:
    assert followed("hidden").layers == {1: 2, 2: 4}
    assert followed("relations").layers == {2: 4}
    assert followed("relations").relation_heads == TEACHER_CONFIG.num_heads
