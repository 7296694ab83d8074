"""Metrics of a task on any choice of the rows of a split, from one pass of the model.

The pass keeps the state that each item adds to each metric. The state of several items is the sum of their states, or
for metrics that store their targets the list of them. Tasks that score predictions have `Task.row_metrics` instead.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from framework.batch import PackedBatch
from framework.data.planning.plan import SequenceSource, StepSequences
from framework.distributed.processes.agreement import check_agreement, gather
from framework.modules.inference import Inference

if TYPE_CHECKING:
    from torchmetrics import Metric

_State = tuple[tuple[str, bool, np.ndarray], ...]
"""Name of each state of a metric, True for a list, and its value."""


class RowMetric(Protocol):
    """Metric of chosen rows of a split."""

    def values(self, items: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Computes the metric of chosen rows, each counted several times.

        Args:
            items: (chosen,) int64 indices of rows.
            weights: (resamples, chosen) float64, how often each row counts.

        Returns:
            (resamples,) float64; NaN if the metric is undefined.
        """


class MetricStates:
    """States that items add to one metric.

    Args:
        metric: Metric, which computes values of combined states. It is changed.
        states: State that each item adds.

    Raises:
        ValueError: The states of the metric are neither sums nor lists.
    """

    def __init__(self, metric: "Metric", states: Sequence[_State]) -> None:
        from torchmetrics.utilities import dim_zero_cat, dim_zero_sum

        if any(each not in (dim_zero_sum, dim_zero_cat) for each in metric._reductions.values()):
            raise ValueError(f"{type(metric).__name__} has states that are neither sums nor lists.")
        self._metric = metric
        # Items add few different states: equal ones are stored once.
        numbers: dict[Any, int] = {}
        self._kinds = np.array([numbers.setdefault(_hashable(state), len(numbers)) for state in states], dtype=np.int64)
        distinct = {int(kind): state for kind, state in zip(self._kinds, states, strict=True)}
        self._distinct = [distinct[kind] for kind in range(len(distinct))]

    def values(self, items: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Computes the metric of chosen items, each counted several times.

        Args:
            items: (chosen,) int64 indices of items.
            weights: (resamples, chosen) float64, how often each item counts.

        Returns:
            (resamples,) float64; NaN if the metric is undefined.
        """
        used, kinds = np.unique(self._kinds[items], return_inverse=True)
        counts = (weights @ (kinds[:, None] == np.arange(len(used)))).round().astype(np.int64)
        states = [self._distinct[kind] for kind in used]
        lists = {
            name: [state[column][2] for state in states]
            for column, (name, is_list, _) in enumerate(states[0])
            if is_list
        }
        # Integers become float64, so that quotients are not rounded to fp32.
        sums = {
            name: np.stack([state[column][2] for state in states]).astype(np.float64)
            for column, (name, is_list, _) in enumerate(states[0])
            if not is_list
        }
        with warnings.catch_warnings():  # torchmetrics warns because `update` was not called
            warnings.simplefilter("ignore", UserWarning)
            return np.array([self._value(lists, sums, row) for row in counts])

    def _value(
        self, lists: Mapping[str, Sequence[np.ndarray]], sums: Mapping[str, np.ndarray], counts: np.ndarray
    ) -> float:
        metric = self._metric
        metric.reset()
        for name, parts in lists.items():
            repeated = [np.tile(part, count) for part, count in zip(parts, counts.tolist(), strict=True)]
            setattr(metric, name, [torch.from_numpy(np.concatenate(repeated))])
        for name, each in sums.items():
            setattr(metric, name, torch.from_numpy(np.asarray(np.tensordot(counts.astype(np.float64), each, axes=1))))
        return float(metric.compute())


@dataclass(frozen=True)
class MeasuredItems:
    """Results of one pass over a split.

    Attributes:
        metrics: Metrics of the task, by name.
        predictions: Prediction of each row, from `Task.assemble`.
    """

    metrics: Mapping[str, RowMetric]
    predictions: Sequence[Mapping[str, Any]]


def measure_items(inference: Inference, source: SequenceSource) -> MeasuredItems:
    """Runs the model once over a split. Collective: all ranks must call; they share the items.

    For metrics with states, the encoder runs on packed micro-batches, and the head on each item alone.

    Args:
        inference: Model on its device.
        source: Split with its targets.

    Raises:
        DistributedError: Processes read different data.
    """
    if inference.task.scores_predictions:
        decoded = inference.decode(source)
        return MeasuredItems(inference.task.row_metrics(source, decoded), inference.task.assemble(source, decoded))
    # Lazy, because torchmetrics takes seconds to import.
    import framework.metrics.import_torchmetrics  # noqa: F401

    check_agreement({"the fingerprint of the data": source.fingerprint})
    task = inference.task
    metrics = task.build_metrics()
    for metric in metrics.values():
        metric.sync_on_compute = False
    results: dict[int, tuple[Any, list[_State]]] = {}
    for batch in inference.micro_batches(source):
        with torch.inference_mode(), inference.precision.autocast(inference.device.type):
            hidden_states = inference.model.encoder(batch)
        for item, tokens in _items(batch):
            own = np.array([item], dtype=np.int64)
            single = source.build(StepSequences(np.zeros_like(own), own, own), 0).to(inference.device)
            with torch.inference_mode(), inference.precision.autocast(inference.device.type):
                outputs = inference.model.head(hidden_states[tokens], single, None)
            with torch.inference_mode():
                task.update_metrics(metrics, outputs, single)
                states = [_state(metric) for metric in metrics.values()]
                results[item] = task.decode(outputs, single)[0], states
            for metric in metrics.values():
                metric.reset()
    by_item = {item: each for part in gather(results) for item, each in part.items()}
    ordered = [by_item[item] for item in range(len(source))]
    return MeasuredItems(
        {
            name: MetricStates(metric, [states[index] for _, states in ordered])
            for index, (name, metric) in enumerate(metrics.items())
        },
        task.assemble(source, [decoded for decoded, _ in ordered]),
    )


def _items(batch: PackedBatch) -> list[tuple[int, slice]]:
    """Returns the index and the tokens of each real item; the sequences of an item are adjacent."""
    bounds = np.concatenate([[0], np.cumsum(batch.lengths)]).tolist()
    owners = [each // batch.group_size for each in batch.sequence_ids[: batch.num_sequences].tolist()]
    tokens: dict[int, slice] = {}
    for number, item in enumerate(owners):
        start = tokens[item].start if item in tokens else bounds[number]
        tokens[item] = slice(start, bounds[number + 1])
    return list(tokens.items())


def _state(metric: "Metric") -> _State:
    return tuple(
        (name, isinstance(value, list), _host(torch.cat(value) if isinstance(value, list) else value))
        for name, value in metric.metric_state.items()
    )


def _host(value: Tensor) -> np.ndarray:
    return value.cpu().numpy().copy()


def _hashable(state: _State) -> tuple[tuple[str, tuple[int, ...], bytes], ...]:
    return tuple((name, value.shape, value.tobytes()) for name, _, value in state)
