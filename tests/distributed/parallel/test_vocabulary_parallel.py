"""The loss over a split vocabulary, compared with torch's own in fp64 over the whole vocabulary."""

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn import functional

from framework.batch import IGNORE_INDEX
from framework.distributed.parallel.vocabulary_parallel import VocabularyParallelEmbedding
from framework.nn.cross_entropy import cross_entropy_and_normalizers
from tests.support.processes.workers import WorkerPool

LABELS = [0, 30, IGNORE_INDEX, 4, 15, 16, IGNORE_INDEX, 2, 8]
NUM_WORDS = 31
"""Parts of 16 and 15, or of 8, 8, 8 and 7."""


def given(num_targets: int) -> tuple[Tensor, Tensor]:
    logits = torch.randn(len(LABELS), NUM_WORDS, generator=torch.Generator().manual_seed(0)) * 5
    return logits[:num_targets], torch.tensor(LABELS[:num_targets], dtype=torch.int64)


def run_loss(num_targets: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Returns loss, normalizers, and the gradient of 3 times the first plus the sum of squares of the second."""
    logits, labels = given(num_targets)
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    parts = distribute_tensor(logits.to(dtype), mesh, [Shard(1)], src_data_rank=None).requires_grad_()
    loss, normalizers = cross_entropy_and_normalizers(parts, labels)
    (3 * loss + normalizers.square().sum()).backward()
    assert isinstance(parts.grad, DTensor) and parts.grad.dtype == dtype
    return loss.detach(), normalizers.detach(), parts.grad.full_tensor()


@pytest.mark.parametrize(("num_ranks", "num_targets"), [(2, 9), (4, 9), (2, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_sum_normalizers_and_gradient_are_torchs(
    workers: WorkerPool, num_ranks: int, num_targets: int, dtype: torch.dtype
) -> None:
    logits, labels = given(num_targets)
    whole = logits.to(dtype).double().requires_grad_()
    loss = functional.cross_entropy(whole, labels, reduction="sum", ignore_index=IGNORE_INDEX)
    normalizers = whole.logsumexp(dim=1)
    (3 * loss + normalizers.square().sum()).backward()
    for found_loss, found_normalizers, gradient in workers.run(run_loss, num_ranks, num_targets, dtype):
        torch.testing.assert_close(found_loss.double(), loss.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found_normalizers.double(), normalizers.detach(), rtol=1e-5, atol=1e-5)
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2
        torch.testing.assert_close(gradient.double(), whole.grad, rtol=tolerance, atol=tolerance)


def run_embedding() -> tuple[Tensor, Tensor]:
    """Returns the embeddings, and the gradient of their sum weighted by (1, 2, 3, ...)."""
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    embedding = VocabularyParallelEmbedding(5, 2)
    embedding.weight = torch.nn.Parameter(
        distribute_tensor(torch.arange(10.0).view(5, 2), mesh, [Shard(0)], src_data_rank=None)
    )
    found = embedding(torch.tensor([4, 0, 2, 0]))
    (found * torch.arange(1.0, 5.0)[:, None]).sum().backward()
    assert isinstance(embedding.weight.grad, DTensor)
    return found.detach(), embedding.weight.grad.full_tensor()


def test_words_of_all_parts_are_embedded_and_get_their_gradient(workers: WorkerPool) -> None:
    for found, gradient in workers.run(run_embedding, 2):
        assert found.tolist() == [[8.0, 9.0], [0.0, 1.0], [4.0, 5.0], [0.0, 1.0]]
        assert gradient.tolist() == [[6.0, 6.0], [0.0, 0.0], [3.0, 3.0], [0.0, 0.0], [1.0, 1.0]]
