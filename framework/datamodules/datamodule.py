"""The LightningDataModule of every task: sources and numbers in, loaders of StepBatches out."""

from collections.abc import Mapping

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from framework.batch import StepBatch
from framework.data.planning.batch_size import BatchWarmup
from framework.data.planning.collate import RoundedShape
from framework.data.planning.fixed_shapes import Shapes, fixed_shapes
from framework.data.planning.plan import SequenceSource, StepPlan
from framework.datamodules.steps import SeekSampler, StepDataset
from framework.distributed.processes.stop_signals import ignore_stop_signals
from framework.errors import ConfigError

_SAMPLED_STEPS = 32
"""Steps of an epoch by whose loads fixed shapes are chosen."""


class EncoderDataModule(LightningDataModule):
    """Loads one rank's share of every global step; a checkpoint keeps nothing of it, `set_start` seeks.

    Args:
        sources: Sequences by split: `train`, `validation`, perhaps `test`.
        seed: Seed of the run, for the order of the training sequences.
        global_batch_size: Sequences of an optimizer step over all ranks; evaluation uses the same number.
        micro_batch_tokens: Token budget of a micro-batch.
        max_steps: Optimizer steps of the whole run.
        wraps_epochs: Whether training steps run across epoch ends (the task says).
        num_ranks: Data-parallel ranks.
        rank: This process's data-parallel rank.
        num_workers: Loader processes of this rank; 0 builds batches in the training process.
        batch_warmup: How the global batch of training grows at the beginning; None: it does not.
        shape: What micro-batches are completed to.
        has_fixed_shapes: Whether those of training are completed to few fixed shapes instead, since its steps are
            compiled.

    Raises:
        ConfigError: Sizes that no plan can be made of.
    """

    def __init__(
        self,
        sources: Mapping[str, SequenceSource],
        seed: int,
        global_batch_size: int,
        micro_batch_tokens: int,
        max_steps: int,
        wraps_epochs: bool,
        num_ranks: int = 1,
        rank: int = 0,
        num_workers: int = 0,
        batch_warmup: BatchWarmup | None = None,
        shape: RoundedShape | None = None,
        has_fixed_shapes: bool = False,
    ) -> None:
        super().__init__()
        self._shape = shape
        self._has_fixed_shapes = has_fixed_shapes
        self.plans = {
            split: StepPlan(
                source,
                seed,
                global_batch_size,
                micro_batch_tokens,
                num_ranks,
                wraps_epochs=wraps_epochs and split == "train",
                shuffle=split == "train",
                batch_warmup=batch_warmup if split == "train" else None,
            )
            for split, source in sources.items()
        }
        self.set_budget(micro_batch_tokens)
        self.max_steps = max_steps
        self.rank = rank
        self.num_workers = num_workers
        self.start_step = 0

    @property
    def steps_per_epoch(self) -> int:
        """Training steps of full size in which every sequence is seen once."""
        return self.plans["train"].steps_per_epoch

    @property
    def longest_sequence(self) -> int:
        """Most tokens of a sequence of any split: the smallest budget there can be."""
        return max(plan.source.max_length for plan in self.plans.values())

    def shapes(self, split: str, micro_batch_tokens: int) -> Shapes:
        """What micro-batches of a split would be completed to with a budget; None: their shapes are free."""
        if split != "train" or not self._has_fixed_shapes:
            return self._shape
        plan = self.plans[split]
        return fixed_shapes(
            plan.source.max_length, plan.source.mean_length, micro_batch_tokens, plan.rank_tokens(_SAMPLED_STEPS)
        )

    def set_budget(self, micro_batch_tokens: int) -> None:
        """Changes the token budget of every split, which changes no result; before loaders are made."""
        for split, plan in self.plans.items():
            plan.set_budget(micro_batch_tokens, self.shapes(split, micro_batch_tokens))

    def set_start(self, step: int) -> None:
        """Lets training begin after this many completed steps; takes no time, wherever the step is."""
        if not 0 <= step <= self.max_steps:
            raise ConfigError(
                f"the run has {self.max_steps} steps and cannot start after {step}; raise trainer.max_steps."
            )
        self.start_step = step

    def train_dataloader(self) -> DataLoader[StepBatch]:
        """The steps from the start step on; its length is that of the whole run."""
        dataset = StepDataset(self.plans["train"], self.rank, self.max_steps)
        return self._loader(dataset, SeekSampler(self.start_step, self.max_steps))

    def val_dataloader(self) -> DataLoader[StepBatch] | list[DataLoader[StepBatch]]:
        """The validation split once, in fixed order; an empty list where there is none."""
        return self.eval_dataloader("validation") if "validation" in self.plans else []

    def test_dataloader(self) -> DataLoader[StepBatch] | list[DataLoader[StepBatch]]:
        """The test split once, in fixed order; an empty list where there is none."""
        return self.eval_dataloader("test") if "test" in self.plans else []

    def eval_dataloader(self, split: str) -> DataLoader[StepBatch]:
        """One split once, in fixed order: every sequence on exactly one rank, whatever their number.

        Raises:
            ConfigError: There is no such split.
        """
        if split not in self.plans:
            raise ConfigError(f"there is no split {split!r}, the data has {', '.join(self.plans)}; name one of these.")
        plan = self.plans[split]
        dataset = StepDataset(plan, self.rank, len(plan))
        return self._loader(dataset, SeekSampler(0, len(plan)))

    def transfer_batch_to_device(self, batch: StepBatch, device: torch.device, dataloader_idx: int) -> StepBatch:  # noqa: ARG002
        """Copies a step to the device without waiting for the copy (Lightning's hook)."""
        return batch.to(device, non_blocking=True)

    def _loader(self, dataset: StepDataset, sampler: SeekSampler) -> DataLoader[StepBatch]:
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=self.num_workers,
            worker_init_fn=ignore_stop_signals,
        )
