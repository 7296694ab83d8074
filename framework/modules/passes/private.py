"""Steps of DP-SGD (Abadi et al. 2016, arXiv:1607.00133, algorithm 1) on packed micro-batches.

A micro-batch runs forward once. A first backward pass gives the gradient norm of each item without any gradient of a
weight (`tape`). Each item's gradient is scaled so that its norm is at most the clipping norm. A single process adds the
gradients of weights from the same tape. Under data parallelism, whose runtime reduces gradients in a backward pass, a
second one is that of the scaled sum of losses. Noise is added once, to the sum over all ranks.
"""

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from framework.batch import PackedBatch, StepBatch
from framework.distributed.parallel.parallelize import hold_gradients
from framework.distributed.processes.position import begin_activity
from framework.distributed.reduce import sum_over_data_ranks
from framework.modules.passes.model_passes import ModelPasses
from framework.modules.passes.row_units import BatchUnits
from framework.modules.passes.tape import Tape
from framework.optim.shards import first_element, local
from framework.privacy.guarantee import Guarantee
from framework.privacy.secret import Secret
from framework.tasks.task import Task


class PrivateObjective:
    """Two terms: the sum of losses, which is not published, and the number of items with clipped gradients."""

    def __init__(self, expected_batch: int) -> None:
        self._expected_batch = expected_batch

    def values(self, sums: Tensor, counts: Tensor) -> dict[str, Tensor]:
        """Returns the loss over the expected batch, and the share of clipped items: float64 scalars.

        Args:
            sums: (terms,) float64 over all ranks.
            counts: (terms,) float64 over all ranks: the number of items, twice.
        """
        loss, clipped = sums.unbind()
        return {"loss": loss / self._expected_batch, "clipped_share": clipped / counts[1].clamp(min=1)}


class PrivateSteps:
    """Runs the private passes over each micro-batch in turn.

    Args:
        guarantee: Guarantee of the run.
        secret: Secret of the run, set before the first step.
    """

    def __init__(self, guarantee: Guarantee, secret: Secret) -> None:
        self.guarantee = guarantee
        self.objective = PrivateObjective(guarantee.expected_batch)
        self._secret = secret
        self._tape: Tape | None = None

    def counts(self, task: Task, step: StepBatch) -> Tensor:  # noqa: ARG002  it does not depend on the task
        """Returns (terms,) float64 number of units of this rank's share of a step, on the host."""
        count = sum(len(batch.unit_ids[: batch.num_sequences].unique()) for batch in step.micro_batches)
        return torch.tensor([count, count], dtype=torch.float64)

    def run(self, passes: ModelPasses, step: StepBatch, counts: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Computes the private gradient of a step. Collective: all ranks must call.

        Args:
            passes: Passes of the step.
            step: This rank's micro-batches of the step.
            counts: Not used: the denominator is the expected batch, which does not depend on the sample.

        Returns:
            (terms,) float64 sums over all ranks, and (micro-batches, terms) float64 sums of this rank.
        """
        if self._tape is None:
            self._tape = Tape(passes.model, passes.task.head_rows)
        sums = []
        for number, batch in enumerate(step.micro_batches, start=1):
            passes.number = number
            sums.append(self._run(passes, self._tape, batch, is_last=number == len(step.micro_batches)))
        begin_activity("adds noise")
        add_noise(passes.model, self._secret, passes.step, self.guarantee.noise_scale)
        own = torch.stack(sums)
        return sum_over_data_ranks(own.sum(dim=0), passes.mesh), own

    def _run(self, passes: ModelPasses, tape: Tape, batch: PackedBatch, is_last: bool) -> Tensor:
        """Accumulates the clipped gradients of one micro-batch; returns its (terms,) float64 sums."""
        units = BatchUnits(batch)
        with tape.recording() as recording:
            outputs = passes.outputs(batch, passes.dropout_keys(batch))
        sequence_losses = passes.task.sequence_losses(outputs, batch)
        assert sequence_losses is not None
        losses = units.losses(sequence_losses)
        begin_activity(f"gradient norms of micro-batch {passes.number}")
        hold_gradients(passes.model)
        is_reduced = isinstance(passes.model, FSDPModule)
        gradients = tape.differentiate(recording, losses, units, retain_graph=is_reduced)
        norms = gradients.squares().sqrt()
        scales = (self.guarantee.clip / norms.clamp(min=1e-30)).clamp(max=1).to(losses.dtype)
        scales = scales / self.guarantee.expected_batch
        if is_reduced:  # gradients that are reduced over ranks must come from a backward pass
            passes.backward((losses * scales).sum(), is_last)
        else:
            gradients.accumulate(scales)
        real = slice(units.num_real)
        return torch.stack([losses.detach()[real].double().sum(), (norms[real] > self.guarantee.clip).double().sum()])


def add_noise(model: nn.Module, secret: Secret, step: int, scale: float) -> None:
    """Adds Gaussian noise to the gradients of all trained parameters; each rank draws the elements that it holds.

    Args:
        model: Model with the gradients of the whole step.
        secret: Secret of the run.
        step: Optimizer steps completed before this one.
        scale: Standard deviation of the noise.
    """
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:  # a parameter without noise would show that no item reached it
            parameter.grad = torch.zeros_like(parameter)
        flat = local(parameter.grad).view(-1)
        start, done = first_element(parameter.grad), 0
        for noise in secret.normal_parts(step, name, start, start + flat.numel()):
            flat[done : done + len(noise)].add_(noise.to(flat.device, flat.dtype), alpha=scale)
            done += len(noise)
