"""Assigns an algorithm and a weight decay to each parameter, by patterns of names from the config."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from framework.errors import ConfigError
from framework.optim.combined import CombinedOptimizer
from framework.optim.layer_decay import layer_factors
from framework.optim.muon import LEARNING_RATE_RULES

NO_DECAY = ("*bias", "*norm.weight")
"""Default patterns: no weight decay for biases and norms."""


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0.0:
            raise ConfigError(f"optimizer.{name} is {value}. It must be a number >= 0. Choose such a value.")


class OptimizerSettings(ABC):
    """Settings from `conf/optimizer`, from which the optimizer is built once parameters exist."""

    @abstractmethod
    def build(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        row_parts: Mapping[str, tuple[int, int]],
        matrix_dtype: torch.dtype,
    ) -> CombinedOptimizer:
        """Builds the optimizer.

        Args:
            named_parameters: Parameters of the model, already on their device and sharded.
            row_parts: (outer, parts) by shell pattern of a fused weight's name, see `framework.optim.muon.split_rows`;
                used by algorithms on full matrices.
            matrix_dtype: Dtype of the products of such algorithms: bf16 if the hardware supports it, else fp32.
        """


@dataclass(frozen=True)
class Adam(OptimizerSettings):
    """Settings of Adam and its variants, which use one algorithm for every parameter.

    Attributes:
        lr: Base learning rate.
        betas: Decay rates of the first and second moments, each in [0, 1).
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay.
        weight_decay_times: Factor of the decay in a step: "rate", the learning rate of the step (torch); or
            "schedule", that rate divided by `lr`, so that the decay does not depend on `lr` (Loshchilov, Hutter 2019,
            algorithm 2; the recipes of MosaicBERT, ModernBERT and Ettin).
        no_decay: Shell patterns of the names of parameters without weight decay.
        layer_decay: Ratio of a layer's rate to that of the next layer, in (0, 1]; see
            `framework.optim.layer_decay`.
    """

    algorithm: ClassVar[str]

    lr: float
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    weight_decay: float = 0.01
    weight_decay_times: Literal["rate", "schedule"] = "rate"
    no_decay: Sequence[str] = NO_DECAY
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        _check_positive(lr=self.lr, eps=self.eps, weight_decay=self.weight_decay)
        if len(self.betas) != 2 or not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ConfigError(
                f"optimizer.betas is {list(self.betas)}. It must be two numbers in [0, 1). Use for example [0.9, 0.98]."
            )
        if self.weight_decay_times == "schedule" and not (self.lr > 0.0 and self.weight_decay < 1.0):
            raise ConfigError(
                f"optimizer.weight_decay_times is schedule, optimizer.lr is {self.lr} and optimizer.weight_decay is "
                f"{self.weight_decay}. A step at the peak then takes this share off each weight, which must be below "
                "1, and the rate must be positive. Usual values are 1.0e-5 to 1.0e-4; or use weight_decay_times=rate."
            )
        if not 0.0 < self.layer_decay <= 1.0:
            raise ConfigError(f"optimizer.layer_decay is {self.layer_decay}. It must be in (0, 1]. Use 1 for one rate.")

    def group(self, decayed: bool, layer_factor: float) -> dict[str, Any]:
        """Returns the settings of one group, without parameters."""
        return {
            "algorithm": self.algorithm,
            "lr": self.lr * layer_factor,
            "betas": tuple(self.betas),
            "eps": self.eps,
            # The algorithms multiply it by the rate of the step.
            "weight_decay": (self._decay(self.lr * layer_factor) if decayed else 0.0),
            "decayed": decayed,
        }

    def _decay(self, lr: float) -> float:
        return self.weight_decay / lr if self.weight_decay_times == "schedule" else self.weight_decay

    @override
    def build(
        self,
        named_parameters: Iterable[tuple[str, Tensor]],
        row_parts: Mapping[str, tuple[int, int]],
        matrix_dtype: torch.dtype,
    ) -> CombinedOptimizer:
        """Builds the optimizer; the algorithms work element-wise or by tensor."""
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
    """LAMB for every parameter, see `framework.optim.lamb`. Parameters without weight decay have no trust ratio."""

    algorithm = "lamb"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weight_decay_times != "rate":
            raise ConfigError(
                f"optimizer.weight_decay_times is {self.weight_decay_times}. LAMB adds the decay to the update before "
                "its trust ratio, so only rate is possible. Use weight_decay_times=rate, or another optimizer."
            )


@dataclass(frozen=True)
class Muon(OptimizerSettings):
    """Muon for the matrices of layers, a variant of Adam for all other parameters.

    Attributes:
        adamw: Optimizer of embeddings, head, norms and biases: AdamW or a variant. Its `layer_decay` applies to the
            matrices too.
        lr: Base learning rate of the matrices.
        momentum: Nesterov momentum, in [0, 1).
        weight_decay: Weight decay of the matrices.
        num_iterations: Newton-Schulz iterations.
        learning_rate_rule: "original" or "match_rms_adamw", see `framework.optim.muon.learning_rate_factor`.
        matrices: Shell patterns of names. Matching 2-D parameters use Muon.
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
            raise ConfigError(f"optimizer.momentum is {self.momentum}. It must be in [0, 1). A usual value is 0.95.")
        if self.learning_rate_rule not in LEARNING_RATE_RULES:
            raise ConfigError(
                f"optimizer.learning_rate_rule is {self.learning_rate_rule!r}, which is unknown. Use one of "
                f"{', '.join(LEARNING_RATE_RULES)}."
            )

    def group(
        self, row_parts: tuple[int, int] | None, matrix_dtype: torch.dtype, layer_factor: float
    ) -> dict[str, Any]:
        """Returns the settings of one group, without parameters."""
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
        """Builds the optimizer. Fused weights are orthogonalised part by part."""
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
    """Groups parameters by learning rate and by weight decay, without frozen ones.

    Args:
        named_parameters: Parameters that Adam or its variant updates.
        adam: Settings of the groups.
        factors: Factor of each parameter's rate (`framework.optim.layer_decay.layer_factors`).

    Returns:
        Groups in order of falling rate (the largest is logged), groups with weight decay first.
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
