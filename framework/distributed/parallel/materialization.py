"""Allocates the weights of a model on the meta device and sets their values.

A model is built on the meta device and parallelized (`framework.distributed.parallel.parallelize`). Only then does it
get memory and values, so that no rank ever holds more than its shard and one full parameter.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from framework.nn.embeddings import TokenEmbeddings
from framework.optim.shards import is_distributed


def materialize(
    model: nn.Module,
    initial_values: Iterable[tuple[str, Callable[[], Tensor]]],
    device: torch.device | str,
    parameter_device: torch.device | str | None = None,
) -> None:
    """Allocates a model on the meta device and sets its initial values and buffers; each rank keeps its own shard.

    There is no communication. Every rank creates one full parameter after the other and keeps its part, so that weights
    are the same at any world size. Tied parameters stay tied.

    Args:
        model: Model, parallelized or not.
        initial_values: Pairs of a name in `model.named_parameters()` and a function that returns the full value.
        device: Device on which the model computes.
        parameter_device: Device that stores the parameters, for example the CPU if they are offloaded. None: `device`.

    Raises:
        ValueError: The names of the values differ from those of the parameters, or a module with buffers has no
            `reset_buffers`.
    """
    makers = dict(initial_values)
    aliases = _tied_names(model)
    names = {name for name, _ in model.named_parameters()}
    if names != set(makers):
        raise ValueError(
            f"The names of initial values and parameters differ in {sorted(names ^ set(makers))}. Each parameter needs "
            "one initial value. Pass exactly the names of model.named_parameters()."
        )
    storing_device = torch.device(device if parameter_device is None else parameter_device)
    model._apply(lambda tensor: _empty(tensor, storing_device))
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
    for alias, name in aliases.items():
        owner, _, attribute = alias.rpartition(".")
        setattr(model.get_submodule(owner), attribute, model.get_parameter(name))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, make in makers.items():
            assign_full(parameters[name], make())
    for name, module in model.named_modules():
        if next(module.buffers(recurse=False), None) is None:
            continue
        if not hasattr(module, "reset_buffers"):
            raise ValueError(
                f"The module {name} has buffers but no reset_buffers(). Buffers lose their values on the meta device. "
                "Define reset_buffers() to fill them."
            )
        module.reset_buffers()


def use_sparse_gradients(model: nn.Module) -> None:
    """Makes the gradients of embeddings sparse on a CPU, unless they are reduced over ranks.

    `CombinedOptimizer` and `clip_gradients` accept such gradients. All results are those of dense gradients, bit for
    bit. A decoder tied to the word embeddings makes their gradient dense.
    """
    for module in model.modules():
        if isinstance(module, TokenEmbeddings):
            for table in module.children():
                if isinstance(table, nn.Embedding):
                    table.sparse = table.weight.device.type == "cpu" and not is_distributed(table.weight)


def assign_full(parameter: Tensor, value: Tensor) -> None:
    """Copies a full tensor into a parameter, without communication. A sharded parameter takes its own part."""
    if is_distributed(parameter):
        from torch.distributed.tensor import (
            distribute_tensor,
        )  # takes almost a second, and a prediction needs no shards

        value = value.to(parameter.to_local().device)
        part = distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.to_local().copy_(part.to_local())
    else:
        parameter.copy_(value)


def _empty(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns an uninitialized tensor of the same shape on a device.

    `Module.to_empty` calls `empty_like`, which for a plain tensor on the meta device runs in Python and imports sympy
    (torch 2.13).
    """
    if is_distributed(tensor):
        return torch.empty_like(tensor, device=device)
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=device)


def _tied_names(model: nn.Module) -> dict[str, str]:
    """Maps each additional name of a tied parameter to its first name."""
    first: dict[int, str] = {}
    aliases = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            aliases[name] = first[id(parameter)]
        else:
            first[id(parameter)] = name
    return aliases
