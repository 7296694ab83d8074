"""Late-interaction head: a linear projection of each token to a vector of length 1."""

from torch import Tensor, nn
from torch.nn.functional import normalize

from framework.batch import PackedBatch


class LateInteractionHead(nn.Module):
    """Projection without bias, then scaling to length 1 (Khattab and Zaharia 2020, arXiv:2004.12832, section 3.2).

    Args:
        hidden_size: Width of the encoder.
        width: Number of channels of a token's vector.
    """

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(hidden_size, width, bias=False)

    def forward(
        self,
        hidden_states: Tensor,
        batch: PackedBatch,
        dropout_keys: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Computes one vector per token.

        Args:
            hidden_states: (tokens, hidden).
            batch: Unused.
            dropout_keys: Unused.

        Returns:
            `vectors` (tokens, width) fp32.
        """
        return {"vectors": normalize(self.projection(hidden_states).float(), dim=1)}
