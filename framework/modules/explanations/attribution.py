"""Attributes a score of a model to the tokens of an item: integrated gradients and three simpler methods.

The points of the path from the baseline to the item are further items of the same packed micro-batches, so that the
cost is that of so many forward and backward passes over tokens, without padding.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from framework.data.planning.plan import SequenceSource
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.processes.agreement import check_agreement
from framework.modules.explanations.item_passes import NO_WORD, ItemPasses, Jobs, word_indices
from framework.modules.inference import Inference
from framework.tasks.explanation import Explained

Method = Literal["integrated_gradients", "gradient", "leave_one_out", "attention_rollout"]


@dataclass(frozen=True, slots=True)
class Attribution:
    """Shares of the tokens of an item in one of its scores.

    Attributes:
        input_ids: (tokens,) ids of the item, special tokens included.
        token_scores: (tokens,) float64, 0 for special tokens.
        score: Score of the item.
        baseline_score: Score of the item with every token except special ones replaced by the mask token.
        error: Completeness error: |sum of token_scores - (score - baseline_score)| relative to the difference; None
            for methods whose token scores have no such sum.
    """

    input_ids: np.ndarray
    token_scores: np.ndarray
    score: float
    baseline_score: float
    error: float | None


def attribute(
    inference: Inference,
    tokenizer: Tokenizer,
    source: SequenceSource,
    explained: Sequence[Explained],
    method: Method = "integrated_gradients",
    steps: int = 32,
) -> list[Attribution]:
    """Attributes scores to tokens. Collective: all ranks must call with the same arguments; they share the scores.

    - "integrated_gradients" (Sundararajan et al. 2017, arXiv:1703.01365, equation 1): the gradient along the straight
      path from the embeddings of the baseline to those of the item, at Gauss-Legendre points. The token scores sum to
      the difference of the two scores, up to the error of the quadrature. The baseline replaces every token except
      special ones by the mask token.
    - "gradient": the gradient at the item times the difference of the embeddings.
    - "leave_one_out": the score minus the score with one word masked. The first token of a word has its score.
    - "attention_rollout" (Abnar, Zuidema 2020, arXiv:2005.00928): attention weights, averaged over heads, with the
      residual connections, multiplied over layers. Scores are shares of 1 and do not depend on the explained score.

    Args:
        inference: Model on its device. Explanations in fp32 are the most exact.
        tokenizer: Tokenizer of the model.
        source: Source of the items, from `Task.build_source`.
        explained: Scores to explain.
        method: Method, see above.
        steps: Number of points of integrated gradients.

    Returns:
        One attribution for each of `explained`, in their order.

    Raises:
        DistributedError: Processes read different rows.
    """
    check_agreement({"the fingerprint of the input": source.fingerprint})
    run = _Attributor(ItemPasses(inference, tokenizer, source), tokenizer)
    methods: dict[str, Callable[[], list[Attribution]]] = {
        "integrated_gradients": lambda: run.along_path(explained, *_quadrature(steps)),
        "gradient": lambda: run.along_path(explained, np.array([0.0, 1.0]), np.array([0.0, 1.0]), is_complete=False),
        "leave_one_out": lambda: run.leave_one_out(explained),
        "attention_rollout": lambda: run.rollout(explained),
    }
    with _frozen(inference.model):
        return methods[method]()


def _quadrature(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns points in [0, 1] and weights of Gauss-Legendre quadrature, with both ends at weight 0."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return np.concatenate([[0.0], (nodes + 1) / 2, [1.0]]), np.concatenate([[0.0], weights / 2, [0.0]])


@contextmanager
def _frozen(model: torch.nn.Module) -> Iterator[None]:
    """Context in which parameters need no gradients, so that a backward pass computes only those of the embeddings."""
    parameters = [each for each in model.parameters() if each.requires_grad]
    for each in parameters:
        each.requires_grad_(False)
    try:
        yield
    finally:
        for each in parameters:
            each.requires_grad_(True)


class _Attributor:
    def __init__(self, passes: ItemPasses, tokenizer: Tokenizer) -> None:
        self._passes = passes
        self._tokenizer = tokenizer

    def along_path(
        self, explained: Sequence[Explained], points: np.ndarray, weights: np.ndarray, is_complete: bool = True
    ) -> list[Attribution]:
        """Sums weighted gradients along the path. The first point is the baseline (0), the last one the item (1)."""
        ids = self._passes.input_ids([each.item for each in explained])
        totals = [np.zeros(len(each)) for each in ids]
        scores = np.zeros((len(explained), len(points)))
        of_job = np.repeat(np.arange(len(explained)), len(points))
        point_of_job = np.tile(np.arange(len(points)), len(explained))

        def compute(jobs: Jobs) -> tuple[np.ndarray, dict[int, np.ndarray]]:
            owners, positions = of_job[jobs.numbers], point_of_job[jobs.numbers]
            alphas, shares = (_per_token(values[positions], jobs) for values in (points, weights))
            values, gradient, difference = self._gradients(jobs, [explained[index].target for index in owners], alphas)
            sums: dict[int, np.ndarray] = {}
            for owner, part in zip(
                owners.tolist(), jobs.split((gradient * difference).sum(dim=1) * shares), strict=True
            ):
                sums[owner] = sums.get(owner, 0.0) + part
            return values.double().cpu().numpy(), sums

        for numbers, (values, sums) in self._passes.run([explained[index].item for index in of_job.tolist()], compute):
            scores[of_job[numbers], point_of_job[numbers]] = values
            for owner, part in sums.items():
                totals[owner] += part
        return [
            _attribution(*parts, is_complete) for parts in zip(ids, totals, scores[:, -1], scores[:, 0], strict=True)
        ]

    def _gradients(self, jobs: Jobs, targets: Sequence[Any], alphas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns scores at points of the path, their gradients, and the embeddings of the item minus the baseline.

        Args:
            jobs: Copies of items.
            targets: Target of each copy.
            alphas: (tokens,) fp32 position on the path: 0 at the baseline, 1 at the item.

        Returns:
            (jobs,) scores, (tokens, hidden) gradients and (tokens, hidden) differences, all fp32.
        """
        encoder = self._passes.model.encoder
        kept: list[Tensor] = []

        def move(_module: torch.nn.Module, _arguments: tuple[Any, ...], embeddings: Tensor) -> Tensor:
            """Moves the embeddings to their points. It runs within the forward pass, when weights are gathered."""
            handle.remove()
            with torch.no_grad():
                baseline = encoder.embed(self._passes.masked(jobs.batch, jobs.is_real)).float()
                difference = embeddings.detach().float() - baseline
                offset = difference * (alphas - 1)[:, None]
            kept.extend([offset.requires_grad_(), difference])
            return embeddings.detach() + offset

        handle = encoder.embeddings.register_forward_hook(move)
        with torch.enable_grad():
            values = self._passes.scores(jobs.batch, targets)
            offset, difference = kept
            (gradient,) = torch.autograd.grad(values.sum(), offset)
        return values.detach(), gradient, difference

    def leave_one_out(self, explained: Sequence[Explained]) -> list[Attribution]:
        """Masks each word in turn, and all words for the baseline."""
        ids = self._passes.input_ids([each.item for each in explained])
        words = [word_indices(each, self._tokenizer) for each in ids]
        # For each item: nothing masked, everything masked, then each word masked.
        num_jobs = np.array([2 + each.max(initial=NO_WORD) + 1 for each in words], dtype=np.int64)
        of_job = np.repeat(np.arange(len(explained)), num_jobs)
        number_in_item = (
            np.concatenate([np.arange(count) for count in num_jobs]) if len(explained) else np.zeros(0, int)
        )

        def compute(jobs: Jobs) -> np.ndarray:
            hidden = [_masked_tokens(words[of_job[number]], int(number_in_item[number])) for number in jobs.numbers]
            targets = [explained[index].target for index in of_job[jobs.numbers].tolist()]
            with torch.no_grad():
                values = self._passes.scores(self._passes.masked(jobs.batch, jobs.on_device(hidden)), targets)
            return values.double().cpu().numpy()

        scores = np.zeros(len(of_job))
        for numbers, values in self._passes.run([explained[index].item for index in of_job.tolist()], compute):
            scores[numbers] = values
        results = []
        for item, (word, part) in enumerate(zip(words, np.split(scores, np.cumsum(num_jobs)[:-1]), strict=False)):
            token_scores = np.zeros(len(word))
            _, first = np.unique(word[word >= 0], return_index=True)
            token_scores[np.flatnonzero(word >= 0)[first]] = part[0] - part[2:]
            results.append(_attribution(ids[item], token_scores, part[0], part[1], is_complete=False))
        return results

    def rollout(self, explained: Sequence[Explained]) -> list[Attribution]:
        """Multiplies attention weights over layers; a sequence's tokens share what its own tokens read."""
        path = self.along_path(explained, np.array([0.0, 1.0]), np.zeros(2), is_complete=False)

        def compute(jobs: Jobs) -> list[np.ndarray]:
            with torch.no_grad(), self._passes.autocast():
                layers = self._passes.model.encoder.attention_maps(jobs.batch)
            parts = [_rolled_out([layer[index] for layer in layers]) for index in range(len(jobs.batch.lengths))]
            return jobs.split(torch.where(jobs.is_real, torch.cat(parts), 0.0))

        shares: list[np.ndarray] = [np.zeros(0)] * len(explained)
        for numbers, parts in self._passes.run([each.item for each in explained], compute):
            for number, part in zip(numbers, parts, strict=True):
                shares[number] = part
        return [replace(each, token_scores=share) for each, share in zip(path, shares, strict=True)]


