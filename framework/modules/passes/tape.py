"""The tape of a private pass: gradient norms of each privacy unit of a micro-batch, from one backward pass.

Hooks keep the inputs and outputs of the modules with trained parameters. `torch.autograd.grad` with respect to the
outputs forms no gradient of a weight and starts no communication of gradients.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from framework.batch import PackedBatch
from framework.errors import ConfigError
from framework.modules.passes.gradient_squares import RULES, Kept, Rule, shared_table_products, table_squares
from framework.modules.passes.row_units import TOKENS, BatchUnits, RowUnits, meaning_of_rows
from framework.nn.embeddings import TokenEmbeddings
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
        handles = [
            module.register_forward_hook(self._hook(name, rule, meaning, recording))
            for name, (module, rule, meaning) in self._rules.items()
        ]
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

    def squares(self, recording: Recording, losses: Tensor, units: BatchUnits) -> Tensor:
        """Returns the squared gradient norm of each unit over all trained parameters.

        The graph is kept for the backward pass that follows.

        Args:
            recording: Records of the forward pass.
            losses: (units,) loss of each unit, which depends on no row of another unit.
            units: Units of the micro-batch.

        Returns:
            (units,) fp64.
        """
        kept = [record.kept for record in recording.records.values()]
        wanted = [tensor for each in kept for tensor in each.tensors]
        if recording.embeddings is not None:
            wanted.append(recording.embeddings)
        found = torch.autograd.grad(losses.sum(), wanted, retain_graph=True, allow_unused=True)
        gradients = iter(found)
        total = torch.zeros(units.num_units, dtype=torch.float64, device=losses.device)
        by_name: dict[str, list[Tensor]] = {}
        with torch.no_grad(), torch.autocast(losses.device.type, enabled=False):
            for name, record in recording.records.items():
                own = [next(gradients) for _ in record.kept.tensors]
                by_name[name] = [gradient for gradient in own if gradient is not None]
                if by_name[name]:
                    total += record.kept.squares(by_name[name], units.of(record.meaning))
            if recording.embeddings is not None and found[-1] is not None:
                total += self._embedding_squares(recording, found[-1], units, by_name)
        return total

    def _embedding_squares(
        self, recording: Recording, gradient: Tensor, units: BatchUnits, by_name: Mapping[str, list[Tensor]]
    ) -> Tensor:
        """Returns the squares of the tables, whose rows are added to one sum, and the term of a tied decoder."""
        assert self._embeddings is not None
        batch, tokens = units.batch, units.of(TOKENS)
        total = torch.zeros(units.num_units, dtype=torch.float64, device=gradient.device)
        for name, table in _tables(self._embeddings).items():
            if table.weight.requires_grad:
                ids = _ids(self._embeddings, name, batch)
                total += table_squares(ids, gradient, tokens, table.num_embeddings)
        if self._decoder is not None and by_name.get(self._decoder):
            record = recording.records[self._decoder]
            decoder: tuple[Tensor, Tensor, RowUnits] = (
                record.inputs[0].detach(),
                by_name[self._decoder][0],
                units.of(record.meaning),
            )
            total += 2 * shared_table_products(decoder, batch.input_ids, gradient, tokens)
        return total


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
