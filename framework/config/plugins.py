"""Registers the launchers and sweepers of this project with Hydra."""

import importlib
import sys
from types import ModuleType

from hydra.core.plugins import Plugins
from hydra.plugins.plugin import Plugin

_NAMESPACE = "hydra_plugins"
PLUGIN_MODULE = f"{_NAMESPACE}.cloze"
"""Value of `__module__` that the class of a plugin must have."""


def register_plugin(plugin: type[Plugin]) -> None:
    """Registers a plugin with Hydra. Its config then has `_target_: hydra_plugins.cloze.NAME`.

    Hydra 1.3 imports plugins only from the top-level package `hydra_plugins`, which this project does not install.
    Therefore the module is created here, inside that package if other plugins have installed it.

    Args:
        plugin: Class of the plugin, whose `__module__` is `PLUGIN_MODULE`.
    """
    plugins = Plugins.instance()  # first: it scans for installed plugins and must not import the module below
    try:
        parent = importlib.import_module(_NAMESPACE)
    except ModuleNotFoundError:
        parent = sys.modules.setdefault(_NAMESPACE, ModuleType(_NAMESPACE))
    module = sys.modules.setdefault(PLUGIN_MODULE, ModuleType(PLUGIN_MODULE))
    setattr(parent, PLUGIN_MODULE.rpartition(".")[2], module)
    setattr(module, plugin.__name__, plugin)
    plugins.register(plugin)
