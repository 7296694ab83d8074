"""Which parameter gets which algorithm and which weight decay: rules on names, written in the config."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from framework.errors import ConfigError
from framework.optim.combined import CombinedOptimizer
from framework.optim.layer_decay import layer_factors
from framework.optim.muon import LEARNING_RATE_RULES

NO_DECAY = ("*bias", "*norm.weight")
"""Default: biases and norms keep their size."""


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0.0:
            raise ConfigError(f"optimizer.{name}={value} is not a number >= 0; give one.")


class OptimizerSettings(ABC):
    """What `conf/optimizer` describes; it becomes an optimizer when there are parameters."""

    @abstractmethod
    def build(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        row_parts: Mapping[str, tuple[int, int]],
        matrix_dtype: torch.dtype,
    ) -> CombinedOptimizer:
        """Builds the optimizer.

        Args:
            named_parameters: Of the model, on their device and sharded already.
            row_parts: Shell pattern of a fused weight's name -> (outer, parts), see `framework.optim.muon.split_rows`;
                for algorithms that work on whole matrices.
            matrix_dtype: Of such algorithms' products: bf16 where the hardware multiplies it natively, else fp32.
        """


@dataclass(frozen=True)
class Adam(OptimizerSettings):
    """What the members of Adam's family have in common: one algorithm for every parameter.

    Attributes:
        lr: Base learning rate.
        betas: Decay of the first and second moments, each in [0, 1).
        eps: Added to the root of the second moment.
        weight_decay: Decoupled; times the learning rate of the step.
        no_decay: Shell patterns of names that are not decayed.
        layer_decay: By what a layer's rate is smaller than that of the next, in (0, 1]; see
            `framework.optim.layer_decay`.
    """

    algorithm: ClassVar[str]

    lr: float
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01
    no_decay: Sequence[str] = NO_DECAY
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        _check_positive(lr=self.lr, eps=self.eps, weight_decay=self.weight_decay)
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ConfigError(
                f"optimizer.betas={list(self.betas)} must be two numbers in [0, 1); for example [0.9, 0.98]."
            )
        if not 0.0 < self.layer_decay <= 1.0:
            raise ConfigError(
                f"optimizer.layer_decay={self.layer_decay} is not in (0, 1]; 1 gives every layer the same rate."
            )

    def group(self, decayed: bool, layer_factor: float) -> dict[str, Any]:
        """The settings of one group, without its parameters."""
        return {
            "algorithm": self.algorithm,
            "lr": self.lr * layer_factor,
            "betas": tuple(self.betas),
            "eps": self.eps,
            "weight_decay": self.weight_decay if decayed else 0.0,
            "decayed": decayed,
        }

    @override
    def build(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        row_parts: Mapping[str, tuple[int, int]],
        matrix_dtype: torch.dtype,
    ) -> CombinedOptimizer:
        """Builds the optimizer; nothing here works on whole matrices."""
        named_parameters = list(named_parameters)
        factors = layer_factors([name for name, _ in named_parameters], self.layer_decay)
        return CombinedOptimizer(build_parameter_groups(named_parameters, self, factors))


class AdamW(Adam):
    """AdamW for every parameter, see `framework.optim.adamw`."""

    algorithm = "adamw"


class StableAdamW(Adam):
    """StableAdamW for every parameter, see `framework.optim.stable_adamw`."""

    algorithm = "stable_adamw"


class Lamb(Adam):
    """LAMB for every parameter, see `framework.optim.lamb`; what is not decayed has no trust ratio either."""

    algorithm = "lamb"


@dataclass(frozen=True)
class Muon(OptimizerSettings):
    """Muon for the matrices inside layers, another for the rest.

    Attributes:
        adamw: For embeddings, head, norms and biases: AdamW, or another of its family. Its `layer_decay` holds
            for the matrices too.
        lr: Base learning rate of the matrices.
        momentum: Of the Nesterov momentum, in [0, 1).
        weight_decay: Of the matrices.
        num_iterations: Of Newton-Schulz.
        learning_rate_rule: "original" or "match_rms_adamw", see `framework.optim.muon.learning_rate_factor`.
        matrices: Shell patterns of names; of these, the 2-D parameters get Muon.
    """

    adamw: Adam
    lr: float
    momentum: float = 0.95
    weight_decay: float = 0.1
    num_iterations: int = 5
    learning_rate_rule: str = "original"
    matrices: Sequence[str] = ("*layers.*.weight",)

    def __post_init__(self) -> None:
        _check_positive(lr=self.lr, weight_decay=self.weight_decay)
        if not 0.0 <= self.momentum < 1.0:
            raise ConfigError(f"optimizer.momentum={self.momentum} is not in [0, 1); 0.95 is usual.")
        if self.learning_rate_rule not in LEARNING_RATE_RULES:
            raise ConfigError(
                f"optimizer.learning_rate_rule={self.learning_rate_rule} is unknown; "
                f"use one of {', '.join(LEARNING_RATE_RULES)}."
            )

    def group(
        self, row_parts: tuple[int, int] | None, matrix_dtype: torch.dtype, layer_factor: float
    ) -> dict[str, Any]:
        """The settings of one group, without its parameters."""
        return {
            "algorithm": "muon",
            "lr": self.lr * layer_factor,
            "momentum": self.momentum,
            "weight_decay": self.weight_decay,
            "num_iterations": self.num_iterations,
            "learning_rate_rule": self.learning_rate_rule,
            "row_parts": row_parts,
            "matrix_dtype": matrix_dtype,
        }

    @override
    def build(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        row_parts: Mapping[str, tuple[int, int]],
        matrix_dtype: torch.dtype,
    ) -> CombinedOptimizer:
        """Builds the optimizer; fused weights are orthogonalised in their parts."""
        named_parameters = list(named_parameters)
        factors = layer_factors([name for name, _ in named_parameters], self.adamw.layer_decay)
        rest: list[tuple[str, Tensor]] = []
        matrices: dict[tuple[tuple[int, int] | None, float], list[tuple[str, Tensor]]] = {}
        for name, parameter in named_parameters:
            if parameter.ndim == 2 and parameter.requires_grad and _matches(name, self.matrices):
                parts = next((value for pattern, value in row_parts.items() if fnmatchcase(name, pattern)), None)
                matrices.setdefault((parts, factors[name]), []).append((name, parameter))
            else:
                rest.append((name, parameter))
        groups = build_parameter_groups(rest, self.adamw, factors)
        groups += [
            _with_parameters(self.group(parts, matrix_dtype, factor), members)
            for (parts, factor), members in matrices.items()
        ]
        return CombinedOptimizer(groups)


def _with_parameters(settings: dict[str, Any], members: Sequence[tuple[str, Tensor]]) -> dict[str, Any]:
    names, parameters = zip(*members, strict=True)
    return {"params": list(parameters), "names": list(names), **settings}


def build_parameter_groups(
    named_parameters: Iterable[tuple[str, Tensor]], adam: Adam, factors: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Sorts parameters by rate and into decayed and not decayed, leaving out frozen ones.

    Args:
        named_parameters: Those that the Adam is for.
        adam: The settings.
        factors: Of `framework.optim.layer_decay.layer_factors`, by name.

    Returns:
        The groups, the largest rate first (it is the one that is logged), decayed before not decayed.
    """
    members: dict[tuple[float, bool], list[tuple[str, Tensor]]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            decayed = not _matches(name, adam.no_decay)
            members.setdefault((factors[name], decayed), []).append((name, parameter))
    return [
        _with_parameters(adam.group(decayed, factor), members[factor, decayed])
        for factor, decayed in sorted(members, reverse=True)
    ]
