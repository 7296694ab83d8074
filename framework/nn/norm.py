"""Layer norm (Ba, Kiros, Hinton 2016) and RMS norm of tokens, in fp32 for inputs of any floating dtype."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from framework.nn.dropout import HashedDropout, has_kernel

Output = Literal["sum", "normed", "operand"]


class LayerNorm(nn.Module):
    """Normalises each token over `hidden`."""

    def __init__(self, hidden_size: int, eps: float, bias: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., hidden) of any floating dtype to (..., hidden) fp32."""
        return self.scaled(x)

    def run_idle(self, like: Tensor) -> None:
        """Runs the module on a row of zeros, for hooks that wait until each module has run.

        Args:
            like: Tensor of the dtype and device of the row.
        """
        self(like.new_zeros(1, self.weight.shape[0]))

    def scaled(self, x: Tensor) -> Tensor:
        """Returns the norm of (..., hidden), with weight and bias."""
        bias = None if self.bias is None else self.bias.float()
        return functional.layer_norm(x.float(), self.weight.shape, self.weight.float(), bias, self.eps)

    def normalize(self, x: Tensor) -> Tensor:
        """Returns the norm of (..., hidden) without weight and bias."""
        return functional.layer_norm(x.float(), self.weight.shape, eps=self.eps)

    def extra_repr(self) -> str:
        """Returns the constructor arguments for `repr`."""
        return f"{self.weight.shape[0]}, eps={self.eps}, bias={self.bias is not None}"


class RMSNorm(LayerNorm):
    """Divides each token by its root mean square (Zhang and Sennrich 2019, arXiv:1910.07467). It has no bias."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__(hidden_size, eps, bias=False)

    def scaled(self, x: Tensor) -> Tensor:
        """Returns the norm of (..., hidden), with its weight."""
        return functional.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps)

    def normalize(self, x: Tensor) -> Tensor:
        """Returns the norm of (..., hidden) without its weight."""
        return functional.rms_norm(x.float(), self.weight.shape, eps=self.eps)


class ResidualNorm(LayerNorm):
    """Norm of a residual branch's sum. On CUDA, dropout, sum, norm and casts are one kernel (`norm_cuda`)."""

    is_fused = True

    def forward(  # type: ignore[override]
        self,
        branch: Tensor,
        residual: Tensor,
        dropout: HashedDropout,
        dropout_keys: Tensor | None,
        outputs: tuple[Output, ...],
    ) -> tuple[Tensor, ...]:
        """Normalises residual + dropout(branch).

        Args:
            branch: (tokens, hidden) output of a block.
            residual: (tokens, hidden) fp32.
            dropout: Dropout of the branch.
            dropout_keys: (tokens,) int64; None disables dropout.
            outputs: Requested results. "sum": the sum, fp32; "normed": its norm, fp32; "operand": the norm as input of
                linear layers under autocast, whose casts it saves: in the dtype of the branch if the kernel ran, else
                fp32.

        Returns:
            The requested results in order, each (tokens, hidden).
        """
        if self.is_fused and has_kernel(branch):
            from framework.nn.norm_cuda import fused_residual_norm

            results = fused_residual_norm(
                branch, residual, self.weight, self.bias, self.eps, dropout, dropout_keys, outputs
            )
        else:
            total = dropout(branch, dropout_keys, residual=residual)
            normed = self.scaled(total)
            results = {"sum": total, "normed": normed, "operand": normed}
        return tuple(results[name] for name in outputs)

    def run_idle(self, like: Tensor) -> None:
        """Runs the module on a row of zeros, see `LayerNorm.run_idle`."""
        rows = like.new_zeros(1, self.weight.shape[0])
        self(rows, rows, HashedDropout(0.0, "idle"), None, ("normed",))


class ResidualRMSNorm(RMSNorm, ResidualNorm):
    """RMS norm of a residual branch's sum, without a kernel of its own."""

    is_fused = False
