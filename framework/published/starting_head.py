"""Which weights of a head a run takes over from those that it starts from, and how that is told.

The encoder is always taken whole. Of a head only what means the same here: the maps to labels of another task, or of
other labels, would be no better than fresh ones, and of the same shape by chance.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from framework.nn.lora import is_update, updates_of
from framework.published.kinds import problem_of
from framework.published.pretrained import PretrainedWeights, match_parameters

_SHARED = ("pooler.", "transform.", "mlm.", "nsp.")
"""What stands between the encoder and the scores, of use to every head, and the heads of pre-training."""
_SCORES = "classifier."
_UNNAMED = re.compile(r"LABEL_\d+")


def fit_head(weights: PretrainedWeights, head_kind: str, side: Mapping[str, Any]) -> PretrainedWeights:
    """Leaves out what was trained for another task or for other labels, and puts the scores into the order of labels.

    Weights of an unknown kind stay as they are, and so do scores whose labels have no names.

    Args:
        weights: To start from.
        head_kind: `Task.head_kind` of the task that is to be trained.
        side: What that task keeps: `labels` and `problem`, as far as it has them.
    """
    if weights.head_kind is None:
        return weights
    labels, others = _labels(side), _labels(weights.side)
    same_problem = problem_of(side, len(labels)) == problem_of(weights.side, len(others))
    if weights.head_kind != head_kind or not same_problem:
        return _without(weights, [name for name in weights.heads if not name.startswith(_SHARED)])
    scores = [name for name in weights.heads if name.startswith(_SCORES)]
    if labels == others or not labels or not others:
        return weights
    if len(labels) == len(others) and all(_UNNAMED.fullmatch(label) for label in others):
        return weights
    if sorted(labels) == sorted(others):
        rows = [others.index(label) for label in labels]
        return replace(weights, heads={**weights.heads, **{name: weights.heads[name][rows] for name in scores}})
    return _without(weights, scores)


def _labels(side: Mapping[str, Any]) -> list[str]:
    return [str(label) for label in side.get("labels") or ()]


def _without(weights: PretrainedWeights, left_out: list[str]) -> PretrainedWeights:
    heads: dict[str, Tensor] = {name: tensor for name, tensor in weights.heads.items() if name not in left_out}
    return replace(weights, heads=heads, unused=(*weights.unused, *left_out))


def describe_start(model: nn.Module, weights: PretrainedWeights) -> str:
    """Describes in one line which weights come from the source, which are new, and what of the source is not used.

    Args:
        model: See `match_parameters`.
        weights: As `fit_head` gives them.

    Raises:
        CheckpointError: As in `match_parameters`.
    """
    found, new = match_parameters(model, weights)
    num_updates = sum(len(parts) for parts in updates_of(new).values())
    taken = [name for name in found if name.startswith("head.")]
    # What a head took over under another name is used too: see `match_parameters`.
    used = {id(tensor) for tensor in found.values()}
    unused = [name for name, tensor in weights.heads.items() if f"head.{name}" not in found and id(tensor) not in used]
    parts = [
        f"{word}: {', '.join(modules)}"
        for word, modules in (
            ("head taken over", _modules(taken)),
            ("head new", _modules(name for name in new if not is_update(name))),
            ("low-rank updates new", [str(num_updates)] if num_updates else []),
            ("not used of the source", _modules([*unused, *weights.unused])),
        )
        if modules
    ]
    return "; ".join([f"weights from {weights.source}", *parts])


def _modules(names: Iterable[str]) -> list[str]:
    """Names of modules, each once, from names of their parameters."""
    return list(dict.fromkeys(name.removeprefix("head.").rpartition(".")[0] or name for name in names))
