"""Cases for the Triton kernels, and a program that runs them in Triton's interpreter, which needs no GPU.

`python -m tests.support.models.triton_kernels FILE` saves the results of the kernels. TRITON_INTERPRET=1 must be set
before Triton is imported, hence a process of its own.
"""

import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from framework.nn.dropout import HashedDropout
from framework.nn.norm import Output, ResidualNorm

TOKENS = 11


@dataclass(frozen=True)
class Case:
    dtype: torch.dtype
    channels: int
    bias: bool
    prob: float
    outputs: tuple[Output, ...]


CASES = (
    Case(torch.bfloat16, 64, True, 0.1, ("normed", "operand")),
    Case(torch.bfloat16, 66, False, 0.0, ("sum", "operand")),
    Case(torch.float16, 96, False, 0.5, ("operand", "sum")),
    Case(torch.float32, 3, True, 0.3, ("normed",)),
    Case(torch.float32, 68, True, 0.1, ("sum", "normed", "operand")),
    Case(torch.float32, 64, True, 0.1, ("normed", "operand")),
)


def norm_of(case: Case, device: str = "cpu") -> ResidualNorm:
    """Norm with random weight and bias."""
    generator = torch.Generator().manual_seed(3)
    norm = ResidualNorm(case.channels, 1e-5, case.bias)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(case.channels, generator=generator))
    return norm.to(device)


def results(norm: ResidualNorm, case: Case, device: str = "cpu") -> list[Tensor]:
    """The outputs, then the gradients of branch, residual, weight and bias, of a weighted sum of the outputs."""
    generator = torch.Generator().manual_seed(4)
    branch, residual = (torch.randn(TOKENS, case.channels, generator=generator) for _ in range(2))
    keys = torch.randint(-(2**62), 2**62, (TOKENS,), generator=generator).to(device)
    leaf, added = branch.to(device, case.dtype).requires_grad_(), residual.to(device).requires_grad_()
    outputs = norm(leaf, added, HashedDropout(case.prob, "site"), keys, case.outputs)
    weights = [torch.randn(TOKENS, case.channels, generator=generator).to(device) for _ in outputs]
    sum((output.float() * weight).sum() for output, weight in zip(outputs, weights, strict=True)).backward()
    grads = [leaf.grad, added.grad, *(parameter.grad for parameter in norm.parameters())]
    return [tensor.detach().cpu() for tensor in (*outputs, *grads)]


def main(path: str) -> None:
    """Saves the results of all cases, and masks: the dropout of ones."""
    from framework.nn import dropout, norm
    from framework.nn.dropout_cuda import FusedDropout

    keys = torch.randint(-(2**62), 2**62, (TOKENS,), generator=torch.Generator().manual_seed(5))
    masks = [FusedDropout.apply(torch.ones(TOKENS, channels), keys, None, 3000, 1.0, -7) for channels in (3, 64)]
    norm.has_kernel = dropout.has_kernel = lambda x: True
    torch.save({"keys": keys, "masks": masks, "norms": [results(norm_of(case), case) for case in CASES]}, path)


if __name__ == "__main__":
    main(sys.argv[1])
