"""Measures whether the words with the highest scores decide a prediction: comprehensiveness and sufficiency.

Source: ERASER, DeYoung et al. 2020, arXiv:1911.03429, section 4. `framework.tasks.explained_split` defines both.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from framework.data.planning.plan import SequenceSource
from framework.data.tokenization.tokenizer import Tokenizer
from framework.modules.explanations.item_passes import ItemPasses, Jobs
from framework.modules.inference import Inference
from framework.random import key, mix
from framework.tasks.explained_split import Faithfulness, RowExplanation

FRACTIONS = (0.1, 0.2, 0.5)

_PROBABILITIES = "probabilities"
"""Key of a prediction with the probability of each label."""


def measure_faithfulness(
    inference: Inference,
    tokenizer: Tokenizer,
    source: SequenceSource,
    explanations: Sequence[RowExplanation],
    items: Sequence[int],
    targets: Sequence[Any],
    fractions: Sequence[float] = FRACTIONS,
) -> Faithfulness:
    """Masks words in the order of their scores and in a random order. Collective: all ranks must call.

    The value is the probability of the explained label if predictions have `probabilities`, else the explained score.

    Args:
        inference: Model on its device.
        tokenizer: Tokenizer of the model.
        source: Source of the items.
        explanations: Explanations, each with at least one word.
        items: Item of each explanation.
        targets: Target of each explanation, from `Task.explained`.
        fractions: Fractions of the words to mask or to keep; at least one word.
    """
    masks = [_masks(each, fractions) for each in explanations]
    num_jobs = 1 + 4 * len(fractions)
    of_job = np.repeat(np.arange(len(explanations)), num_jobs)
    passes = ItemPasses(inference, tokenizer, source)

    def compute(jobs: Jobs) -> tuple[bool, list[float]]:
        owners = of_job[jobs.numbers].tolist()
        hidden = [masks[owner][number % num_jobs] for owner, number in zip(owners, jobs.numbers, strict=True)]
        batch = passes.masked(jobs.batch, jobs.on_device(hidden))
        with torch.no_grad(), passes.autocast():
            outputs = passes.model(batch)
            probabilities = [
                _probability(prediction, explanations[owner].name)
                for prediction, owner in zip(passes.task.decode(outputs, batch), owners, strict=True)
            ]
            scores = passes.task.explained_scores(outputs, batch, [targets[owner] for owner in owners])
        known = [each for each in probabilities if each is not None]
        return (True, known) if len(known) == len(owners) else (False, scores.double().cpu().tolist())

    results = passes.run([items[index] for index in of_job.tolist()], compute)
    values = np.array([value for _, (_, part) in results for value in part]).reshape(len(explanations), num_jobs)
    changes = (values[:, :1] - values[:, 1:]).reshape(len(explanations), 4, len(fractions))
    are_probabilities = all(flag for _, (flag, _) in results)
    return Faithfulness("probability" if are_probabilities else "score", fractions, *changes.transpose(1, 0, 2))


def _probability(prediction: Any, name: str) -> float | None:
    """Returns the probability of a label in an object of `Task.decode`; None if it has none."""
    by_name = prediction.get(_PROBABILITIES) if isinstance(prediction, Mapping) else None
    return by_name.get(name) if isinstance(by_name, Mapping) else None


def _masks(explanation: RowExplanation, fractions: Sequence[float]) -> list[np.ndarray]:
    """Returns the masks of all passes, each (tokens,) True where a token is masked.

    The first pass masks nothing. The next ones mask the chosen words, then all others, and then both for words in
    random order.
    """
    tokens = explanation.word_tokens
    scores = np.array([explanation.token_scores[own].sum() for own in tokens])
    by_score = np.argsort(-scores, kind="stable")
    at_random = np.argsort(mix(key("faithfulness", explanation.row), np.arange(len(tokens))))
    masks = [np.zeros(len(explanation.words), dtype=bool)]
    for order in (by_score, at_random):
        chosen = [np.isin(explanation.words, order[: max(1, round(each * len(order)))]) for each in fractions]
        masks += [*chosen, *((explanation.words >= 0) & ~each for each in chosen)]
    return masks
