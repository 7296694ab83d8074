"""Adapts Hydra 1.3: hides bases, composes sweeps over config groups, shows comments in help, saves no multirun.yaml.

It also composes the config of a job once; Hydra composes it twice, the first time only for `hydra.mode`.

A base is a config file whose name begins with an underscore. Other config files include it; users do not choose it.
"""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra._internal.core_plugins.basic_sweeper as basic_sweeper
import hydra._internal.hydra as internal
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ResultDefault
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf
from typing_extensions import override

BASE_PREFIX = "_"
_JOB_LINE = "hydra.mode=RUN"
"""Override that Hydra appends if neither the command line nor a config file sets `hydra.mode`."""


class OfferedConfigs(ConfigRepository):
    """Config repository that omits bases from the options of a group: in help, messages, completion and `glob(*)`."""

    @override
    def get_group_options(self, group_name: str, results_filter: ObjectType | None = ObjectType.CONFIG) -> list[str]:
        options = super().get_group_options(group_name, results_filter)
        return [option for option in options if not option.startswith(BASE_PREFIX)]


class GroupSweepLoader(ConfigLoaderImpl):
    """Config loader that composes a sweep with the first choice of each swept group, and omits bases.

    Hydra omits swept groups. Then `experiment=a,b data.train=FILE` fails, because no data config with this key is
    chosen. Each job is composed later, with its own choices.
    """

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self.repository = OfferedConfigs(config_search_path)
        self._composed: tuple[str | None, list[str], DictConfig] | None = None

    @override
    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        if run_mode == RunMode.MULTIRUN and not validate_sweep_overrides:
            # Hydra reads only `hydra.mode`. Without a sweep, the job will have the same config.
            try:
                composed = super().load_configuration(config_name, overrides, RunMode.RUN, from_shell)
            except HydraException:
                if not any(each.is_sweep_override() for each in self._parse(overrides)):
                    raise
            else:
                self._composed = (config_name, [*overrides, _JOB_LINE], composed)
                return composed
        if self._composed is not None and self._composed[:2] == (config_name, overrides):
            composed = self._composed[2]
            composed.hydra.mode = run_mode
            composed.hydra.overrides.hydra.append(_JOB_LINE)
            self._composed = None
            return composed
        lines = self._first_choices(overrides) if run_mode == RunMode.MULTIRUN else overrides
        composed = super().load_configuration(config_name, lines, run_mode, from_shell, validate_sweep_overrides)
        if lines != overrides:
            replaced = dict(zip(lines, overrides, strict=True))
            composed.hydra.overrides.task = [replaced[line] for line in composed.hydra.overrides.task]
        return composed

    def _first_choices(self, overrides: list[str]) -> list[str]:
        return [
            f"{each.get_key_element()}={next(iter(each.sweep_string_iterator()))}"
            if each.is_discrete_sweep() and self.repository.group_exists(each.key_or_group)
            else line
            for each, line in zip(self._parse(overrides), overrides, strict=True)
        ]

    def _parse(self, overrides: list[str]) -> list[Override]:
        return OverridesParser.create(config_loader=self).parse_overrides(overrides)


class CommentedHelp(internal.Hydra):
    """Hydra whose `--help` prints the groups of the command and its config files with their comments.

    Attributes:
        register_plugins: Registers the launchers and sweepers of the command. Only a sweep needs them.
    """

    register_plugins: Callable[[], None]

    @override
    def multirun(
        self,
        config_name: str | None,
        task_function: TaskFunction,
        overrides: list[str],
        with_log_configuration: bool = True,
    ) -> Any:
        type(self).register_plugins()
        return super().multirun(config_name, task_function, overrides, with_log_configuration)

    @override
    def app_help(self, config_name: str | None, args_parser: ArgumentParser, args: Namespace) -> None:
        composed = self.compose_config(config_name, args.overrides, RunMode.RUN, with_log_configuration=False)
        chosen = self.config_loader.compute_defaults_list(config_name, list(args.overrides), RunMode.RUN)
        read = {group for group in chosen.overrides.known_choices if not group.startswith("hydra/")}
        read |= self._groups_of_several(config_name)
        files = "\n".join(
            f"# {name}\n{file.read_text(encoding='utf-8')}" for name, file in self._files(chosen.defaults)
        )
        sys.stdout.write(
            f"{composed.hydra.help.header}\n"
            f"== Groups: GROUP=OPTION chooses a file ==\n\n{self.format_config_groups(read.__contains__)}\n"
            "== Files: KEY=VALUE sets a key; `--cfg job` prints the composed config ==\n\n"
            f"{files}\n"
            "`--hydra-help` lists the options of Hydra.\n"
        )

    def _groups_of_several(self, config_name: str | None) -> set[str]:
        """Returns the groups of a command's defaults that may have several choices, such as `audit: []`.

        Hydra knows no choice of an empty list.
        """
        file = self._find(f"{config_name}.yaml")
        read: Any = {} if file is None else OmegaConf.to_container(OmegaConf.load(file))
        defaults = read.get("defaults", [])
        groups = [item for each in defaults if isinstance(each, dict) for item in each.items()]
        return {group for group, chosen in groups if isinstance(chosen, list)}

    def _files(self, chosen: Sequence[ResultDefault]) -> Iterator[tuple[str, Path]]:
        """Yields the name and path of each chosen config file, except those of Hydra.

        After the name of a base follows the package of its keys.
        """
        for each in dict.fromkeys((each.config_path, each.package) for each in chosen if each.config_path is not None):
            name = f"{each[0]}.yaml"
            file = self._find(name)
            if file is not None:
                yield f"{name}, keys of {each[1]}" if file.name.startswith(BASE_PREFIX) and each[1] else name, file

    def _find(self, name: str) -> Path | None:
        """Returns the path of a config file; None if Hydra contains it."""
        folders = [Path(source.path) for source in self.config_loader.get_sources() if source.scheme() == "file"]
        return next((folder / name for folder in folders if (folder / name).is_file()), None)


class UnsavedConfig(OmegaConf):
    """OmegaConf that does not save multirun.yaml, which would contain typed secrets.

    Each run folder has its own config.yaml.
    """

    @staticmethod
    @override
    def save(config: Any, f: Any, resolve: bool = False) -> None:
        del config, f, resolve


def use_seams(register_plugins: Callable[[], None]) -> None:
    """Makes Hydra's `main` use the classes above.

    Args:
        register_plugins: See `CommentedHelp`.
    """
    CommentedHelp.register_plugins = staticmethod(register_plugins)
    internal.ConfigLoaderImpl = GroupSweepLoader  # type: ignore[misc]
    internal.Hydra = CommentedHelp  # type: ignore[misc]


def write_no_sweep_config() -> None:
    """Stops Hydra's sweeper from writing multirun.yaml. Call it after Hydra has loaded its plugins, which undoes it."""
    basic_sweeper.OmegaConf = UnsavedConfig  # type: ignore[misc]