def _per_token(values: np.ndarray, jobs: Jobs) -> Tensor:
    return torch.from_numpy(values).float().to(jobs.job_of_token.device)[jobs.job_of_token]


def _masked_tokens(words: np.ndarray, job: int) -> np.ndarray:
    """Returns True for tokens that a job of leave-one-out masks: none (0), all words (1), or word `job - 2`."""
    if job == 0:
        return np.zeros(len(words), dtype=bool)
    return words >= 0 if job == 1 else words == job - 2


def _rolled_out(layers: Sequence[Tensor]) -> Tensor:
    """Returns (length,) shares of the tokens of a sequence, averaged over the tokens that read them."""
    identity = torch.eye(layers[0].shape[-1], device=layers[0].device)
    product = identity
    for probabilities in layers:
        product = (0.5 * probabilities.mean(dim=0) + 0.5 * identity) @ product
    return product.mean(dim=0)


def _attribution(
    ids: np.ndarray, token_scores: np.ndarray, score: float, baseline: float, is_complete: bool
) -> Attribution:
    difference = float(score) - float(baseline)
    gap = abs(float(token_scores.sum()) - difference)
    error = (gap / abs(difference) if difference else float(gap > 0)) if is_complete else None
    return Attribution(ids, token_scores, float(score), float(baseline), error)
