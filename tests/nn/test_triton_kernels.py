"""The Triton kernels without a GPU: in Triton's interpreter beside the operators of the CPU, and compiled for an H100.

`pip install triton` adds Triton to a CPU build of torch. On a GPU, tests/cuda runs the same cases.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from framework.nn.dropout import dropout_mask
from tests.support.models.triton_kernels import CASES, Case, norm_of, results

triton = pytest.importorskip("triton", reason="needs triton: pip install triton")


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("interpreted") / "results.pt"
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.support.models.triton_kernels", str(path)]
    subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parents[2], timeout=300)
    return torch.load(path)


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def test_the_kernel_draws_the_masks_of_the_cpu(interpreted: dict[str, Any]) -> None:
    for mask in interpreted["masks"]:
        expected = dropout_mask(interpreted["keys"], mask.shape[1], 3000, -7)
        assert torch.equal(mask != 0, expected != 0)
        assert (mask == 0).any()


@pytest.mark.parametrize("number", range(len(CASES)))
def test_dropout_sum_and_norm_are_those_of_the_cpu(number: int, interpreted: dict[str, Any]) -> None:
    case = CASES[number]
    found, expected = interpreted["norms"][number], results(norm_of(case), case)
    assert len(found) == len(expected) == len(case.outputs) + 3 + case.bias
    for name, one, other in zip([*case.outputs, *("gradient",) * 4], found, expected, strict=False):
        is_half = case.dtype != torch.float32 and name == "operand"
        assert one.dtype == (case.dtype if is_half else other.dtype)
        # Half precision rounds the operand and its gradient, which the CPU keeps in fp32 without autocast.
        assert relative_error(one, other) < (1e-6 if case.dtype == torch.float32 or name == "sum" else 5e-3)
    branch_gradient = len(case.outputs)
    assert torch.equal(found[branch_gradient] == 0, expected[branch_gradient] == 0)


@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[4]])
def test_both_kernels_compile_for_an_h100(case: Case) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from framework.nn import norm_cuda

    half = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}[case.dtype]
    types = dict.fromkeys(("branch", "operand", "grad_operand", "grad_branch"), half)
    types |= {"dropout_keys": "*i64", "threshold": "i32", "num_tokens": "i32", "scale": "fp32", "eps": "fp32"}
    flags = {
        "num_channels": 768,
        "site_key": -(2**61) - 1,
        "words": 256,
        "has_dropout": case.prob > 0,
        "has_bias": case.bias,
        "has_sums": "sum" in case.outputs,
        "has_normed": "normed" in case.outputs,
        "has_operand": "operand" in case.outputs,
    }
    for kernel in (norm_cuda._forward_kernel, norm_cuda._backward_kernel):
        names = kernel.arg_names
        signature = {name: "constexpr" if name in flags else types.get(name, "*fp32") for name in names}
        constants = {(names.index(name),): value for name, value in flags.items() if name in names}
        aligned = {
            (index,): [["tt.divisibility", 16]] for index, name in enumerate(names) if signature[name].startswith("*")
        }
        built = triton.compile(ASTSource(kernel, signature, constants, aligned), target=GPUTarget("cuda", 90, 32))
        assert built.asm["cubin"]
