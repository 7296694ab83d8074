"""Runs one global step of a parallelized model: counts, passes, clipping and update, without a Trainer."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from framework.batch import PackedBatch, StepBatch
from framework.distributed.parallel.gradient_norm import clip_gradients
from framework.distributed.parallel.precision import Precision
from framework.distributed.parallel.sharding import Sharding
from framework.distributed.processes.position import begin_activity
from framework.distributed.reduce import sum_over_data_ranks
from framework.modules.passes.captured import CapturedFunction, CapturedSteps, Graphs
from framework.modules.passes.embedding_distillation import EmbeddingDistillation
from framework.modules.passes.model_passes import ModelPasses
from framework.modules.passes.objective import SumCountObjective
from framework.modules.passes.one_pass import OnePass
from framework.modules.passes.private import PrivateSteps
from framework.modules.passes.regularization import Regularization
from framework.modules.passes.step_level import StepLevelSteps
from framework.modules.passes.sum_count import SumCountSteps
from framework.modules.passes.term_weights import term_weights_of
from framework.nn.dropout import has_dropout
from framework.optim.combined import CombinedOptimizer
from framework.tasks.step_level import StepLevelTask
from framework.tasks.task import Task, TaskModel


def _of_sums(regularization: Regularization | EmbeddingDistillation | None) -> Regularization:
    """Returns the regularization of a task whose loss is a sum over targets."""
    assert not isinstance(regularization, EmbeddingDistillation)
    return regularization or OnePass()


class StepRunner:
    """Runs the steps of training, and trial steps that measure memory.

    Attributes:
        mesh: Mesh of the strategy; None: a single process.
        device: Device on which the model computes.
        metrics: Metrics of the last step by metric key: numbers, or scalars on the device, equal on all ranks.
        batch: Batch of the current or last step.
        sums: (micro-batches, terms) float64 on the device, this rank's own loss sums of that step. The row of a
            micro-batch that caused a non-finite loss is not finite.
        loss_scale: Loss scale of fp16, which checkpoints must save; None in other precisions.
        term_weights: Weights of the loss terms, which checkpoints must save; None: they are constant.
        settle_last_step: Callback that reads the result of the last step if it has not been read yet. It is called
            after the gradients of the next step are computed, and before anything is saved. It returns True if it
            changed the weights, so that the gradients must be computed again. Collective: all ranks must call.
        is_finite: Function that reads on the host whether a tensor is finite, for the loss scale. A plan, whose tensors
            have no values, replaces it.
    """

    def __init__(
        self,
        model: TaskModel,
        task: Task,
        seed: int,
        precision: Precision,
        schedule: Callable[[int], float],
        max_grad_norm: float | None,
        sharding: Sharding,
        regularization: Regularization | EmbeddingDistillation | None,
    ) -> None:
        """Stores the components, with the meanings that `EncoderModule` gives them."""
        self.model = model
        self.task = task
        self.seed = seed
        self.precision = precision
        self.schedule = schedule
        self.max_grad_norm = max_grad_norm
        self.sharding = sharding
        self.steps: StepLevelSteps | SumCountSteps | CapturedSteps | PrivateSteps = (
            StepLevelSteps(task, regularization if isinstance(regularization, EmbeddingDistillation) else None)
            if isinstance(task, StepLevelTask)
            else SumCountSteps(task, _of_sums(regularization))
        )
        self.loss_scale = precision.build_loss_scale()
        self.term_weights = term_weights_of(task)
        self.mesh: DeviceMesh | None = None
        self.device = torch.device("cpu")
        self.metrics: dict[str, Tensor | float] = {}
        self.batch: StepBatch | None = None
        self.sums = torch.zeros((0, 0), dtype=torch.float64)
        self.settle_last_step: Callable[[], bool] = lambda: False
        self.is_finite: Callable[[Tensor], bool] = lambda value: bool(torch.isfinite(value))
        self._num_tokens = torch.zeros((), dtype=torch.float64)
        self._captured_clip: CapturedFunction | None = None

    @property
    def num_tokens(self) -> int:
        """Returns the number of real tokens of all ranks trained on so far in this run. Waits for the device."""
        return int(self._num_tokens)

    @num_tokens.setter
    def num_tokens(self, value: int) -> None:
        self._num_tokens.fill_(value)

    def capture(self, graphs: Graphs, optimizer: CombinedOptimizer) -> None:
        """Makes the next steps run as captured graphs, if their loss is a sum over targets.

        Args:
            graphs: Recorder of the device.
            optimizer: Optimizer of the run, whose update is captured if the device decides about it.
        """
        if not isinstance(self.steps, SumCountSteps):
            return
        self.steps = CapturedSteps(self.steps, graphs)
        self._captured_clip = CapturedFunction("the clipping of gradients", self._clip_by_norm, graphs)
        if self.holds_on_device(optimizer):
            update = optimizer.update_on_device
            optimizer.update_on_device = CapturedFunction("the update of the weights", update, graphs)

    def holds_on_device(self, optimizer: CombinedOptimizer) -> bool:
        """Returns True if the device decides whether an update is applied, so that the host does not wait for it."""
        return self.loss_scale is None and optimizer.holds_on_device

    def run(self, batch: StepBatch, optimizer: CombinedOptimizer, update: Callable[[], object]) -> None:
        """Runs one global step: the passes over every micro-batch, gradient clipping, and the update.

        There are three small all-reduces: the counts before the first forward pass, the loss sums after the last
        backward pass, and the gradient norm. The host does not wait for the device if `holds_on_device`.

        Args:
            batch: This rank's micro-batches of the step.
            optimizer: Optimizer of the run.
            update: Function that applies the optimizer, once.
        """
        if not isinstance(self.steps, CapturedSteps):  # captured steps copy micro-batches to fixed memory
            batch = batch.to(self.device, non_blocking=True)
        values, grad_norm, num_tokens = self._compute_gradients(batch, optimizer)
        if self.settle_last_step():
            optimizer.zero_grad(set_to_none=True)
            values, grad_norm, num_tokens = self._compute_gradients(batch, optimizer)
        optimizer.set_learning_rates(self.schedule(batch.step))
        self._num_tokens = self._num_tokens.to(num_tokens.device) + num_tokens

        self.metrics = {f"train/{name}": value for name, value in values.items()}
        rate = optimizer.param_groups[0]["lr"]
        self.metrics |= {"train/tokens": self._num_tokens, "optim/lr": rate, "optim/grad_norm": grad_norm}
        if self.loss_scale is not None:
            self.metrics |= self.loss_scale.metrics()
        if self.term_weights is not None:
            self.metrics |= self.term_weights.metrics()
            self.term_weights.update(values, grad_norm)
        if self.holds_on_device(optimizer):
            optimizer.hold_unless_finite(values["loss"], grad_norm)
        begin_activity("updates the weights")
        update()
        optimizer.zero_grad(set_to_none=True)

    def run_trial(self, batch: PackedBatch) -> None:
        """Runs a step that contains one micro-batch twice, and drops the gradients. Collective: all ranks must call.

        The second micro-batch runs while the gradients of the first are in memory. Compilation is disabled.
        """
        step = StepBatch(step=0, epoch=0, micro_batches=(batch, batch))
        counts, _ = self._global_counts(step)
        with torch.compiler.set_stance("force_eager"):
            self.steps.run(self.passes(0), step, counts)
        self.model.zero_grad(set_to_none=True)

    def passes(self, step: int) -> ModelPasses:
        """Returns the passes of a step, given the number of steps completed before it."""
        return ModelPasses(
            model=self.model,
            task=self.task,
            precision=self.precision,
            has_dropout=self._has_dropout,
            seed=self.seed,
            step=step,
            sharding=self.sharding,
            mesh=self.mesh,
            loss_scale=1.0 if self.loss_scale is None else self.loss_scale.value,
            run_backward=torch.autograd.backward,  # `manual_backward` would call two hooks that no callback has
        )

    @cached_property
    def _has_dropout(self) -> bool:
        return has_dropout(self.model)

    @cached_property
    def _weights(self) -> list[Tensor]:
        """Parameters of the model, each once. They are the same objects from the first step on."""
        return list(self.model.parameters())

    def _compute_gradients(
        self, batch: StepBatch, optimizer: CombinedOptimizer
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Runs all passes of a step and clips the gradients.

        Returns:
            Loss and terms by name, the gradient norm before clipping, and the number of real tokens of all ranks.
        """
        self.batch = batch
        begin_activity("counts targets", batch.step + 1)
        counts, num_tokens = self._global_counts(batch)
        weighted = counts if self.term_weights is None else self.term_weights.weighted(counts)
        factors = self.task.weight_factors(batch.step) if isinstance(self.task, StepLevelTask) else {}
        if factors:
            # A loss divides each term by its count.
            assert isinstance(self.steps.objective, SumCountObjective)
            scales = [counts.new_full((), factors.get(name, 1.0)) for name in self.steps.objective.weights]
            weighted = weighted / torch.stack(scales)
        sums, self.sums = self.steps.run(self.passes(batch.step), batch, weighted)
        values = self.steps.objective.values(sums, counts)
        if self.term_weights is not None:
            values["loss"] = self.term_weights.loss(values)
        elif factors:
            values["loss"] = self.steps.objective.values(sums, weighted)["loss"]
        begin_activity("clips gradients")
        return values, self._clip_gradients(values["loss"], batch.step, optimizer), num_tokens

    def _global_counts(self, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """Returns the (terms,) float64 counts of the step and its number of real tokens, both over all ranks."""
        counts = self.steps.counts(self.task, batch)
        num_tokens = counts.new_full((1,), sum(micro.num_tokens for micro in batch.micro_batches))
        total = torch.cat([counts, num_tokens])
        if self.device.type == "cuda" and not total.is_cuda:
            total = total.pin_memory().to(self.device, non_blocking=True)
        total = sum_over_data_ranks(total, self.mesh)
        return total[:-1], total[-1]

    def _clip_gradients(self, loss: Tensor, step: int, optimizer: CombinedOptimizer) -> Tensor:
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
        if not self.is_finite(loss):
            return norm
        overflowed = not self.is_finite(norm)
        self.loss_scale.update(overflowed, step + 1)
        if overflowed:
            optimizer.hold_update()
            norm = torch.zeros_like(norm)
        return norm

    def _clip_by_norm(self) -> Tensor:
        return clip_gradients(self._weights, self.max_grad_norm)
