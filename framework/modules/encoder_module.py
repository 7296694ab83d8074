"""The LightningModule that runs one global step (`StepRunner`) as one Lightning batch, and validates."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from typing_extensions import override

from framework.batch import PackedBatch, StepBatch
from framework.data.planning.plan import StepPlan
from framework.distributed.parallel.activation_checkpoint import KEEP_ALL, ActivationCheckpointing
from framework.distributed.parallel.compile import CompileBackend
from framework.distributed.parallel.materialization import materialize, use_sparse_gradients
from framework.distributed.parallel.parallelize import drop_gathered, parallelize
from framework.distributed.parallel.precision import Precision, check_full_precision
from framework.distributed.parallel.sharding import DEFAULT_SHARDING, Sharding
from framework.distributed.strategy import MeshStrategy, SingleStrategy
from framework.modules.evaluation import SplitEvaluation
from framework.modules.passes.captured import Graphs
from framework.modules.passes.embedding_distillation import EmbeddingDistillation
from framework.modules.passes.private import PrivateSteps
from framework.modules.passes.regularization import Regularization
from framework.modules.step_runner import StepRunner
from framework.optim.combined import CombinedOptimizer
from framework.tasks.pooling import Pooling
from framework.tasks.task import Task, TaskModel

InitialValues = Callable[[TaskModel], Iterable[tuple[str, Callable[[], Tensor]]]]


class EncoderModule(pl.LightningModule):
    """LightningModule that trains and validates one task model.

    Attributes:
        runner: Runner of the steps, with their metrics and what checkpoints save of them.
        validation_metrics: Metrics of the last validation by metric key, on the host.
        examines: True makes the next validations keep the data of each item that an error analysis needs.
        examined: Evaluation of the last validation, with the data of its items; None if it ran without `examines`.
        build_graphs: Function from the device to the recorder of captured training steps, for a single process or
            `ddp`; None: steps are not captured. A captured step needs micro-batches of fixed shapes.
        hidden_metrics: Keys of the step's metrics that are not written anywhere.
    """

    build_graphs: Callable[[torch.device], Graphs] | None = None
    hidden_metrics: frozenset[str] = frozenset()
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
        regularization: Regularization | EmbeddingDistillation | None = None,
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
            regularization: Additional passes or terms of a step; None: none.
        """
        super().__init__()
        self.automatic_optimization = False
        self.model = model
        self.initial_values = initial_values
        self.build_optimizer = build_optimizer
        self.activation_checkpointing = activation_checkpointing
        self.compile_backend = compile_backend
        self.runner = StepRunner(model, task, seed, precision, schedule, max_grad_norm, sharding, regularization)
        self.validation_metrics: dict[str, float] = {}
        self.examines = False
        self.examined: SplitEvaluation | None = None

    @property
    def task(self) -> Task:
        """Returns the task with the loss and the metrics."""
        return self.runner.task

    @property
    def precision(self) -> Precision:
        """Returns the precision of the forward pass."""
        return self.runner.precision

    @property
    def sharding(self) -> Sharding:
        """Returns the communication and location of parameter shards."""
        return self.runner.sharding

    def make_private(self, steps: PrivateSteps) -> None:
        """Replaces the steps by private ones, whose losses are not written; call it before the model has weights."""
        self.runner.steps = steps
        self.hidden_metrics = frozenset({"train/loss"})

    @override
    def configure_model(self) -> None:
        """Parallelizes the model and sets its initial weights; a second call does nothing."""
        self.place(self._strategy.name, self._strategy.mesh, self._strategy.root_device)

    def place(self, strategy: str, mesh: DeviceMesh | None, device: torch.device) -> None:
        """Parallelizes the model over a mesh and sets its initial weights, unless it has weights already.

        Collective if there is a mesh: all ranks must call.

        Args:
            strategy: One of `framework.distributed.mesh.STRATEGIES`.
            mesh: Mesh of the strategy; None: a single process.
            device: Device on which the model computes.
        """
        if any(parameter.is_meta for parameter in self.model.parameters()):
            self.parallelize(strategy, mesh)
            self.materialize(device)
        self.runner.mesh, self.runner.device = mesh, device

    def parallelize(self, strategy: str, mesh: DeviceMesh | None) -> None:
        """Parallelizes the model on the meta device (first part of `place`)."""
        parallelize(
            self.model,
            mesh if self.build_graphs is None else None,  # captured steps reduce all gradients at once
            strategy,
            self.precision,
            self.activation_checkpointing,
            self.sharding,
            self.compile_backend,
        )

    def materialize(self, device: torch.device) -> None:
        """Sets the initial weights of the parallelized model (second part of `place`)."""
        parameter_device = "cpu" if self.sharding.cpu_offload else None
        materialize(self.model, self.initial_values(self.model), device, parameter_device)
        if self.build_graphs is None and not isinstance(self.runner.steps, PrivateSteps):  # noise is dense
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

    @override
    def on_train_start(self) -> None:
        """Prepares captured steps. Trials of the token budget have ended by then."""
        if self.build_graphs is not None:
            self.runner.capture(self.build_graphs(self.device), self.optimizer)

    @override
    def training_step(self, batch: StepBatch, batch_idx: int) -> None:
        """Runs one global step (`StepRunner.run`); Lightning's wrapper of the optimizer counts it."""
        if batch.step != self.global_step:
            raise RuntimeError(f"The loader returned step {batch.step}, but {self.global_step} steps are completed.")
        counting_optimizer = self.optimizers()  # Lightning's wrapper calls the hooks and counts global_step
        assert isinstance(counting_optimizer, LightningOptimizer)
        self.runner.run(batch, self.optimizer, counting_optimizer.step)

    @property
    def holds_on_device(self) -> bool:
        """True if the device decides whether an update is applied, so that the host does not wait for it."""
        return self.runner.holds_on_device(self.optimizer)

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
        self._evaluate_step(self._evaluation, batch)

    def _evaluate_step(self, evaluation: SplitEvaluation, batch: StepBatch) -> None:
        passes = self.runner.passes(batch.step)
        for passes.number, micro_batch in enumerate(batch.to(self.device, non_blocking=True).micro_batches, start=1):
            outputs, contribution = passes.forward(micro_batch, None)
            evaluation.update(outputs, contribution, micro_batch)
        evaluation.end_step()

    def evaluate(self, plan: StepPlan, rank: int) -> dict[str, float]:
        """Returns loss and metrics of a split by name, with the weights used for validation.

        Collective: all ranks must call.

        Args:
            plan: Plan of the split.
            rank: Data-parallel rank of this process.
        """
        evaluation = SplitEvaluation(self.task, plan.source, self.device, self._strategy.mesh)
        with self.validated_weights(), torch.no_grad():
            for step in range(len(plan)):
                self._evaluate_step(evaluation, StepBatch(step, 0, tuple(plan.batches(step, rank))))
            return evaluation.compute()

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
