"""Layer-wise learning rates: the nearer to the input, the smaller (Howard, Ruder 2018, arXiv:1801.06146, section 3.2).

As in BEiT (Bao et al. 2022, arXiv:2106.08254, the released code): of n layers, the last has the base rate times the
decay, the first times its n-th power and the embeddings times its (n + 1)-th; the head and a final norm keep the base
rate. A decoder that is tied to the word embeddings goes with them.
"""

import re
from collections.abc import Collection

from framework.errors import ConfigError

_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
_EMBEDDINGS = "encoder.embeddings."


def layer_factors(names: Collection[str], decay: float) -> dict[str, float]:
    """Says by what each parameter's base rate is multiplied.

    Args:
        names: Of all parameters of the model.
        decay: In (0, 1]; 1 leaves all rates alone.

    Raises:
        ConfigError: The decay is not 1 and no name is that of a layer.
    """
    if decay == 1.0:
        return dict.fromkeys(names, 1.0)
    layers = {name: int(match[1]) for name in names if (match := _LAYER.match(name))}
    if not layers:
        raise ConfigError(
            f"optimizer.layer_decay={decay} needs parameters called encoder.layers.N., and the model has none; "
            "set it to 1."
        )
    num_layers = max(layers.values()) + 1
    depths = {name: layers.get(name, -1 if name.startswith(_EMBEDDINGS) else num_layers) for name in names}
    return {name: decay ** (num_layers - depth) for name, depth in depths.items()}
