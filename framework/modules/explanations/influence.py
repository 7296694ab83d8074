"""Influence of training items on explained scores: TracIn (Pruthi et al. 2020, arXiv:2002.08484).

The inner products of gradients per item come from one packed forward and backward pass for the scores and one for the
losses, without a gradient of a weight: for a linear layer the product of the gradients of two items is the sum over
their pairs of tokens of (input . input) x (output gradient . output gradient).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from framework.data.planning.plan import SequenceSource
from framework.data.tokenization.tokenizer import Tokenizer
from framework.errors import ConfigError
from framework.modules.explanations.item_passes import ItemPasses, Jobs
from framework.modules.inference import Inference
from framework.nn.norm import LayerNorm, ResidualNorm
from framework.tasks.explanation import Explained
from framework.tasks.task import TaskModel

_ROWS_AT_ONCE = 1024
"""Training tokens whose products with all tokens of the scores are in memory at the same time."""


def influences(
    inference: Inference,
    tokenizer: Tokenizer,
    source: SequenceSource,
    explained: Sequence[Explained],
    training: SequenceSource,
    num_layers: int,
) -> np.ndarray:
    """Returns how much a step on each training item raises each score, by the weights of one checkpoint.

    To first order, a step of gradient descent on the loss of an item changes a score by the learning rate times the
    negative inner product of the two gradients. Departure from the paper: the score takes the place of the loss of the
    explained item, which needs no label. A loss of several terms is their weighted sum, without the denominators of a
    step. The inner products are over the head and the last layers, without the embeddings.

    Collective: all ranks must call with the same arguments; they share the training items.

    Args:
        inference: Model with the weights of the checkpoint.
        tokenizer: Tokenizer of the model.
        source: Source of the explained items.
        explained: Explained scores.
        training: Training items. Their loss must be a sum over items.
        num_layers: Number of last layers of the encoder.

    Returns:
        (scores, items) float64: negative inner products of the gradient of the score and the gradient of the loss of
        the item, as it enters the sum over all items.

    Raises:
        ConfigError: The head has parameters outside of linear layers and layer norms, or no part has parameters.
    """
    modules = influenced_modules(inference.model, num_layers)
    scores, losses = ItemPasses(inference, tokenizer, source), ItemPasses(inference, tokenizer, training)
    task, result = inference.task, np.zeros((len(explained), len(training)))

    def loss(jobs: Jobs) -> Tensor:
        with losses.autocast():
            sums = task.loss_sums(inference.model(jobs.batch), jobs.batch)
            return torch.stack([weight * sums[term].float() for term, weight in task.loss_weights.items()]).sum()

    with _only_trainable(inference.model, modules):
        for explained_jobs in scores.on_every_rank([each.item for each in explained]):
            targets = [explained[number].target for number in explained_jobs.numbers.tolist()]
            own = _factors(modules, explained_jobs, lambda jobs, targets=targets: scores.scores(jobs.batch, targets))  # type: ignore[misc]

            def compute(jobs: Jobs, own: "_Factors" = own) -> np.ndarray:
                return -own.products(_factors(modules, jobs, loss)).cpu().numpy()

            for numbers, values in losses.run(range(len(training)), compute):
                result[np.ix_(explained_jobs.numbers, numbers)] = values
    return result


def influenced_modules(model: TaskModel, num_layers: int) -> dict[str, nn.Module]:
    """Returns the modules with parameters of the head, of the last layers and of the final norm, by name.

    Raises:
        ConfigError: A module has parameters and is neither a linear layer nor a layer norm, or there is no module.
    """
    layers = model.encoder.layers
    parts = [*list(layers)[len(layers) - min(num_layers, len(layers)) :], model.encoder.final_norm, model.head]
    inside = {id(module) for part in parts for module in part.modules()}
    modules = {
        name: module
        for name, module in model.named_modules()
        if id(module) in inside and next(module.parameters(recurse=False), None) is not None
    }
    for name, module in modules.items():
        if not isinstance(module, nn.Linear | LayerNorm | nn.LayerNorm):
            raise ConfigError(
                f"{name} is a {type(module).__name__} with parameters of its own. Influence is computed for linear "
                "layers and layer norms. Set training_rows=0."
            )
    if not modules:
        raise ConfigError(
            f"the head has no parameters, and layers is {num_layers}. Influence needs parameters. Set layers=2."
        )
    return modules


@contextmanager
def _only_trainable(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Context in which only the parameters of these modules need gradients, so that the graph begins at them."""
    before = {parameter: parameter.requires_grad for parameter in model.parameters()}
    own = {id(parameter) for module in modules.values() for parameter in module.parameters(recurse=False)}
    for parameter in before:
        parameter.requires_grad_(id(parameter) in own)
    try:
        yield
    finally:
        for parameter, needs in before.items():
            parameter.requires_grad_(needs)


