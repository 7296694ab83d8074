"""Attributes a score of a model to the tokens of an item: integrated gradients and three simpler methods.

The points of the path from the baseline to the item are further items of the same packed micro-batches, so that the
cost is that of so many forward and backward passes over tokens, without padding.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from framework.batch import PackedBatch
from framework.data.planning.collate import shape_on
from framework.data.planning.plan import SequenceSource, StepSequences
from framework.data.tokenization.tokenizer import Tokenizer
from framework.distributed.processes.agreement import check_agreement, gather
from framework.modules.inference import Inference

Method = Literal["integrated_gradients", "gradient", "leave_one_out", "attention_rollout"]

_NO_WORD = -1
"""Word index of special tokens, which no method changes."""


@dataclass(frozen=True, slots=True)
class Explained:
    """A score to explain.

    Attributes:
        item: Index of the item in the source.
        target: Part of the outputs whose score is explained, from `Task.explained`.
    """

    item: int
    target: Any


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
    own = range(inference.rank, len(explained), inference.num_ranks)
    run = _Attributor(inference, tokenizer, source)
    share = [explained[index] for index in own]
    methods: dict[str, Callable[[], list[Attribution]]] = {
        "integrated_gradients": lambda: run.along_path(share, *_quadrature(steps)),
        "gradient": lambda: run.along_path(share, np.array([0.0, 1.0]), np.array([0.0, 1.0]), is_complete=False),
        "leave_one_out": lambda: run.leave_one_out(share),
        "attention_rollout": lambda: run.rollout(share),
    }
    with _frozen(inference.model):
        results = methods[method]()
    by_index = {index: each for part in gather(dict(zip(own, results, strict=True))) for index, each in part.items()}
    return [by_index[index] for index in range(len(explained))]


def word_indices(input_ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Returns the word of each token, counted from 0; -1 for special tokens.

    A token that does not continue a word begins one, and so does the first token after a special token.

    Args:
        input_ids: (tokens,) ids of an item.
        tokenizer: Tokenizer of the model.

    Returns:
        (tokens,) int64.
    """
    special = _is_special(input_ids, tokenizer)
    after_special = np.concatenate([[True], special[:-1]])
    begins = ~special & (tokenizer.starts_word[input_ids] | after_special)
    return np.where(special, _NO_WORD, np.cumsum(begins) - 1)


