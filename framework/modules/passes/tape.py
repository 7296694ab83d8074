"""The tape of a private pass: gradient norms of each privacy unit of a micro-batch, from one backward pass.

Hooks keep the inputs and outputs of the modules with trained parameters. `torch.autograd.grad` with respect to the
outputs forms no gradient of a weight and starts no communication of gradients.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.hooks import RemovableHandle

from framework.batch import PackedBatch
from framework.errors import ConfigError
from framework.modules.passes.gradient_squares import RULES, Kept, Rule, shared_table_products, table_squares
from framework.modules.passes.row_units import TOKENS, BatchUnits, RowUnits, meaning_of_rows
from framework.nn.dropout import has_kernel
from framework.nn.embeddings import TokenEmbeddings
from framework.nn.norm import ResidualNorm
from framework.tasks.pretraining.head import TiedDecoder


@dataclass
class _Record:
    """Values that one module left in a forward pass.

    Attributes:
        kept: Result of the module's rule.
        meaning: Meaning of the rows of its activations.
        inputs: Positional arguments of the module.
    """

    kept: Kept
    meaning: str
    inputs: tuple


@dataclass
class Recording:
    """Records of one forward pass, by name of the module.

    Attributes:
        records: Records of modules with rules.
        embeddings: (tokens, hidden) sum of the embeddings before their norm; None if no table is trained.
    """

    records: dict[str, _Record] = field(default_factory=dict)
    embeddings: Tensor | None = None


class Tape:
    """Modules of a model that have trained parameters, with their rules.

    Args:
        model: Model, parallelized or not; on the meta device it can be checked, but not run.
        head_rows: `Task.head_rows`.

    Raises:
        ConfigError: A trained parameter has no rule, or two modules share one in a way that no rule covers.
    """

    def __init__(self, model: nn.Module, head_rows: Mapping[str, str]) -> None:
        self._rules: dict[str, tuple[nn.Module, Rule, str]] = {}
        self._embeddings: TokenEmbeddings | None = None
        self._decoder: str | None = None
        covered: dict[int, str] = {}
        for name, module in model.named_modules():
            if isinstance(module, TokenEmbeddings):
                self._embeddings = module
                if module.patch_embeddings is not None and any(each.requires_grad for each in module.parameters()):
                    raise ConfigError(
                        f"`{name}` is trained, but it embeds pictures, for which privacy=dp_sgd has no rule. "
                        f"Use adapter=lora, or freeze it with 'trainer.freeze=[\"{name}.*\"]'."
                    )
                covered |= {id(table.weight): name for table in _tables(module).values()}
                continue
            is_table = isinstance(module, nn.Embedding) and id(module.weight) in covered
            if not is_table and any(each.requires_grad for each in module.parameters(recurse=False)):
                self._add(name, module, dict(head_rows), covered)

    def _add(self, name: str, module: nn.Module, head_rows: dict[str, str], covered: dict[int, str]) -> None:
        kind = _kind(module)
        if kind not in RULES:
            parameter = next(each for each, value in module.named_parameters(recurse=False) if value.requires_grad)
            raise ConfigError(
                f"`{name}.{parameter}` is trained, but {kind.__name__} has no rule for the gradient norm of one item. "
                "privacy=dp_sgd needs a rule for each kind of trained module. Freeze the parameter with "
                f"trainer.freeze, or add a rule for {kind.__name__} to framework/modules/passes/gradient_squares.py."
            )
        if kind is TiedDecoder and self._embeddings is not None:
            assert isinstance(module, TiedDecoder)
            if module.weight is self._embeddings.word_embeddings.weight and module.weight.requires_grad:
                self._decoder = name
        for each in module.parameters(recurse=False):
            if each.requires_grad and id(each) in covered and self._decoder != name:
                raise ConfigError(
                    f"`{name}` and `{covered[id(each)]}` share a parameter. privacy=dp_sgd supports this only for a "
                    "decoder that shares the word embeddings. Freeze the parameter with trainer.freeze."
                )
            covered[id(each)] = name
        self._rules[name] = (module, RULES[kind], meaning_of_rows(name, head_rows))

    @contextmanager
    def recording(self) -> Iterator[Recording]:
        """Context in which the model runs one forward pass. Recomputed passes outside of it leave no records."""
        recording = Recording()
        summed: set[nn.Module] = set()
        handles: list[RemovableHandle] = []
        for name, (module, rule, meaning) in self._rules.items():
            if isinstance(module, ResidualNorm):
                handles.append(module.register_forward_pre_hook(partial(_request_sum, summed)))
            handles.append(module.register_forward_hook(self._hook(name, rule, meaning, recording)))
            if isinstance(module, ResidualNorm):
                handles.append(module.register_forward_hook(partial(_drop_sum, summed)))
        tables = {} if self._embeddings is None else _tables(self._embeddings)
        if any(table.weight.requires_grad for table in tables.values()):
            assert self._embeddings is not None

            def keep(module: nn.Module, inputs: tuple) -> None:  # noqa: ARG001
                recording.embeddings = inputs[0]

            handles.append(self._embeddings.norm.register_forward_pre_hook(keep))
        try:
            yield recording
        finally:
            for handle in handles:
                handle.remove()

    @staticmethod
    def _hook(name: str, rule: Rule, meaning: str, recording: Recording) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            if name in recording.records:
                raise ConfigError(
                    f"`{name}` runs twice in one forward pass. privacy=dp_sgd needs modules that run once. Freeze its "
                    "parameters with trainer.freeze."
                )
            recording.records[name] = _Record(rule(module, inputs, output), meaning, inputs)

        return keep

    def differentiate(
        self, recording: Recording, losses: Tensor, units: BatchUnits, retain_graph: bool
    ) -> "UnitGradients":
        """Runs a backward pass that forms no gradient of a weight.

        Args:
            recording: Records of the forward pass.
            losses: (units,) loss of each unit, which depends on no row of another unit.
            units: Units of the micro-batch.
            retain_graph: Keep the graph for another backward pass.
        """
        wanted = [tensor for record in recording.records.values() for tensor in record.kept.tensors]
        if recording.embeddings is not None:
            wanted.append(recording.embeddings)
        found = torch.autograd.grad(losses.sum(), wanted, retain_graph=retain_graph, allow_unused=True)
        gradients = iter(found)
        by_name: dict[str, list[Tensor]] = {}
        for name, record in recording.records.items():
            own = [next(gradients) for _ in record.kept.tensors]
            reached = [gradient for gradient in own if gradient is not None]
            if reached:
                by_name[name] = reached
        embeddings = None if recording.embeddings is None else found[-1]
        return UnitGradients(recording.records, by_name, embeddings, self._embeddings, self._decoder, units)


@dataclass(frozen=True)
class UnitGradients:
    """Gradients of the outputs of all trained modules of a micro-batch.

    Attributes:
        records: Records of the modules, by name.
        by_name: Gradients of their tensors, for modules that the losses depend on.
        embeddings: (tokens, hidden) gradient of the sum of the embeddings; None if no table is trained.
        module: Module of the embeddings; None if there is none.
        decoder: Name of a decoder that shares the word embeddings; None: there is none.
        units: Units of the micro-batch.
    """

    records: Mapping[str, _Record]
    by_name: Mapping[str, list[Tensor]]
    embeddings: Tensor | None
    module: TokenEmbeddings | None
    decoder: str | None
    units: BatchUnits

    def squares(self) -> Tensor:
        """Returns the squared gradient norm of each unit over all trained parameters: (units,) fp64."""
        total = torch.zeros(self.units.num_units, dtype=torch.float64, device=self.units.batch.input_ids.device)
        with _plain_arithmetic(total):
            for name, gradients in self.by_name.items():
                record = self.records[name]
                total += record.kept.squares(gradients, self.units.of(record.meaning))
            tokens = self.units.of(TOKENS)
            for table, ids in self._trained_tables():
                assert self.embeddings is not None
                total += table_squares(ids, self.embeddings, tokens, table.num_embeddings)
            if self.decoder in self.by_name and self.embeddings is not None:
                total += 2 * self._shared_products(tokens)
        return total

    def accumulate(self, scales: Tensor) -> None:
        """Adds the scaled gradients of all units to `grad` of the parameters, which no rank shares.

        Args:
            scales: (units,) factor on the gradient of each unit.
        """
        with _plain_arithmetic(scales):
            for name, gradients in self.by_name.items():
                record = self.records[name]
                rows = scales[self.units.of(record.meaning).index][:, None]
                for parameter, value in record.kept.gradients([(each * rows).to(each.dtype) for each in gradients]):
                    _add_gradient(parameter, value)
            for table, ids in self._trained_tables():
                assert self.embeddings is not None
                rows = scales[self.units.of(TOKENS).index][:, None]
                if table.weight.grad is None:
                    table.weight.grad = torch.zeros_like(table.weight)
                table.weight.grad.index_add_(0, ids, self.embeddings.float() * rows)

    def _trained_tables(self) -> Iterator[tuple[nn.Embedding, Tensor]]:
        """Yields each trained table that was reached, with (tokens,) its rows that were added to the embeddings."""
        if self.module is None or self.embeddings is None:
            return
        for name, table in _tables(self.module).items():
            if table.weight.requires_grad:
                yield table, _ids(self.module, name, self.units.batch)

    def _shared_products(self, tokens: RowUnits) -> Tensor:
        """Returns the inner products of the two gradients of the word embeddings for each unit."""
        assert self.decoder is not None and self.embeddings is not None
        record = self.records[self.decoder]
        decoder = record.inputs[0].detach(), self.by_name[self.decoder][0], self.units.of(record.meaning)
        return shared_table_products(decoder, self.units.batch.input_ids, self.embeddings, tokens)


def _request_sum(summed: set[nn.Module], module: nn.Module, inputs: tuple) -> tuple | None:
    """Adds the sum that a `ResidualNorm` normalises to its results, so that the rule need not compute it again.

    The kernels on CUDA compute it again: another result would be one more tensor that activation checkpointing compares
    with the recomputed ones.
    """
    branch, *others, names = inputs
    if "sum" in names or has_kernel(branch):
        return None
    summed.add(module)
    return branch, *others, ("sum", *names)


def _drop_sum(summed: set[nn.Module], module: nn.Module, inputs: tuple, output: tuple) -> tuple | None:  # noqa: ARG001
    """Removes the added result."""
    return output[1:] if module in summed else None


@contextmanager
def _plain_arithmetic(tensor: Tensor) -> Iterator[None]:
    """Context without autograd and autocast."""
    with torch.no_grad(), torch.autocast(tensor.device.type, enabled=False):
        yield


def _add_gradient(parameter: Tensor, value: Tensor) -> None:
    """Adds a new tensor to `grad` of a parameter."""
    if parameter.grad is None:
        parameter.grad = value.to(parameter.dtype)
    else:
        parameter.grad.add_(value)


def _tables(embeddings: TokenEmbeddings) -> dict[str, nn.Embedding]:
    """Returns the tables of embeddings by name."""
    return {name: table for name, table in embeddings.named_children() if isinstance(table, nn.Embedding)}


def _ids(embeddings: TokenEmbeddings, name: str, batch: PackedBatch) -> Tensor:
    """Returns (tokens,) looked-up row of a table."""
    if name == "word_embeddings":
        return batch.input_ids
    if name == "position_embeddings":
        return batch.position_ids + embeddings.position_offset
    table = embeddings.token_type_embeddings
    assert table is not None
    return batch.token_type_ids if table.num_embeddings > 1 else torch.zeros_like(batch.token_type_ids)


def _kind(module: nn.Module) -> type[nn.Module]:
    """Returns the class of a module without the subclass that sharding gives it."""
    kind = type(module)
    while issubclass(kind, FSDPModule):
        kind = kind.__bases__[-1]
    return kind