@dataclass(slots=True)
class _Calls:
    """Rows that went through one module in a pass.

    Attributes:
        inputs: (rows, in) input of each call, for norms the normalised input.
        outputs: Outputs of each call whose gradients count.
    """

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[list[Tensor]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _LinearRows:
    """Factors of the gradients of a weight: that of an item is the sum over its rows of gradient x input.

    Attributes:
        inputs: (rows, in) fp32.
        gradients: (rows, out) fp32.
        items: (rows,) int64 item of each row.
    """

    inputs: Tensor
    gradients: Tensor
    items: Tensor


@dataclass(frozen=True, slots=True)
class _Factors:
    """Gradients of a value for each item of a micro-batch, in factors.

    Attributes:
        num_items: Number of items.
        device: Device of the factors.
        weights: Weights of linear layers, by name of the module.
        vectors: (items, size) gradients of biases and of the weights of norms, by name of the parameter.
    """

    num_items: int
    device: torch.device
    weights: Mapping[str, _LinearRows]
    vectors: Mapping[str, Tensor]

    def products(self, other: "_Factors") -> Tensor:
        """Returns (items, items of the other) float64 inner products of the gradients."""
        total = torch.zeros(self.num_items, other.num_items, dtype=torch.float64, device=self.device)
        for name, vectors in self.vectors.items():
            total += (vectors @ other.vectors[name].T).double()
        for name, own in self.weights.items():
            theirs = other.weights[name]
            for start in range(0, len(theirs.items), _ROWS_AT_ONCE):
                part = slice(start, start + _ROWS_AT_ONCE)
                pairs = (own.inputs @ theirs.inputs[part].T) * (own.gradients @ theirs.gradients[part].T)
                by_item = pairs.new_zeros(self.num_items, pairs.shape[1]).index_add(0, own.items, pairs)
                total.index_add_(1, theirs.items[part], by_item.double())
        return total


def _factors(modules: Mapping[str, nn.Module], jobs: Jobs, value: Callable[[Jobs], Tensor]) -> _Factors:
    """Runs one forward and one backward pass.

    Args:
        modules: Modules whose parameters count, by name.
        jobs: Items of the micro-batch.
        value: Function that runs the model and returns values whose sum is differentiated.
    """
    calls = {name: _Calls() for name in modules}
    handles = [module.register_forward_hook(_recorder(calls[name])) for name, module in modules.items()]
    try:
        with torch.enable_grad():
            total = value(jobs).sum()
    finally:
        for handle in handles:
            handle.remove()
    outputs = [output for each in calls.values() for some in each.outputs for output in some]
    gradients = iter(torch.autograd.grad(total, outputs, allow_unused=True))
    weights: dict[str, _LinearRows] = {}
    vectors: dict[str, Tensor] = {}
    for name, module in modules.items():
        rows: list[tuple[Tensor, Tensor]] = []
        for x, some in zip(calls[name].inputs, calls[name].outputs, strict=True):
            found = [gradient.float() for _ in some if (gradient := next(gradients)) is not None]
            rows.append((x, sum(found) if found else torch.zeros_like(some[0], dtype=torch.float32)))  # type: ignore[arg-type]
        if not rows:
            continue
        items = torch.cat([_items(name, x, jobs) for x, _ in rows])
        x, gradient = (torch.cat(parts) for parts in zip(*rows, strict=True))
        if isinstance(module, nn.Linear):
            weights[name] = _LinearRows(x, gradient, items)
        elif module.weight is not None:
            vectors[f"{name}.weight"] = _by_item(gradient * x, items, len(jobs.numbers))
        if module.bias is not None:
            vectors[f"{name}.bias"] = _by_item(gradient, items, len(jobs.numbers))
    return _Factors(len(jobs.numbers), jobs.job_of_token.device, weights, vectors)


def _recorder(calls: _Calls) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def record(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        x = arguments[0].detach().float()
        outputs = [output]
        if isinstance(module, ResidualNorm):
            branch, residual, _, _, names = arguments
            x = branch.detach().float() + residual.detach()
            normed = {id(each): each for name, each in zip(names, output, strict=True) if name != "sum"}
            outputs = list(normed.values())
        if isinstance(module, LayerNorm):
            x = module.normalize(x)
        elif isinstance(module, nn.LayerNorm):
            x = layer_norm(x, x.shape[-1:], None, None, module.eps)
        calls.inputs.append(x)
        calls.outputs.append(outputs)

    return record


def _items(name: str, rows: Tensor, jobs: Jobs) -> Tensor:
    """Returns (rows,) the item of each row of a module: rows are the tokens or the sequences of the micro-batch."""
    batch = jobs.batch
    num_tokens, num_sequences = len(batch.input_ids), len(batch.cu_seqlens) - 1
    if rows.dim() == 2 and len(rows) == num_tokens:
        return jobs.job_of_token
    if rows.dim() == 2 and len(rows) == num_sequences:
        return jobs.job_of_token[batch.cu_seqlens[:-1].long().clamp(max=num_tokens - 1)]
    raise ConfigError(
        f"{name} has an input of shape {tuple(rows.shape)}, whose rows are neither tokens nor sequences. Influence "
        "needs the item of each row. Set training_rows=0."
    )


def _by_item(rows: Tensor, items: Tensor, num_items: int) -> Tensor:
    return rows.new_zeros(num_items, rows.shape[1]).index_add(0, items, rows)
