"""Cloze: a distributed trainer for transformer encoders.

`load` and the commands (`framework.train.run`) are imported when they are first used, so `import framework` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from framework.trained_model import load as load

_COMMANDS = ("audit", "evaluate", "explain", "export", "mine", "plan", "predict", "prepare", "report", "train")


def __getattr__(name: str) -> Any:
    if name == "load":
        from framework.trained_model import load

        return load
    if name in _COMMANDS:
        return importlib.import_module(f"framework.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
