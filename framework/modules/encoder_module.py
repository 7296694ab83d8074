"""The LightningModule that runs one global step as one Lightning batch, with one optimizer step at its end."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from typing_extensions import override

from framework.batch import PackedBatch, StepBatch
from framework.distributed.parallel.activation_checkpoint import KEEP_ALL, ActivationCheckpointing
from framework.distributed.parallel.compile import CompileBackend
from framework.distributed.parallel.gradient_norm import clip_gradients
from framework.distributed.parallel.materialization import materialize, use_sparse_gradients
from framework.distributed.parallel.parallelize import drop_gathered, parallelize
from framework.distributed.parallel.precision import Precision, check_full_precision
from framework.distributed.parallel.sharding import DEFAULT_SHARDING, Sharding
from framework.distributed.processes.position import begin_activity
from framework.distributed.reduce import sum_over_data_ranks
from framework.distributed.strategy import MeshStrategy, SingleStrategy
from framework.modules.evaluation import SplitEvaluation
from framework.modules.passes.captured import CapturedFunction, CapturedSteps, Graphs
from framework.modules.passes.model_passes import ModelPasses
from framework.modules.passes.one_pass import OnePass
from framework.modules.passes.private import PrivateSteps
from framework.modules.passes.regularization import Regularization
from framework.modules.passes.step_level import StepLevelSteps
from framework.modules.passes.sum_count import SumCountSteps
from framework.modules.passes.term_weights import term_weights_of
from framework.nn.dropout import has_dropout
from framework.optim.combined import CombinedOptimizer
from framework.tasks.pooling import Pooling
from framework.tasks.step_level import StepLevelTask
from framework.tasks.task import Task, TaskModel

InitialValues = Callable[[TaskModel], Iterable[tuple[str, Callable[[], Tensor]]]]


class EncoderModule(pl.LightningModule):
    """LightningModule that trains and validates one task model.

    Attributes:
        step_metrics: Metrics of the last step by metric key: numbers, or scalars on the device, equal on all ranks.
        step_batch: Batch of the current or last step.
        step_sums: (micro-batches, terms) float64 on the device, this rank's own loss sums of that step. The row of a
            micro-batch that caused a non-finite loss is not finite.
        loss_scale: Loss scale of fp16, which checkpoints must save; None in other precisions.
        term_weights: Weights of the loss terms, which checkpoints must save; None: they are constant.
        validation_metrics: Metrics of the last validation by metric key, on the host.
        settle_last_step: Callback that reads the result of the last step if it has not been read yet. It is called
            after the gradients of the next step are computed, and before anything is saved. It returns True if it
            changed the weights, so that the gradients must be computed again. Collective: all ranks must call.
        examines: True makes the next validations keep the data of each item that an error analysis needs.
        examined: Evaluation of the last validation, with the data of its items; None if it ran without `examines`.
        build_graphs: Function from the device to the recorder of captured training steps, for a single process or
            `ddp`; None: steps are not captured. A captured step needs micro-batches of fixed shapes.
        hidden_metrics: Keys of `step_metrics` that are not written anywhere.
    """

    build_graphs: Callable[[torch.device], Graphs] | None = None
    hidden_metrics: frozenset[str] = frozenset()
    _captured_clip: CapturedFunction | None = None
    _evaluation: SplitEvaluation | None = None

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
        """Stores the components; nothing is allocated before `configure_model`.

        Args:
            model: Encoder and head on the meta device.
            task: Task with the loss and the metrics.
            seed: Seed of dropout.
            precision: Precision of the forward pass.
            initial_values: Function from the parallelized model to pairs of a parameter name and a function that
                returns its full value.
            build_optimizer: Function from the model with its weights to the optimizer of the run.
            schedule: Function from a step, counted from 0, to the factor on every learning rate.
            max_grad_norm: Global gradient norm to clip at; None only measures it.
            activation_checkpointing: Activations that layers keep from their forward pass.
            sharding: Communication and location of parameter shards.
            compile_backend: Compiler of the layers; a compiled model needs batches of fixed shapes.
            regularization: Additional passes of a step; None: none. Not used by step-level tasks.
        """
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.task = task
        self.seed = seed
        self.precision = precision
        self.loss_scale = precision.build_loss_scale()
        self.term_weights = term_weights_of(task)
        self.initial_values = initial_values
        self.build_optimizer = build_optimizer
        self.schedule = schedule
        self.max_grad_norm = max_grad_norm
        self.activation_checkpointing = activation_checkpointing
        self.sharding = sharding
        self.compile_backend = compile_backend
        self.steps: StepLevelSteps | SumCountSteps | CapturedSteps | PrivateSteps = (
            StepLevelSteps(task)
            if isinstance(task, StepLevelTask)
            else SumCountSteps(task, regularization or OnePass())
        )
        self.step_metrics: dict[str, Tensor | float] = {}
        self.settle_last_step: Callable[[], bool] = lambda: False
        self.validation_metrics: dict[str, float] = {}
        self.examines = False
        self.examined: SplitEvaluation | None = None
        self.step_batch: StepBatch | None = None
        self.step_sums = torch.zeros((0, 0), dtype=torch.float64)
        self._num_tokens = torch.zeros((), dtype=torch.float64)

    def make_private(self, steps: PrivateSteps) -> None:
        """Replaces the steps by private ones, whose losses are not written; call it before the model has weights."""
        self.steps = steps
        self.hidden_metrics = frozenset({"train/loss"})

    @override
    def configure_model(self) -> None:
        """Parallelizes the model over the mesh and sets its initial weights; a second call does nothing."""
        if not any(parameter.is_meta for parameter in self.model.parameters()):
            return
        strategy = self._strategy
        parallelize(
            self.model,
            strategy.mesh if self.build_graphs is None else None,  # captured steps reduce all gradients at once
            strategy.name,
            self.precision,
            self.activation_checkpointing,
            self.sharding,
            self.compile_backend,
        )
        parameter_device = "cpu" if self.sharding.cpu_offload else None
        materialize(self.model, self.initial_values(self.model), strategy.root_device, parameter_device)
        if self.build_graphs is None and not isinstance(self.steps, PrivateSteps):  # noise is dense
            use_sparse_gradients(self.model)

    @override
    def configure_optimizers(self) -> CombinedOptimizer:
        """Builds the optimizer of the run.

        Raises:
            ConfigError: A parameter or a tensor of its optimizer state is not fp32.
        """
        optimizer = self.build_optimizer(self.model)
        check_full_precision(self.model, optimizer)
        return optimizer

    @property
    def optimizer(self) -> CombinedOptimizer:
        """Returns the optimizer without Lightning's wrapper."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, CombinedOptimizer)
        return optimizer

    @property
    def num_tokens(self) -> int:
        """Returns the number of real tokens of all ranks trained on so far in this run. Waits for the device."""
        return int(self._num_tokens)

    @num_tokens.setter
    def num_tokens(self, value: int) -> None:
        self._num_tokens.fill_(value)

    @override
    def on_train_start(self) -> None:
        """Prepares captured steps. Trials of the token budget have ended by then."""
        if self.build_graphs is not None and isinstance(self.steps, SumCountSteps):
            graphs = self.build_graphs(self.device)
            self.steps = CapturedSteps(self.steps, graphs)
            self._captured_clip = CapturedFunction("the clipping of gradients", self._clip_by_norm, graphs)
            if self.holds_on_device:
                update = self.optimizer.update_on_device
                self.optimizer.update_on_device = CapturedFunction("the update of the weights", update, graphs)

    @override
    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        """Runs one global step: the passes over every micro-batch, gradient clipping, and the update.

        There are three small all-reduces: the counts before the first forward pass, the loss sums after the last
        backward pass, and the gradient norm. The host does not wait for the device if `holds_on_device`.
        """
        if batch.step != self.global_step:
            raise RuntimeError(f"The loader returned step {batch.step}, but {self.global_step} steps are completed.")
        if not isinstance(self.steps, CapturedSteps):  # captured steps copy micro-batches to fixed memory
            batch = batch.to(self.device, non_blocking=True)
        values, grad_norm, num_tokens = self._compute_gradients(batch)
        optimizer = self.optimizer
        if self.settle_last_step():
            optimizer.zero_grad(set_to_none=True)
            values, grad_norm, num_tokens = self._compute_gradients(batch)
        optimizer.set_learning_rates(self.schedule(batch.step))
        self._num_tokens = self._num_tokens.to(num_tokens.device) + num_tokens

        self.step_metrics = {f"train/{name}": value for name, value in values.items()}
        rate = optimizer.param_groups[0]["lr"]
        self.step_metrics |= {"train/tokens": self._num_tokens, "optim/lr": rate, "optim/grad_norm": grad_norm}
        if self.loss_scale is not None:
            self.step_metrics |= self.loss_scale.metrics()
        if self.term_weights is not None:
            self.step_metrics |= self.term_weights.metrics()
            self.term_weights.update(values, grad_norm)
        if self.holds_on_device:
            optimizer.hold_unless_finite(values["loss"], grad_norm)
        begin_activity("updates the weights")
        counting_optimizer = self.optimizers()  # Lightning's wrapper calls the hooks and counts global_step
        assert isinstance(counting_optimizer, LightningOptimizer)
        counting_optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    @property
    def holds_on_device(self) -> bool:
        """True if the device decides whether an update is applied, so that the host does not wait for it."""
        return self.loss_scale is None and self.optimizer.holds_on_device

    def run_trial(self, batch: PackedBatch) -> None:
        """Runs a step that contains one micro-batch twice, and drops the gradients. Collective: all ranks must call.

        The second micro-batch runs while the gradients of the first are in memory. Compilation is disabled.
        """
        step = StepBatch(step=0, epoch=0, micro_batches=(batch, batch))
        counts, _ = self._global_counts(step)
        with torch.compiler.set_stance("force_eager"):
            self.steps.run(self._passes(0), step, counts)
        self.model.zero_grad(set_to_none=True)

    @override
    def on_validation_start(self) -> None:
        """Starts a new evaluation; swaps in the average of the weights if one is kept."""
        self._swap_average()
        source = self.trainer.datamodule.plans["validation"].source  # type: ignore[attr-defined]
        self._evaluation = SplitEvaluation(self.task, source, self.device, self._strategy.mesh, self.examines)

    @override
    def validation_step(self, batch: StepBatch, batch_idx: int) -> None:
        """Evaluates one step of the split, without gradients and dropout."""
        assert self._evaluation is not None
        passes = self._passes(batch.step)
        for passes.number, micro_batch in enumerate(batch.to(self.device, non_blocking=True).micro_batches, start=1):
            outputs, contribution = passes.forward(micro_batch, None)
            self._evaluation.update(outputs, contribution, micro_batch)
        self._evaluation.end_step()

    @override
    def on_validation_epoch_end(self) -> None:
        """Reduces the results over ranks, once for the whole split, and restores the trained weights."""
        assert self._evaluation is not None
        self.validation_metrics = {f"val/{name}": value for name, value in self._evaluation.compute().items()}
        self.examined = self._evaluation if self.examines else None
        self._evaluation = None
        self._swap_average()

    def encode(self, batch: PackedBatch, pooling: Pooling) -> Tensor:
        """Returns features (sequences, hidden) of a micro-batch, without gradients and dropout.

        Call it within `validated_weights`. Collective: all ranks must call.
        """
        with torch.no_grad(), self.precision.autocast(self.device.type):
            return self.model(batch, pooling=pooling)["features"]

    @contextmanager
    def validated_weights(self) -> Iterator[None]:
        """Context in which the model has the weights used for validation: their average if one is kept."""
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

    @cached_property
    def _has_dropout(self) -> bool:
        return has_dropout(self.model)

    @cached_property
    def _weights(self) -> list[Tensor]:
        """Parameters of the model, each once. They are the same objects from the first step on."""
        return list(self.model.parameters())

    def _passes(self, step: int) -> ModelPasses:
        return ModelPasses(
            model=self.model,
            task=self.task,
            precision=self.precision,
            has_dropout=self._has_dropout,
            seed=self.seed,
            step=step,
            sharding=self.sharding,
            mesh=self._strategy.mesh,
            loss_scale=1.0 if self.loss_scale is None else self.loss_scale.value,
            run_backward=torch.autograd.backward,  # `manual_backward` would call two hooks that no callback has
        )

    def _compute_gradients(self, batch: StepBatch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Runs all passes of a step and clips the gradients.

        Returns:
            Loss and terms by name, the gradient norm before clipping, and the number of real tokens of all ranks.
        """
        self.step_batch = batch
        begin_activity("counts targets", batch.step + 1)
        counts, num_tokens = self._global_counts(batch)
        weighted = counts if self.term_weights is None else self.term_weights.weighted(counts)
        sums, self.step_sums = self.steps.run(self._passes(batch.step), batch, weighted)
        values = self.steps.objective.values(sums, counts)
        if self.term_weights is not None:
            values["loss"] = self.term_weights.loss(values)
        begin_activity("clips gradients")
        return values, self._clip_gradients(values["loss"], batch.step), num_tokens

    def _global_counts(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """Returns the (terms,) float64 counts of the step and its number of real tokens, both over all ranks."""
        counts = self.steps.counts(self.task, batch)
        num_tokens = counts.new_full((1,), sum(micro.num_tokens for micro in batch.micro_batches))
        total = torch.cat([counts, num_tokens])
        if self.device.type == "cuda" and not total.is_cuda:
            total = total.pin_memory().to(self.device, non_blocking=True)
        total = sum_over_data_ranks(total, self._strategy.mesh)
        return total[:-1], total[-1]

    def _clip_gradients(self, loss: Tensor, step: int) -> Tensor:
        """Divides the gradients by the loss scale and clips them. Collective: all ranks must call.

        A finite loss with non-finite gradients is an overflow of fp16, and the update is skipped. All ranks decide
        alike, because loss and norm are global.

        Returns:
            The norm before clipping; 0 if the update is skipped.
        """
        if self.loss_scale is None:
            return self._clip_by_norm() if self._captured_clip is None else self._captured_clip()
        self.loss_scale.unscale(self._weights)
        norm = self._clip_by_norm()
        if not torch.isfinite(loss):
            return norm
        overflowed = not torch.isfinite(norm)
        self.loss_scale.update(overflowed, step + 1)
        if overflowed:
            self.optimizer.hold_update()
            norm = torch.zeros_like(norm)
        return norm

    def _clip_by_norm(self) -> Tensor:
        return clip_gradients(self._weights, self.max_grad_norm)
