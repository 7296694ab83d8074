"""Launchers and sweepers of ours, made known to Hydra."""

import importlib
import sys
from types import ModuleType

from hydra.core.plugins import Plugins
from hydra.plugins.plugin import Plugin

_NAMESPACE = "hydra_plugins"
PLUGIN_MODULE = f"{_NAMESPACE}.cloze"
"""The module that a plugin's class must name as its own."""


def register_plugin(plugin: type[Plugin]) -> None:
    """Makes a plugin known to Hydra, whose config then has `_target_: hydra_plugins.cloze.NAME`.

    Hydra 1.3 takes plugins only from the top-level package `hydra_plugins` and imports them by name, where this
    project has one package of its own. So the module is made here, in the package of other plugins where there is one.

    Args:
        plugin: Its `__module__` is `PLUGIN_MODULE`.
    """
    plugins = Plugins.instance()  # looks for installed ones, and must not meet the module below
    try:
        parent = importlib.import_module(_NAMESPACE)
    except ModuleNotFoundError:
        parent = sys.modules.setdefault(_NAMESPACE, ModuleType(_NAMESPACE))
    module = sys.modules.setdefault(PLUGIN_MODULE, ModuleType(PLUGIN_MODULE))
    setattr(parent, PLUGIN_MODULE.rpartition(".")[2], module)
    setattr(module, plugin.__name__, plugin)
    plugins.register(plugin)
