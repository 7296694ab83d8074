"""Adapts Hydra 1.3 in two points: sweeps over config groups, and help texts with the comments of conf/."""

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

import hydra._internal.hydra as internal
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig
from typing_extensions import override


class GroupSweepLoader(ConfigLoaderImpl):
    """Composes the config of a sweep with the first choice of each swept group.

    Hydra omits swept groups, so `experiment=a,b data.train=FILE` fails: no data config with this key is chosen. Each
    job is composed separately later, with its own choices.
    """

    @override
    def load_configuration(
        self,
        config_name: str | None,
        overrides: list[str],
        run_mode: RunMode,
        from_shell: bool = True,
        validate_sweep_overrides: bool = True,
    ) -> DictConfig:
        lines = self._first_choices(overrides) if run_mode == RunMode.MULTIRUN else overrides
        composed = super().load_configuration(config_name, lines, run_mode, from_shell, validate_sweep_overrides)
        if lines != overrides:
            replaced = dict(zip(lines, overrides, strict=True))
            composed.hydra.overrides.task = [replaced[line] for line in composed.hydra.overrides.task]
        return composed

    def _first_choices(self, overrides: list[str]) -> list[str]:
        parsed = OverridesParser.create(config_loader=self).parse_overrides(overrides)
        return [
            f"{each.get_key_element()}={next(iter(each.sweep_string_iterator()))}"
            if each.is_discrete_sweep() and self.repository.group_exists(each.key_or_group)
            else line
            for each, line in zip(parsed, overrides, strict=True)
        ]


class CommentedHelp(internal.Hydra):
    """Prints the config files unchanged for `--help`; Hydra itself drops their comments."""

    @override
    def app_help(self, config_name: str | None, args_parser: ArgumentParser, args: Namespace) -> None:
        composed = self.compose_config(config_name, args.overrides, RunMode.RUN, with_log_configuration=False)
        groups = self.format_config_groups(lambda group: group != "hydra" and not group.startswith("hydra/"))
        files = "\n".join(
            f"# {name}\n{file.read_text(encoding='utf-8')}" for name, file in self._files(config_name, args.overrides)
        )
        sys.stdout.write(
            f"{composed.hydra.help.header}\n"
            f"== Groups: GROUP=OPTION chooses a file ==\n\n{groups}\n"
            "== Files: KEY=VALUE sets a key; `--cfg job` prints what they compose to ==\n\n"
            f"{files}\n"
            "`--hydra-help` lists the options of Hydra.\n"
        )

    def _files(self, config_name: str | None, overrides: Sequence[str]) -> Iterator[tuple[str, Path]]:
        """Yields the name and path of each config file that these overrides choose, except those of Hydra."""
        loader = self.config_loader
        folders = [Path(source.path) for source in loader.get_sources() if source.scheme() == "file"]
        chosen = loader.compute_defaults_list(config_name, list(overrides), RunMode.RUN).defaults
        for name in dict.fromkeys(f"{each.config_path}.yaml" for each in chosen if each.config_path is not None):
            found = next((folder / name for folder in folders if (folder / name).is_file()), None)
            if found is not None:
                yield name, found


def use_seams() -> None:
    """Makes Hydra's `main` use the classes above. Repeated calls have no further effect."""
    internal.ConfigLoaderImpl = GroupSweepLoader  # type: ignore[misc]
    internal.Hydra = CommentedHelp  # type: ignore[misc]
