"""Layer-wise learning rates that shrink towards the input (Howard, Ruder 2018, arXiv:1801.06146, section 3.2).

The exponents follow the released code of BEiT (Bao et al. 2022, arXiv:2106.08254). Of n layers, the last has the base
rate times the decay, the first has the base rate times decay ** n, and the embeddings have it times decay ** (n + 1).
A relative bias, which all layers share, has the rate of the embeddings. The head and a final norm keep the base rate. A
decoder tied to the word embeddings has their rate.
"""

import re
from collections.abc import Collection

from framework.errors import ConfigError

_LAYER = re.compile(r"encoder\.layers\.(\d+)\.")
_EMBEDDINGS = ("encoder.embeddings.", "encoder.relative_bias.")


def layer_factors(names: Collection[str], decay: float) -> dict[str, float]:
    """Returns the factor of each parameter's base rate.

    Args:
        names: Names of all parameters of the model.
        decay: Decay per layer, in (0, 1]. With 1 all factors are 1.

    Raises:
        ConfigError: The decay is not 1, and no parameter belongs to a layer.
    """
    if decay == 1.0:
        return dict.fromkeys(names, 1.0)
    layers = {name: int(match[1]) for name in names if (match := _LAYER.match(name))}
    if not layers:
        raise ConfigError(
            f"optimizer.layer_decay is {decay}, but the model has no parameters called encoder.layers.N. Layer decay "
            "requires layers. Set it to 1."
        )
    num_layers = max(layers.values()) + 1
    depths = {name: layers.get(name, -1 if name.startswith(_EMBEDDINGS) else num_layers) for name in names}
    return {name: decay ** (num_layers - depth) for name, depth in depths.items()}
