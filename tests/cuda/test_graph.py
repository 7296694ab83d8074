"""Training steps as CUDA graphs on one GPU, beside the same steps whose kernels are started one by one."""

import pytest
import torch

from framework.batch import StepBatch
from framework.distributed.parallel.compile import apply_compile
from framework.distributed.parallel.gradient_norm import clip_gradients
from framework.modules.passes.captured import CapturedFunction, CapturedSteps, CudaGraphs
from framework.modules.passes.one_pass import OnePass
from framework.modules.passes.sum_count import SumCountSteps
from framework.optim.parameter_groups import AdamW
from tests.support.needs import cuda
from tests.support.training.small_steps import CONFIGS, build_model, classification, micro_batch, pretraining, run_step

pytestmark = cuda

STEPS, WARM_UP_STEPS = 20, 4


class CountingGraphs(CudaGraphs):
    """CUDA graphs, with the number of captures."""

    num_captures = 0

    def capture(self, function):
        self.num_captures += 1
        return super().capture(function)


def run(build_task, family: str, backend: str, graphs: CountingGraphs | None):
    """Returns losses and final weights of some steps. Steps of graphs must not wait for the device."""
    task = build_task(CONFIGS[family])
    model = build_model(task, CONFIGS[family]).to("cuda")
    apply_compile(model.encoder.layers, backend)
    optimizer = AdamW(lr=1e-3).build(model.named_parameters(), {}, torch.bfloat16)
    steps = SumCountSteps(task, OnePass())
    clip = lambda: clip_gradients(model.parameters(), 1.0)  # noqa: E731
    if graphs is not None:
        steps = CapturedSteps(steps, graphs)
        clip = CapturedFunction("clipping", clip, graphs)
    losses, num_compiled = [], 0
    for number in range(STEPS):
        step = StepBatch(number, 0, (micro_batch(task, 2 * number), micro_batch(task, 2 * number + 1)))
        if number == WARM_UP_STEPS:
            num_compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            torch.cuda.set_sync_debug_mode("default" if graphs is None else "error")
        counts = steps.counts(task, step).pin_memory().to("cuda", non_blocking=True)
        sums = run_step(steps, model, task, step, "cuda")[0]
        losses.append(steps.objective.values(sums, counts)["loss"])
        clip()
        optimizer.set_learning_rates(1.0)
        optimizer.step()
    torch.cuda.set_sync_debug_mode("default")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == num_compiled
    return torch.stack(losses), [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("backend", ["none", "inductor"])
@pytest.mark.parametrize("build_task", [pretraining, classification])
@pytest.mark.parametrize("family", CONFIGS)
def test_graphs_have_the_losses_and_weights_of_single_kernels(family, build_task, backend):
    losses, weights = run(build_task, family, backend, None)
    graphs = CountingGraphs(torch.device("cuda"))
    ours, our_weights = run(build_task, family, backend, graphs)
    assert graphs.num_captures == 2
    assert len(set(losses.tolist())) == STEPS
    torch.testing.assert_close(ours, losses, rtol=1e-2, atol=0.0)
    for own, other in zip(our_weights, weights, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-2, atol=1e-3)