def _is_special(input_ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Returns True for tokens that the baseline keeps. An unknown word is masked like other words."""
    kept = tokenizer.special_ids[tokenizer.special_ids != tokenizer.unk_id]
    return np.isin(input_ids, kept)


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


@dataclass(frozen=True, slots=True)
class _Jobs:
    """Copies of items in one micro-batch.

    Attributes:
        batch: Micro-batch on the device with one item for each job.
        numbers: (jobs,) index of each job in the list of all jobs.
        sizes: (jobs,) number of tokens of each job.
        job_of_token: (tokens,) int64 on the device, index within `numbers`; dummies belong to the last job.
        is_real: (tokens,) True for tokens that are neither special nor dummies, on the device.
    """

    batch: PackedBatch
    numbers: np.ndarray
    sizes: np.ndarray
    job_of_token: Tensor
    is_real: Tensor

    def split(self, values: Tensor) -> list[np.ndarray]:
        """Splits (tokens,) values on the device into one array for each job, on the host."""
        host = values.double().cpu().numpy()[: int(self.sizes.sum())]
        return np.split(host, np.cumsum(self.sizes)[:-1])


class _Attributor:
    def __init__(self, inference: Inference, tokenizer: Tokenizer, source: SequenceSource) -> None:
        self._inference = inference
        self._model = inference.model
        self._task = inference.task
        self._tokenizer = tokenizer
        self._source = source

    def along_path(
        self, explained: Sequence[Explained], points: np.ndarray, weights: np.ndarray, is_complete: bool = True
    ) -> list[Attribution]:
        """Sums weighted gradients along the path. The first point is the baseline (0), the last one the item (1)."""
        ids = self._input_ids([each.item for each in explained])
        totals = [np.zeros(len(each)) for each in ids]
        scores = np.zeros((len(explained), len(points)))
        of_job = np.repeat(np.arange(len(explained)), len(points))
        point_of_job = np.tile(np.arange(len(points)), len(explained))
        for jobs in self._micro_batches([explained[index].item for index in of_job.tolist()]):
            owners, positions = of_job[jobs.numbers], point_of_job[jobs.numbers]
            alphas, shares = (self._per_token(values[positions], jobs) for values in (points, weights))
            with torch.no_grad(), self._autocast():
                at_item = self._model.encoder.embed(jobs.batch).float()
                difference = at_item - self._model.encoder.embed(self._masked(jobs.batch, jobs.is_real)).float()
            offset = (difference * (alphas - 1)[:, None]).requires_grad_()
            with torch.enable_grad(), self._autocast():
                values = self._scores(jobs.batch, [explained[index].target for index in owners.tolist()], offset)
            (gradient,) = torch.autograd.grad(values.sum(), offset)
            scores[owners, positions] = values.detach().double().cpu().numpy()
            for owner, part in zip(owners, jobs.split((gradient * difference).sum(dim=1) * shares), strict=True):
                totals[owner] += part
        return [
            _attribution(*parts, is_complete) for parts in zip(ids, totals, scores[:, -1], scores[:, 0], strict=True)
        ]

    def leave_one_out(self, explained: Sequence[Explained]) -> list[Attribution]:
        """Masks each word in turn, and all words for the baseline."""
        ids = self._input_ids([each.item for each in explained])
        words = [word_indices(each, self._tokenizer) for each in ids]
        # For each item: nothing masked, everything masked, then each word masked.
        num_jobs = np.array([2 + each.max(initial=_NO_WORD) + 1 for each in words], dtype=np.int64)
        of_job = np.repeat(np.arange(len(explained)), num_jobs)
        number_in_item = (
            np.concatenate([np.arange(count) for count in num_jobs]) if len(explained) else np.zeros(0, int)
        )
        scores = np.zeros(len(of_job))
        for jobs in self._micro_batches([explained[index].item for index in of_job.tolist()]):
            masked = [_masked_tokens(words[of_job[number]], int(number_in_item[number])) for number in jobs.numbers]
            hidden = torch.zeros_like(jobs.is_real)
            hidden[: int(jobs.sizes.sum())] = torch.from_numpy(np.concatenate(masked)).to(hidden.device)
            with torch.no_grad(), self._autocast():
                targets = [explained[index].target for index in of_job[jobs.numbers].tolist()]
                values = self._scores(self._masked(jobs.batch, hidden), targets)
            scores[jobs.numbers] = values.double().cpu().numpy()
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
        shares: list[np.ndarray] = [np.zeros(0)] * len(explained)
        for jobs in self._micro_batches([each.item for each in explained]):
            with torch.no_grad(), self._autocast():
                layers = self._model.encoder.attention_maps(jobs.batch)
            parts = [_rolled_out([layer[index] for layer in layers]) for index in range(len(jobs.batch.lengths))]
            values = torch.where(jobs.is_real, torch.cat(parts), 0.0)
            for number, part in zip(jobs.numbers, jobs.split(values), strict=True):
                shares[number] = part
        return [replace(each, token_scores=share) for each, share in zip(path, shares, strict=True)]

    def _scores(self, batch: PackedBatch, targets: Sequence[Any], offset: Tensor | None = None) -> Tensor:
        return self._task.explained_scores(self._model(batch, None, offset), batch, targets)

    def _masked(self, batch: PackedBatch, hidden: Tensor) -> PackedBatch:
        return replace(batch, input_ids=batch.input_ids.masked_fill(hidden, self._tokenizer.mask_id))

    def _per_token(self, values: np.ndarray, jobs: _Jobs) -> Tensor:
        return torch.from_numpy(values).float().to(jobs.job_of_token.device)[jobs.job_of_token]

    def _autocast(self) -> AbstractContextManager[Any]:
        return self._inference.precision.autocast(self._inference.device.type)

    def _input_ids(self, items: Sequence[int]) -> list[np.ndarray]:
        """Returns the ids of each item, special tokens included."""
        if not items:
            return []
        indices = np.array(items, dtype=np.int64)
        batch = self._source.build(_sequences(indices), 0)
        lengths = self._source.lengths(np.zeros_like(indices), indices)
        return np.split(batch.input_ids.numpy()[: lengths.sum()], np.cumsum(lengths)[:-1])

    def _micro_batches(self, items: Sequence[int]) -> Iterator[_Jobs]:
        """Yields micro-batches that hold one copy of an item for each job, in the order of the jobs."""
        indices = np.array(items, dtype=np.int64)
        lengths = self._source.lengths(np.zeros_like(indices), indices)
        device, shape = self._inference.device, shape_on(self._inference.device.type)
        for numbers in _chunks(lengths, self._inference.micro_batch_tokens):
            own = indices[numbers]
            built = self._source.build(_sequences(own), 0, shape)
            sizes = lengths[numbers]
            padding = len(built.input_ids) - int(sizes.sum())
            jobs = np.concatenate([np.repeat(np.arange(len(own)), sizes), np.full(padding, len(own) - 1)])
            is_real = ~_is_special(built.input_ids.numpy(), self._tokenizer)
            is_real[len(is_real) - padding :] = False
            yield _Jobs(
                built.to(device),
                numbers,
                sizes,
                torch.from_numpy(jobs).to(device),
                torch.from_numpy(is_real).to(device),
            )


def _sequences(indices: np.ndarray) -> StepSequences:
    return StepSequences(np.zeros_like(indices), indices, np.arange(len(indices)))


def _chunks(lengths: np.ndarray, budget: int) -> Iterator[np.ndarray]:
    """Yields consecutive indices whose lengths sum to at most the budget; a longer item is alone."""
    start, total = 0, 0
    for index, length in enumerate(lengths.tolist()):
        if index > start and total + length > budget:
            yield np.arange(start, index)
            start, total = index, 0
        total += length
    if start < len(lengths):
        yield np.arange(start, len(lengths))


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
