"""The noise of private steps against an attack: 1,000 canary gradients bound epsilon from below."""

import functools
import math

import numpy as np
import pytest
import torch

from framework.batch import StepBatch
from framework.data.planning.collate import Target, pack_sequences
from framework.data.planning.order import Shuffle
from framework.data.planning.plan import StepSequences
from framework.data.planning.poisson import PoissonPlan
from framework.distributed.parallel.precision import Precision
from framework.distributed.parallel.sharding import DEFAULT_SHARDING
from framework.models.config import EncoderConfig
from framework.models.encoder import TransformerEncoder
from framework.models.freezing import freeze_others
from framework.modules.passes.model_passes import ModelPasses
from framework.modules.passes.private import PrivateSteps
from framework.privacy.accountant import epsilon_of, solve_sigma
from framework.privacy.guarantee import Guarantee
from framework.tasks.sequence_classification.task import SequenceClassificationTask
from framework.tasks.task import TaskModel
from tests.support.training.lower_bound import chance_of, correct_guesses, epsilon_above, upper_tails
from tests.support.training.private_run import secret_of

CANARIES, GUESSES = 1000, 200
DELTA = 1e-5
CLIP = 1e-3
TABLE = "encoder.embeddings.word_embeddings.weight"


@functools.cache
def setup() -> tuple[SequenceClassificationTask, TaskModel, torch.Tensor]:
    """Returns a task, a model that trains its word embeddings only, and the direction of each canary's gradient."""
    task = SequenceClassificationTask(pooling="mean", classifier_dropout=0.0)
    task.restore({"labels": ["a", "b"]})
    config = EncoderConfig(
        family="bert",
        vocab_size=CANARIES,
        hidden_size=16,
        num_layers=1,
        num_heads=2,
        intermediate_size=16,
        max_position_embeddings=8,
    )
    encoder = TransformerEncoder(config)
    model = TaskModel(encoder, task.build_head(encoder, config))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    freeze_others(model, [TABLE], "trainer.train_only")
    batch = CanarySource(np.arange(CANARIES)).build(StepSequences(*(np.arange(CANARIES),) * 3), 0)
    outputs = model(batch, None)
    losses = task.sequence_losses(outputs, batch)
    assert losses is not None
    (gradients,) = torch.autograd.grad(losses.sum(), [model.get_parameter(TABLE)])
    norms = gradients.norm(dim=1)
    assert norms.min() > CLIP  # so that each clipped gradient has the length CLIP, and all are orthogonal
    return task, model, gradients / norms[:, None]


class CanarySource:
    """Source of canaries: canary i is the word i alone, so that its gradient is row i of the word embeddings."""

    max_length = 1
    fingerprint = "canaries"
    shuffle = Shuffle()

    def __init__(self, words: np.ndarray) -> None:
        self.words = words

    def __len__(self) -> int:
        return len(self.words)

    def lengths(self, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
        return np.ones_like(indices)

    def build(self, sequences: StepSequences, step: int, shape=None):
        words = self.words[sequences.indices]
        targets = {"labels": Target(words % 2, "sequences")}
        counts = {"classification": float(len(words))}
        return pack_sequences(words, np.ones_like(words), sequences.sequence_ids, None, targets, counts, shape)


def scores_of(sigma: float, rate: float, num_steps: int, is_included: np.ndarray) -> np.ndarray:
    """Runs private steps on the included canaries; returns the projections of the summed gradients in units of CLIP."""
    task, model, directions = setup()
    source, secret = CanarySource(np.flatnonzero(is_included)), secret_of(bytes(range(32)))
    expected = round(rate * len(source))
    guarantee = Guarantee(0.0, DELTA, "row", CLIP, sigma, expected, expected / len(source), num_steps)
    steps = PrivateSteps(guarantee, secret)
    plan = PoissonPlan(source, secret, expected, 300, 1)
    total = torch.zeros_like(directions)
    for step in range(num_steps):
        model.zero_grad(set_to_none=True)
        passes = ModelPasses(
            model=model,
            task=task,
            precision=Precision("fp32"),
            has_dropout=False,
            seed=0,
            step=step,
            sharding=DEFAULT_SHARDING,
            mesh=None,
            loss_scale=1.0,
            run_backward=torch.autograd.backward,
        )
        batch = StepBatch(step, 0, tuple(plan.batches(step, 0)))
        sums, _ = steps.run(passes, batch, steps.counts(task, batch))
        assert sums[1] == sum(each.num_sequences for each in batch.micro_batches)  # all are clipped
        total += model.get_parameter(TABLE).grad
    return ((total * directions).sum(dim=1) * expected / CLIP).numpy()


def lower_bound(sigma: float, rate: float = 1.0, num_steps: int = 1) -> float:
    is_included = np.random.default_rng(4).integers(0, 2, CANARIES).astype(bool)
    correct = correct_guesses(scores_of(sigma, rate, num_steps, is_included), is_included, GUESSES)
    return epsilon_above(correct, GUESSES, CANARIES, DELTA)


@pytest.mark.parametrize(("sigma", "rate", "num_steps"), [(0.72, 1.0, 1), (4.0, 1.0, 1), (0.8, 0.5, 3), (4.0, 0.5, 3)])
def test_the_attack_stays_below_the_stated_epsilon(sigma, rate, num_steps):
    bound = lower_bound(sigma, rate, num_steps)
    assert bound < epsilon_of(sigma, rate, num_steps, DELTA)
    if sigma < 1:  # epsilon is about 8, and the attack has power
        assert bound > 0.5


@pytest.mark.parametrize("share_of_noise", [0.0, 0.2])
def test_missing_noise_is_found(share_of_noise):
    bound = lower_bound(share_of_noise * solve_sigma(1.0, DELTA, 1.0, 1))
    assert bound > 1.0
    if share_of_noise == 0.0:  # all guesses are right, and delta changes little
        right = 0.05 ** (1 / GUESSES)
        assert bound == pytest.approx(math.log(right / (1 - right)), abs=0.05)


def test_scores_without_noise_are_one_for_included_canaries_and_zero_for_others():
    is_included = np.arange(CANARIES) % 3 == 0
    assert scores_of(0.0, 1.0, 1, is_included) == pytest.approx(is_included.astype(float), abs=1e-4)


def test_the_bound_equals_values_computed_by_hand():
    assert upper_tails(3, 0.5).tolist() == pytest.approx([1.0, 7 / 8, 1 / 2, 1 / 8, 0.0])
    right = 0.05**0.1  # 10 of 10 right guesses: q^10 = 0.05
    assert epsilon_above(10, 10, 10, 0.0) == pytest.approx(math.log(right / (1 - right)), abs=1e-5)
    assert epsilon_above(5, 10, 10, 0.0) == 0.0
    # 3 of 3 right at epsilon 0: the largest of (4/8 - 1/8) / 1, (7/8 - 1/8) / 2 and (1 - 1/8) / 3 is 3/8.
    assert chance_of(3, 3, 100, 0.0, 1e-3) == pytest.approx(1 / 8 + 2 * 100 * 1e-3 * 3 / 8)
