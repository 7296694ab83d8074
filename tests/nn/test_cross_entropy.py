"""The summed cross entropy compared with torch's own."""

import pytest
import torch
from torch.nn import functional

from framework.batch import IGNORE_INDEX
from framework.nn import cross_entropy
from framework.nn.cross_entropy import cross_entropy_and_z_sum, cross_entropy_sum


@pytest.mark.parametrize("block_elements", [1, 70, 1 << 18])
def test_sum_and_gradient_equal_torch(block_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "_BLOCK_ELEMENTS", block_elements)
    logits = (torch.randn(9, 31, generator=torch.Generator().manual_seed(0)) * 5).requires_grad_()
    theirs = logits.detach().double().requires_grad_()
    labels = torch.tensor([0, 30, IGNORE_INDEX, 4, 4, 17, IGNORE_INDEX, 2, 8])
    loss = cross_entropy_sum(logits, labels)
    expected = functional.cross_entropy(theirs, labels, reduction="sum", ignore_index=IGNORE_INDEX)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    (3 * loss).backward()
    (3 * expected).backward()
    torch.testing.assert_close(logits.grad.double(), theirs.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block_elements", [70, 1 << 18])
def test_z_sum_and_gradient_equal_those_of_logsumexp(block_elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "_BLOCK_ELEMENTS", block_elements)
    logits = (torch.randn(9, 31, generator=torch.Generator().manual_seed(0)) * 5).requires_grad_()
    theirs = logits.detach().double().requires_grad_()
    labels = torch.tensor([0, 30, IGNORE_INDEX, 4, 4, 17, IGNORE_INDEX, 2, 8])
    loss, z_sum = cross_entropy_and_z_sum(logits, labels)
    expected = functional.cross_entropy(theirs, labels, reduction="sum", ignore_index=IGNORE_INDEX)
    expected_z = torch.logsumexp(theirs, dim=1)[labels != IGNORE_INDEX].square().sum()
    torch.testing.assert_close(z_sum.double(), expected_z, rtol=1e-5, atol=1e-5)
    (3 * loss + 0.25 * z_sum).backward()
    (3 * expected + 0.25 * expected_z).backward()
    torch.testing.assert_close(logits.grad.double(), theirs.grad, rtol=1e-5, atol=1e-6)


def test_bf16_logits_give_an_fp32_sum_and_a_bf16_gradient() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    labels = torch.arange(5)
    loss = cross_entropy_sum(logits, labels)
    loss.backward()
    expected = functional.cross_entropy(logits.detach().float(), labels, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    assert logits.grad.dtype == torch.bfloat16


def test_no_target_gives_zero_and_no_nan() -> None:
    for labels in (torch.tensor([], dtype=torch.int64), torch.full((3,), IGNORE_INDEX)):
        logits = torch.randn(len(labels), 7, requires_grad=True)
        loss, z_sum = cross_entropy_and_z_sum(logits, labels)
        (loss + z_sum).backward()
        assert loss.item() == z_sum.item() == 0.0
        assert torch.equal(logits.grad, torch.zeros(len(labels), 7))
