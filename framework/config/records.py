"""Validates components in the records of a run or an export, which may come from an untrusted source.

A record can build only typed values, and classes of this package or of modules that the user trusts by name. The name
of a module is checked before the module is imported.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.config.nodes import TARGET_KEY, Component, check_component, is_own
from framework.config.secrets import find_masked
from framework.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class Record:
    """Node of a record that describes a component.

    Attributes:
        file: File that contains the record.
        path: Config key of the node, for messages.
        node: Node in plain containers.
        trust: Modules whose classes the record may name in addition to those of this package.
    """

    file: Path
    path: str
    node: Any
    trust: Sequence[str] = ()

    def component(self, kind: type) -> Component:
        """Validates the component and returns it without building it.

        Args:
            kind: Base class of the component.

        Raises:
            ConfigError: The record names untrusted code, or contains a masked secret.
            CheckpointError: The record is damaged, or the component is not a subclass of `kind`.
        """
        for name in named_targets(self.node):
            self._check_trusted(name)
        masked = find_masked(self.node, self.path)
        if masked is not None:
            raise ConfigError(
                f"`{masked}` in {self.file} is masked, because secrets are not saved with a run. Set `{self.path}` on "
                "the command line."
            )
        try:
            component = check_component(self.path, self.node)
        except ConfigError as error:
            raise CheckpointError(
                f"{self.file} cannot be used: {error} The record is damaged, or another version of Cloze wrote it. "
                "Restore the file."
            ) from error
        if not (isinstance(component.target, type) and issubclass(component.target, kind)):
            raise CheckpointError(
                f"`{self.path}.{TARGET_KEY}` in {self.file} is {self.node[TARGET_KEY]!r}. It must be a "
                f"{kind.__name__}. Restore the file."
            )
        return component

    def _check_trusted(self, name: str) -> None:
        module = name.rpartition(".")[0]
        if is_own(module) or any(module == each or module.startswith(each + ".") for each in self.trust):
            return
        raise ConfigError(
            f"{self.file} names the class {name!r}, which is not part of Cloze. Code that a record names is executed "
            f"only if the command line trusts its module. If you know this code, add trust=[{module or name}]."
        )


def named_targets(node: Any) -> Iterator[str]:
    """Yields every `_target_` in a tree of plain containers."""
    if isinstance(node, Mapping):
        if TARGET_KEY in node:
            yield str(node[TARGET_KEY])
        for value in node.values():
            yield from named_targets(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from named_targets(value)


def modules_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the sorted modules that a config names. A user who composes the config trusts them."""
    return tuple(sorted({name.rpartition(".")[0] for name in named_targets(config)} - {""}))
