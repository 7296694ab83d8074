"""The LightningDataModule of every task; it builds loaders of StepBatches from sources."""

from collections.abc import Mapping

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from framework.batch import StepBatch
from framework.data.planning.batch_size import BatchWarmup
from framework.data.planning.collate import RoundedShape
from framework.data.planning.fixed_shapes import Shapes, fixed_shapes
from framework.data.planning.plan import ChosenTargets, SequenceSource, StepPlan
from framework.data.planning.poisson import PoissonPlan
from framework.datamodules.steps import Loaded, SeekSampler, StepDataset, raise_error
from framework.distributed.processes.stop_signals import ignore_stop_signals
from framework.errors import ConfigError
from framework.privacy.secret import Secret

_SAMPLED_STEPS = 32
"""Number of steps of an epoch whose token counts determine the fixed shapes."""


class EncoderDataModule(LightningDataModule):
    """Loaders of one rank's share of every global step.

    Checkpoints contain no state of it, because `set_start` seeks to any step.

    Args:
        sources: Sequences by split: `train`, `validation`, optionally `test`.
        seed: Seed of the run, for the order of the training sequences.
        global_batch_size: Sequences of an optimizer step over all ranks; evaluation uses the same number.
        micro_batch_tokens: Token budget of a micro-batch.
        max_steps: Step of the run after which training ends.
        wraps_epochs: True if training steps cross epoch ends, as the task defines.
        num_ranks: Number of data-parallel ranks.
        rank: This process's data-parallel rank.
        num_workers: Loader processes of this rank; 0 builds batches in the training process.
        batch_warmup: Growth of the global batch at the beginning of training; None: constant size.
        shape: Rounded shape to which micro-batches are padded; None: no padding.
        has_fixed_shapes: True pads training micro-batches to a few fixed shapes instead, for compiled and for captured
            steps.

    Raises:
        ConfigError: The sizes allow no plan.
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
        self.plans: dict[str, StepPlan] = {
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

    def sample_privately(self, secret: Secret) -> None:
        """Makes each training step a Poisson sample that the secret determines; call it before building loaders."""
        plan = self.plans["train"]
        budget = plan.micro_batch_tokens
        self.plans["train"] = PoissonPlan(plan.source, secret, plan.global_batch_size, budget, plan.num_ranks)
        self.set_budget(budget)

    def begin_at(self, first_step: int) -> None:
        """Makes training begin at a step of the run (`StepPlan.first_step`); call it before building loaders."""
        self.plans["train"].first_step = self.start_step = first_step

    @property
    def steps_per_epoch(self) -> int:
        """Returns the number of full-size training steps of an epoch."""
        return self.plans["train"].steps_per_epoch

    @property
    def longest_sequence(self) -> int:
        """Returns the most tokens of a sequence of any split, which is the smallest possible budget."""
        return max(plan.source.max_length for plan in self.plans.values())

    def shapes(self, split: str, micro_batch_tokens: int) -> Shapes:
        """Returns the shapes to which micro-batches of a split are padded for a budget; None: no padding."""
        if split != "train" or not self._has_fixed_shapes:
            return self._shape
        plan = self.plans[split]
        return fixed_shapes(
            plan.source.max_length,
            plan.source.mean_length,
            micro_batch_tokens,
            plan.rank_tokens(_SAMPLED_STEPS),
            plan.source.most_targets if isinstance(plan.source, ChosenTargets) else None,
        )

    def set_budget(self, micro_batch_tokens: int) -> None:
        """Changes the token budget of every split without changing results; call it before building loaders."""
        for split, plan in self.plans.items():
            plan.set_budget(micro_batch_tokens, self.shapes(split, micro_batch_tokens))

    def set_start(self, step: int) -> None:
        """Starts training after this many completed steps, in constant time.

        Raises:
            ConfigError: The step is before the first step of the plan or above `max_steps`.
        """
        first = self.plans["train"].first_step
        if not first <= step <= self.max_steps:
            raise ConfigError(
                f"training cannot start after step {step}, because it has the steps {first} to {self.max_steps}. The "
                "start must be within them. Raise trainer.max_steps."
            )
        self.start_step = step

    def train_dataloader(self) -> DataLoader[Loaded]:
        """Returns a loader of the steps from the start step on; its length is that of the whole run."""
        dataset = StepDataset(self.plans["train"], self.rank, self.max_steps)
        return self._loader(dataset, SeekSampler(self.start_step, self.max_steps))

    def val_dataloader(self) -> DataLoader[Loaded] | list[DataLoader[Loaded]]:
        """Returns a loader of the validation split in fixed order, or an empty list if there is no such split."""
        return self.eval_dataloader("validation") if "validation" in self.plans else []

    def test_dataloader(self) -> DataLoader[Loaded] | list[DataLoader[Loaded]]:
        """Returns a loader of the test split in fixed order, or an empty list if there is no such split."""
        return self.eval_dataloader("test") if "test" in self.plans else []

    def eval_dataloader(self, split: str) -> DataLoader[Loaded]:
        """Returns a loader of one split in fixed order, with every sequence once on exactly one rank.

        Raises:
            ConfigError: There is no such split.
        """
        if split not in self.plans:
            raise ConfigError(
                f"split {split!r} does not exist. The data has {', '.join(self.plans)}. Choose one of these."
            )
        plan = self.plans[split]
        dataset = StepDataset(plan, self.rank, len(plan))
        return self._loader(dataset, SeekSampler(0, len(plan)))

    def transfer_batch_to_device(
        self,
        batch: Loaded,
        device: torch.device,  # noqa: ARG002
        dataloader_idx: int,  # noqa: ARG002
    ) -> StepBatch:
        """Leaves a step on the host (Lightning's hook); the module copies it, to fixed memory in captured steps.

        Raises:
            FrameworkError: A loader process met this error.
        """
        return raise_error(batch)

    def _loader(self, dataset: StepDataset, sampler: SeekSampler) -> DataLoader[Loaded]:
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=self.num_workers,
            worker_init_fn=ignore_stop_signals,
        )
