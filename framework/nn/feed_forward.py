"""The feed-forward block: plain (Vaswani et al. 2017, section 3.3) or gated (Shazeer 2020, "GLU Variants")."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


def _gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


def _quick_gelu(x: Tensor) -> Tensor:
    """Approximates GELU by x * sigmoid(1.702 x) (Hendrycks, Gimpel 2016, arXiv:1606.08415, section 2)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "relu": functional.relu,
    "silu": functional.silu,
}


class FeedForward(nn.Module):
    """down(activation(up(x)))."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str, bias: bool) -> None:
        super().__init__()
        self.up = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=bias)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """Maps (tokens, hidden) to (tokens, hidden)."""
        return self.down(self.activation(self.up(x)))


class GatedFeedForward(nn.Module):
    """Gated feed-forward block: down(activation(gate(x)) * up(x))."""

    def __init__(self, hidden_size: int, intermediate_size: int, activation: str, bias: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.up = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.down = nn.Linear(intermediate_size, hidden_size, bias=bias)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """Maps (tokens, hidden) to (tokens, hidden)."""
        # Compiled code joins the weights while it casts them, and needs one matrix product forward and two backward
        # instead of two and four. Uncompiled, joining the gradients of both parts costs what this saves.
        if torch.compiler.is_compiling() and type(self.gate) is type(self.up) is nn.Linear:
            weight = torch.cat((self.gate.weight, self.up.weight))
            bias = None if self.gate.bias is None else torch.cat((self.gate.bias, self.up.bias))
            gate, up = functional.linear(x, weight, bias).chunk(2, dim=-1)
        else:
            gate, up = self.gate(x), self.up(x)
        return self.down(self.activation(gate) * up)
