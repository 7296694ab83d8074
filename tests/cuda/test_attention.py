"""Attention and dropout on a GPU compared with those on the CPU, values and gradients."""

import pytest
import torch
from torch import Tensor

from framework.nn.attention_backend import attention, cross_attention, reference_attention, self_attention
from framework.nn.attention_kernel import (
    KERNELS,
    UnusableKernelError,
    attention_pass,
    device_clock,
    time_kernels,
    use_kernel,
)
from framework.nn.dropout import HashedDropout, dropout_base, token_keys
from framework.nn.rotary import RotaryTable
from tests.support.models.packs import make_batch
from tests.support.models.triton_kernels import CASES, norm_of, results
from tests.support.needs import cuda

pytestmark = cuda

LENGTHS = (200, 1, 77, 512, 128)
OPTIONS = [(None, False), (128, False), (None, True), (64, True)]
HALF = [torch.bfloat16, torch.float16]


def relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double().cpu(), expected.double().cpu()
    return float((found - expected).norm() / expected.norm())


def random_qkv(dtype: torch.dtype, heads: int = 4, head_dim: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(sum(LENGTHS), heads, 3, head_dim, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
@pytest.mark.parametrize(("window", "causal"), OPTIONS)
def test_outputs_and_gradients_are_those_of_the_formula(dtype, window, causal):
    qkv = random_qkv(dtype)
    leaf = qkv.to(torch.float32, copy=True).requires_grad_()
    expected, _ = reference_attention(*leaf.unbind(2), LENGTHS, window=window, causal=causal)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    (expected * weight).sum().backward()

    batch = make_batch(LENGTHS).to("cuda")
    on_gpu = qkv.cuda().requires_grad_()
    found = attention(
        *on_gpu.unbind(2), batch.cu_seqlens, batch.lengths, batch.max_seqlen, window=window, causal=causal
    )
    (found.float() * weight.cuda()).sum().backward()
    limit = 1e-5 if dtype == torch.float32 else 1e-2
    assert found.dtype == dtype
    assert relative_error(found, expected) < limit
    assert relative_error(on_gpu.grad, leaf.grad) < limit


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_joint_projection_is_rotated_as_on_the_cpu(dtype):
    qkv = random_qkv(dtype)
    batch = make_batch(LENGTHS)
    table = RotaryTable(32, max(LENGTHS), 10_000.0)
    outputs = []
    for device in ("cpu", "cuda"):
        moved = batch.to(device)
        cos, sin = table(batch.position_ids)
        given = qkv.float() if device == "cpu" else qkv.to(device)
        outputs.append(
            self_attention(
                given, (cos.to(device), sin.to(device)), moved.cu_seqlens, moved.lengths, moved.max_seqlen, window=64
            )
        )
    assert relative_error(outputs[1], outputs[0]) < 1e-2


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_queries_of_one_sequence_attend_to_the_keys_of_the_other(dtype):
    queries, keys = make_batch((3, 90, 1)), make_batch((40, 7, 300))
    generator = torch.Generator().manual_seed(3)
    query, key, value = (
        torch.randn(sum(side.lengths), 4, 32, generator=generator).to(dtype) for side in (queries, keys, keys)
    )
    expected = cross_attention(query.float(), key.float(), value.float(), queries, keys)
    found = cross_attention(query.cuda(), key.cuda(), value.cuda(), queries.to("cuda"), keys.to("cuda"))
    assert relative_error(found, expected) < 1e-2


@pytest.mark.parametrize("channels", [64, 66, 3])
@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
@pytest.mark.parametrize("has_residual", [False, True])
def test_dropout_draws_the_same_masks(channels, dtype, has_residual):
    batch = make_batch(LENGTHS)
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(sum(LENGTHS), channels, generator=generator).to(dtype)
    residual = torch.randn(x.shape, generator=generator) if has_residual else None
    weight = torch.randn(x.shape, generator=generator)
    found = []
    for device in ("cpu", "cuda"):
        leaf = x.to(device, copy=True).requires_grad_()
        added = None if residual is None else residual.to(device, copy=True).requires_grad_()
        out = HashedDropout(0.1, "site")(leaf, token_keys(dropout_base(1, 2, 0), batch.to(device)), residual=added)
        (out.float() * weight.to(device)).sum().backward()
        found.append([out.detach(), leaf.grad, *(() if added is None else (added.grad,))])
    for on_cpu, on_gpu in zip(*found, strict=True):
        assert on_gpu.dtype == on_cpu.dtype
        assert torch.equal(on_cpu == 0, on_gpu.cpu() == 0)
        assert relative_error(on_gpu, on_cpu) < (1e-6 if dtype == torch.float32 else 5e-3)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.dtype} {case.channels} {'+'.join(case.outputs)}")
def test_dropout_sum_and_norm_are_those_of_the_cpu(case):
    found, expected = results(norm_of(case, "cuda"), case, "cuda"), results(norm_of(case), case)
    for on_gpu, on_cpu in zip(found, expected, strict=True):
        # Half precision rounds the operand and its gradient, which the CPU keeps in fp32 without autocast.
        assert relative_error(on_gpu, on_cpu) < (1e-5 if case.dtype == torch.float32 else 5e-3)
    branch_gradient = len(case.outputs)
    assert torch.equal(found[branch_gradient] == 0, expected[branch_gradient] == 0)


@pytest.mark.parametrize(("window", "causal"), OPTIONS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_each_attention_kernel_computes_the_formula(kernel, window, causal):
    try:
        use_kernel(kernel)
    except UnusableKernelError as error:
        pytest.skip(f"{kernel}: {error}")
    try:
        test_outputs_and_gradients_are_those_of_the_formula(torch.bfloat16, window, causal)
    finally:
        use_kernel("flash2")


def test_installed_kernels_are_timed():
    batch = make_batch(LENGTHS).to("cuda")
    run = attention_pass(batch, 4, 32, [None, 128], torch.bfloat16)
    seconds = time_kernels(tuple(KERNELS), run, device_clock(torch.device("cuda")))
    use_kernel("flash2")
    assert 0 < seconds["flash2"] < 1
