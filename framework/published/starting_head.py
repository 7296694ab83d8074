"""Selects the head weights that a run reuses from the weights that it starts from, and describes the selection.

The encoder is always reused completely. A head's weights are reused only if they have the same meaning in this run. An
output layer for another task or for other labels is no better than a new one, even if its shape happens to match.
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
"""Prefixes of layers that any head can reuse: those between encoder and scores, and the heads of pre-training."""
_SCORES = "classifier."
_UNNAMED = re.compile(r"LABEL_\d+")


def fit_head(weights: PretrainedWeights, head_kind: str, task_record: Mapping[str, Any]) -> PretrainedWeights:
    """Drops weights of a head for another task or other labels, and reorders the scores to the order of the labels.

    Heads of unknown kind and scores of unnamed labels stay unchanged.

    Args:
        weights: Weights to start from.
        head_kind: `Task.head_kind` of the task to train.
        task_record: Record of the task to train; optional keys are `labels` and `problem`.
    """
    if weights.head_kind is None:
        return weights
    labels, others = _labels(task_record), _labels(weights.task_record)
    same_problem = problem_of(task_record, len(labels)) == problem_of(weights.task_record, len(others))
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


def _labels(task_record: Mapping[str, Any]) -> list[str]:
    return [str(label) for label in task_record.get("labels") or ()]


def _without(weights: PretrainedWeights, dropped: list[str]) -> PretrainedWeights:
    heads: dict[str, Tensor] = {name: tensor for name, tensor in weights.heads.items() if name not in dropped}
    return replace(weights, heads=heads, unused=(*weights.unused, *dropped))


def describe_start(model: nn.Module, weights: PretrainedWeights) -> str:
    """Describes in one line the start: changed weights, reused and new ones of the head, unused ones of the source.

    Args:
        model: Model as for `match_parameters`.
        weights: Result of `fit_head`.

    Raises:
        CheckpointError: The weights do not fit the model; see `match_parameters`.
    """
    matched, new = match_parameters(model, weights)
    num_updates = sum(len(parts) for parts in updates_of(new).values())
    reused = [name for name in matched if name.startswith("head.")]
    # `match_parameters` may also reuse a tensor under another name.
    used = {id(tensor) for tensor in matched.values()}
    unused = [
        name for name, tensor in weights.heads.items() if f"head.{name}" not in matched and id(tensor) not in used
    ]
    parts = [
        f"{word}: {', '.join(modules)}"
        for word, modules in (
            ("head reused", _modules(reused)),
            ("head new", _modules(name for name in new if not is_update(name))),
            ("low-rank updates new", [str(num_updates)] if num_updates else []),
            ("unused weights of the source", _modules([*unused, *weights.unused])),
        )
        if modules
    ]
    return "; ".join([f"weights from {weights.source}", *weights.changes, *parts])


def _modules(names: Iterable[str]) -> list[str]:
    """Returns the names of modules, each once, from names of their parameters; a part with layers by its first name."""
    modules = [name.removeprefix("head.").rpartition(".")[0] or name for name in names]
    stacks = {name.partition(".")[0] for name in modules if ".layers." in name}
    return list(dict.fromkeys(root if (root := name.partition(".")[0]) in stacks else name for name in modules))
