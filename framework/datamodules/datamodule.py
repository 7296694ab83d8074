"""The LightningDataModule of every task: sources and numbers in, loaders of StepBatches out."""

from collections.abc import Mapping

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from framework.batch import StepBatch
from framework.data.batch_size import BatchWarmup
from framework.data.collate import Capacity
from framework.data.plan import SequenceSource, StepPlan
from framework.datamodules.steps import SeekSampler, StepDataset
from framework.distributed.stop_signals import ignore_stop_signals
from framework.errors import ConfigError


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
        capacities: Fixed shapes of compiled CUDA steps, one for each budget that a micro-batch can have
            (`framework.data.packing.budget_sizes`); None leaves shapes free.
        micro_batch_sequences: Most sequences of a micro-batch; needed with capacities.
        batch_warmup: How the global batch of training grows at the beginning; None: it does not.

    Raises:
        ConfigError: Sizes that no plan can be made of, or a budget without a capacity.
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
        capacities: Mapping[int, Capacity] | None = None,
        micro_batch_sequences: int | None = None,
        batch_warmup: BatchWarmup | None = None,
    ) -> None:
        super().__init__()
        self.plans = {
            split: StepPlan(
                source,
                seed,
                global_batch_size,
                micro_batch_tokens,
                num_ranks,
                wraps_epochs=wraps_epochs and split == "train",
                shuffle=split == "train",
                micro_batch_sequences=micro_batch_sequences,
                batch_warmup=batch_warmup if split == "train" else None,
            )
            for split, source in sources.items()
        }
        for split, plan in self.plans.items():
            missing = sorted(set(plan.budgets) - capacities.keys()) if capacities is not None else []
            if missing:
                raise ConfigError(
                    f"micro-batches of {split} may have a budget of {missing[0]} tokens, but capacities has none for "
                    "it; give one for each size that budget_sizes names."
                )
        self.max_steps = max_steps
        self.rank = rank
        self.num_workers = num_workers
        self.capacities = capacities
        self.start_step = 0

    @property
    def steps_per_epoch(self) -> int:
        """Training steps of full size in which every sequence is seen once."""
        return self.plans["train"].steps_per_epoch

    def set_start(self, step: int) -> None:
        """Lets training begin after this many completed steps; takes no time, wherever the step is."""
        if not 0 <= step <= self.max_steps:
            raise ConfigError(
                f"the run has {self.max_steps} steps and cannot start after {step}; raise trainer.max_steps."
            )
        self.start_step = step

    def train_dataloader(self) -> DataLoader[StepBatch]:
        """The steps from the start step on; its length is that of the whole run."""
        dataset = StepDataset(self.plans["train"], self.rank, self.max_steps, self.capacities)
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
        dataset = StepDataset(plan, self.rank, len(plan), self.capacities)
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
