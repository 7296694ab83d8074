"""Layer normalisation (Ba, Kiros, Hinton 2016) in fp32 for inputs of any floating dtype."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class LayerNorm(nn.Module):
    """Normalises each token over `hidden`."""

    def __init__(self, hidden_size: int, eps: float, bias: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.bias = nn.Parameter(torch.zeros(hidden_size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., hidden) of any floating dtype to (..., hidden) fp32."""
        bias = None if self.bias is None else self.bias.float()
        return functional.layer_norm(x.float(), self.weight.shape, self.weight.float(), bias, self.eps)

    def extra_repr(self) -> str:
        """Returns the constructor arguments for `repr`."""
        return f"{self.weight.shape[0]}, eps={self.eps}, bias={self.bias is not None}"
