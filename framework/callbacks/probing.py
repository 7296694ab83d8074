"""Scores probes on features of the current weights while another task is trained."""

# mypy: disable-error-code="override"
# Lightning types its hooks for any module. These hooks are for EncoderModule.

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from typing_extensions import override

from framework.batch import StepBatch
from framework.callbacks.cadence import Cadence
from framework.callbacks.run_log import RunLog
from framework.callbacks.throughput import PROBE
from framework.data.flat_source import FlatSource
from framework.data.planning.collate import shape_on
from framework.data.planning.plan import StepPlan
from framework.distributed.gather_rows import gather_rows
from framework.distributed.mesh import data_parallel_size
from framework.distributed.processes.position import begin_activity
from framework.modules.encoder_module import EncoderModule
from framework.tasks.probing.probe import Probe

_TEXTS_AT_ONCE = 1024
"""Texts per rank in one step. Texts of similar length among them share a micro-batch."""


class Probing(pl.Callback):
    """Adds `probe/NAME/METRIC` to the row of each step at which probes are due. Its position is before the run log.

    Training does not depend on it: it reads the weights that validation uses, draws no random numbers and keeps no
    state. Each rank encodes its share of the texts. All ranks gather all features and fit the same probes.
    """

    def __init__(self, probes: Mapping[str, Probe], cadence: Cadence, run_log: RunLog) -> None:
        """Creates the callback.

        Args:
            probes: Probes by name.
            cadence: Schedule of the scorings.
            run_log: Run log, which gets the scores.
        """
        self.probes = dict(probes)
        self.cadence = cadence
        self.run_log = run_log

    @property
    def keys(self) -> list[str]:
        """Metric key of each probe's first metric."""
        return [f"probe/{name}/{probe.best_metric}" for name, probe in self.probes.items()]

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: EncoderModule, outputs: None, batch: StepBatch, batch_idx: int
    ) -> None:
        """Scores all probes if they are due. Collective: all ranks must call."""
        if not self.probes or not self.cadence.probes(trainer.global_step):
            return
        with pl_module.validated_weights():
            for name, probe in self.probes.items():
                features = {
                    split: self._features(trainer, pl_module, probe, source, f"probes {name}, {split}")
                    for split, source in probe.sources.items()
                }
                begin_activity(f"fits the probe {name}")
                scores = probe.scores(features)
                self.run_log.join({f"probe/{name}/{metric}": value for metric, value in scores.items()})
        self.run_log.throughput.timings.lap(PROBE)

    def _features(
        self, trainer: pl.Trainer, module: EncoderModule, probe: Probe, source: FlatSource, activity: str
    ) -> Tensor:
        """Returns fp32 features (rows, hidden) of one split in its order, on the CPU of every rank.

        Collective: all ranks must call.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        mesh: DeviceMesh | None = trainer.strategy.mesh  # type: ignore[attr-defined]
        num_ranks = data_parallel_size(mesh)
        budget = max(data.plans["train"].micro_batch_tokens, source.max_length)
        shapes = shape_on(module.device.type)
        plan = StepPlan(source, 0, _TEXTS_AT_ONCE * num_ranks, budget, num_ranks, shuffle=False, shapes=shapes)
        features, indices = [], []
        for step in range(len(plan)):
            for built in plan.batches(step, data.rank):
                begin_activity(activity)
                batch = built.to(module.device)
                pooled = module.encode(batch, probe.pooling)
                features.append(pooled[: batch.num_sequences].float())
                indices.append(batch.sequence_ids[: batch.num_sequences])
        rows = gather_rows({"features": torch.cat(features), "indices": torch.cat(indices)}, mesh)
        return rows["features"][rows["indices"].argsort()].cpu()
