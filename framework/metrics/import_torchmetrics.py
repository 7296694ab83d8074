"""Imports torchmetrics without SciPy's signal processing. It must come before Lightning, which imports torchmetrics.

torchmetrics (1.9) imports `scipy.signal`, which takes most of a second, only to define a name that SciPy has removed
and that another library needs. No metric of torchmetrics uses it.
"""

import importlib.util
import sys
from types import ModuleType

_UNUSED = "scipy.signal"


def _import() -> None:
    if "torchmetrics" in sys.modules or _UNUSED in sys.modules or importlib.util.find_spec("scipy") is None:
        return
    stand_in = ModuleType(_UNUSED)
    stand_in.hamming = None  # type: ignore[attr-defined]
    sys.modules[_UNUSED] = stand_in
    try:
        import torchmetrics  # noqa: F401
    finally:
        del sys.modules[_UNUSED]


_import()
