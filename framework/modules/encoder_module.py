"""The LightningModule that runs one global step as one Lightning batch, with one optimizer step at its end."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from typing_extensions import override

from framework.batch import PackedBatch, StepBatch
from framework.distributed.parallel.activation_checkpoint import KEEP_ALL, ActivationCheckpointing
from framework.distributed.parallel.compile import CompileBackend
from framework.distributed.parallel.gradient_norm import clip_gradients
from framework.distributed.parallel.parallelize import drop_gathered, materialize, parallelize
from framework.distributed.parallel.precision import Precision, check_full_precision
from framework.distributed.parallel.sharding import DEFAULT_SHARDING, Sharding
from framework.distributed.processes.position import mark
from framework.distributed.reduce import sum_over_data_ranks
from framework.distributed.strategy import MeshStrategy, SingleStrategy
from framework.modules.evaluation import SplitEvaluation
from framework.modules.passes.model_passes import ModelPasses
from framework.modules.passes.one_pass import OnePass
from framework.modules.passes.regularization import Regularization
from framework.modules.passes.step_level import StepLevelSteps
from framework.modules.passes.sum_count import SumCountSteps
from framework.optim.combined import CombinedOptimizer
from framework.tasks.pooling import Pooling
from framework.tasks.step_level import StepLevelTask
from framework.tasks.task import Task, TaskModel

InitialValues = Callable[[TaskModel], Iterable[tuple[str, Callable[[], Tensor]]]]


class EncoderModule(pl.LightningModule):
    """Trains and validates one task model.

    Attributes:
        step_metrics: What the last step measured, by metric key: scalars on the device, equal on all ranks.
        step_batch: The batch of the step that is running or ran last.
        step_sums: (micro-batches, terms) float64 on the device, this rank's own loss sums of that step; not finite
            where a micro-batch is to blame.
        loss_scale: Of fp16, None otherwise; a part of what a checkpoint has to hold.
        validation_metrics: What the last validation measured, by metric key, on the host.
        examines: The next validations keep of each item what an error analysis needs.
        examined: The last validation that did; None where the last one did not.
    """

    def __init__(
        self,
        model: TaskModel,
        task: Task,
        seed: int,
        precision: Precision,
        initial_values: InitialValues,
        build_optimizer: Callable[[TaskModel], CombinedOptimizer],
        schedule: Callable[[int], float],
        max_grad_norm: float | None,
        activation_checkpointing: ActivationCheckpointing = KEEP_ALL,
        sharding: Sharding = DEFAULT_SHARDING,
        compile_backend: CompileBackend = "none",
        regularization: Regularization | None = None,
    ) -> None:
        """Takes the parts; nothing is allocated before `configure_model`.

        Args:
            model: On the meta device.
            task: States the loss and what is measured.
            seed: Of dropout.
            precision: Of the forward pass.
            initial_values: From the parallelized model to a maker of each parameter's full value.
            build_optimizer: From the model with its weights to the one optimizer of the run.
            schedule: From a step, counted from 0, to the factor on every learning rate.
            max_grad_norm: Global gradient norm to clip at; None only measures it.
            activation_checkpointing: What layers keep of their forward pass.
            sharding: How shards travel and where they lie.
            compile_backend: Who compiles the layers; their batches then need fixed shapes.
            regularization: Passes that a step makes beside the plain one; None: none. Not for a step-level task.
        """
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.task = task
        self.seed = seed
        self.precision = precision
        self.loss_scale = precision.build_loss_scale()
        self.initial_values = initial_values
        self.build_optimizer = build_optimizer
        self.schedule = schedule
        self.max_grad_norm = max_grad_norm
        self.activation_checkpointing = activation_checkpointing
        self.sharding = sharding
        self.compile_backend = compile_backend
        self.steps = (
            StepLevelSteps(task)
            if isinstance(task, StepLevelTask)
            else SumCountSteps(task, OnePass() if regularization is None else regularization)
        )
        self.step_metrics: dict[str, Tensor] = {}
        self.validation_metrics: dict[str, float] = {}
        self.examines = False
        self.examined: SplitEvaluation | None = None
        self.step_batch: StepBatch | None = None
        self.step_sums = torch.zeros((0, 0), dtype=torch.float64)
        self._num_tokens = torch.zeros((), dtype=torch.float64)
        self._evaluation: SplitEvaluation | None = None

    @override
    def configure_model(self) -> None:
        """Spreads the model over the mesh and gives it its initial weights; a second call does nothing."""
        if not any(parameter.is_meta for parameter in self.model.parameters()):
            return
        strategy = self._strategy
        parallelize(
            self.model,
            strategy.mesh,
            strategy.name,
            self.precision,
            self.activation_checkpointing,
            self.sharding,
            self.compile_backend,
        )
        parameter_device = "cpu" if self.sharding.cpu_offload else None
        materialize(self.model, self.initial_values(self.model), strategy.root_device, parameter_device)

    @override
    def configure_optimizers(self) -> CombinedOptimizer:
        """Builds the one optimizer of the run.

        Raises:
            ConfigError: A parameter, or a part of its optimizer state, is not fp32.
        """
        optimizer = self.build_optimizer(self.model)
        check_full_precision(self.model, optimizer)
        return optimizer

    @property
    def optimizer(self) -> CombinedOptimizer:
        """The optimizer itself, without Lightning's wrapper."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, CombinedOptimizer)
        return optimizer

    @property
    def num_tokens(self) -> int:
        """Real tokens of all ranks trained on so far in this run. Waits for the device."""
        return int(self._num_tokens)

    @num_tokens.setter
    def num_tokens(self, value: int) -> None:
        self._num_tokens.fill_(value)

    @override
    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        """Runs one global step: the passes over every micro-batch, clip, update.

        Small all-reduces: the counts before the first forward, the sums after the last backward, the norm.
        """
        if batch.step != self.global_step:
            raise RuntimeError(f"The loader gave step {batch.step}, but {self.global_step} steps are completed.")
        self.step_batch = batch
        mark("counts targets", batch.step + 1)
        counts, num_tokens = self._global_counts(batch)
        sums, self.step_sums = self.steps.run(self._passes(batch.step), batch, counts)
        values = self.steps.objective.values(sums, counts)
        mark("clips gradients")
        grad_norm = self._clip_gradients(values["loss"], batch.step)
        self.optimizer.set_learning_rates(self.schedule(batch.step))
        self._num_tokens = self._num_tokens.to(num_tokens.device) + num_tokens

        self.step_metrics = {f"train/{name}": value for name, value in values.items()}
        rate = torch.tensor(self.optimizer.param_groups[0]["lr"], dtype=torch.float64)
        self.step_metrics |= {"train/tokens": self._num_tokens, "optim/lr": rate, "optim/grad_norm": grad_norm}
        if self.loss_scale is not None:
            self.step_metrics |= self.loss_scale.metrics()
        mark("updates the weights")
        counting_optimizer = self.optimizers()  # Lightning's wrapper calls the hooks and counts global_step
        assert isinstance(counting_optimizer, LightningOptimizer)
        counting_optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def run_trial(self, batch: PackedBatch) -> None:
        """Runs a step of one micro-batch twice, and drops the gradients. Collective: all ranks must call.

        Twice, because the second micro-batch of a step finds the gradients of the first. Nothing is compiled for it.
        """
        step = StepBatch(step=0, epoch=0, micro_batches=(batch, batch))
        counts, _ = self._global_counts(step)
        with torch.compiler.set_stance("force_eager"):
            self.steps.run(self._passes(0), step, counts)
        self.model.zero_grad(set_to_none=True)

    @override
    def on_validation_start(self) -> None:
        """Starts sums, counts and metrics anew; what is validated is the average of the weights where one is kept."""
        self._swap_average()
        source = self.trainer.datamodule.plans["validation"].source  # type: ignore[attr-defined]
        self._evaluation = SplitEvaluation(self.task, source, self.device, self._strategy.mesh, self.examines)

    @override
    def validation_step(self, batch: StepBatch, batch_idx: int) -> None:
        """Adds one step of the split, without gradients and without dropout."""
        assert self._evaluation is not None
        passes = self._passes(batch.step)
        for passes.number, micro_batch in enumerate(batch.micro_batches, start=1):
            outputs, contribution = passes.forward(micro_batch, None)
            self._evaluation.update(outputs, contribution, micro_batch)
        self._evaluation.end_step()

    @override
    def on_validation_epoch_end(self) -> None:
        """Reduces over ranks, once for the whole split, and puts the trained weights back."""
        assert self._evaluation is not None
        self.validation_metrics = {f"val/{name}": value for name, value in self._evaluation.compute().items()}
        self.examined = self._evaluation if self.examines else None
        self._evaluation = None
        self._swap_average()

    def encode(self, batch: PackedBatch, pooling: Pooling) -> Tensor:
        """Features (sequences, hidden) of a micro-batch, no gradients, no dropout. Collective: all ranks must call.

        Call within `validated_weights`.
        """
        with torch.no_grad(), self.precision.autocast(self.device.type):
            return self.model(batch, pooling=pooling)["features"]

    @contextmanager
    def validated_weights(self) -> Iterator[None]:
        """Within it the model has the weights that are validated: their average where one is kept."""
        self._swap_average()
        try:
            yield
        finally:
            self._swap_average()

    def _swap_average(self) -> None:
        self.optimizer.swap_average()
        drop_gathered(self.model)

    @property
    def _strategy(self) -> SingleStrategy | MeshStrategy:
        strategy = self.trainer.strategy
        assert isinstance(strategy, SingleStrategy | MeshStrategy)
        return strategy

    def _passes(self, step: int) -> ModelPasses:
        return ModelPasses(
            model=self.model,
            task=self.task,
            precision=self.precision,
            seed=self.seed,
            step=step,
            sharding=self.sharding,
            mesh=self._strategy.mesh,
            loss_scale=1.0 if self.loss_scale is None else self.loss_scale.value,
            run_backward=self.manual_backward,
        )

    def _global_counts(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """(terms,) float64 counts of the step, and its real tokens; over all ranks."""
        num_tokens = torch.tensor([sum(micro.num_tokens for micro in batch.micro_batches)], dtype=torch.float64)
        local = [self.steps.counts(self.task, batch), num_tokens]
        total = torch.cat([counts.to(self.device, non_blocking=True) for counts in local])
        total = sum_over_data_ranks(total, self._strategy.mesh)
        return total[:-1], total[-1]

    def _clip_gradients(self, loss: Tensor, step: int) -> Tensor:
        """Takes the loss scale out of the gradients, and clips them. Collective: all ranks must call.

        Where the loss is finite and its gradients are not, fp16 overflowed: the update is held, and all ranks do alike,
        as loss and norm are global.

        Returns:
            The norm before clipping; 0 where the update is held.
        """
        if self.loss_scale is None:
            return clip_gradients(self.model.parameters(), self.max_grad_norm)
        self.loss_scale.unscale(self.model.parameters())
        norm = clip_gradients(self.model.parameters(), self.max_grad_norm)
        if not torch.isfinite(loss):
            return norm
        overflowed = not torch.isfinite(norm)
        self.loss_scale.update(overflowed, step + 1)
        if overflowed:
            self.optimizer.hold_update()
            norm = torch.zeros_like(norm)
        return norm
