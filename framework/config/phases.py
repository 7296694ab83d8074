"""Phases of a run: parts with settings of their own, trained one after the other in one run folder.

Published pre-training has phases, such as short sequences followed by long ones. A phase is a set of changes to the
config of the run. Each phase ends with a checkpoint, and the next one begins by resuming from it under its own
settings. Steps are counted over the whole run.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from framework.config.nodes import TARGET_KEY
from framework.errors import ConfigError, FrameworkError
from framework.random import key

PHASES = "phases"
PHASE = "phase"
"""Key of a phase's config that names the phase; the config of a run without phases does not have it."""
LAST_STEP = "last_step"
"""Key of a saved phase: the step of the run after which the phase ends."""

_GROUPS = ("model", "task", "data", "augmentation", "optimizer", "regularization", "schedule", "trainer")
_OPTIMIZER_STATE = "optimizer_state"
_EXCLUSIVE = (("max_steps", "max_tokens", "max_epochs"), ("global_batch_size", "global_batch_tokens"))
"""Keys of the trainer of which one replaces the other."""


@dataclass(frozen=True)
class Phase:
    """Part of a run.

    Attributes:
        name: Name; None: the run has no phases, and this is the whole run.
        number: Number of the phases before it.
        resets_optimizer: True: the optimizer begins the phase without state; False: with that of the phase before.
    """

    name: str | None = None
    number: int = 0
    resets_optimizer: bool = False

    def seed(self, seed: int) -> int:
        """Returns the seed of the phase, so that phases that read the same data read it in different orders."""
        return seed if self.number == 0 else key(seed, "phase", self.number) >> 1


WHOLE_RUN = Phase()


def phase_configs(config: Mapping[str, Any]) -> list[tuple[Phase, dict[str, Any]]]:
    """Returns each phase with its config: that of the run with the changes of the phase.

    A mapping changes single keys. One that names another class replaces the group.

    Args:
        config: Config in plain containers, interpolations resolved.

    Raises:
        ConfigError: A phase is not a mapping, changes a key that is the same in all phases, or has an unknown value of
            `optimizer_state`.
    """
    changes_by_name = config.get(PHASES) or {}
    if not isinstance(changes_by_name, Mapping):
        raise ConfigError(
            f"`phases` is {changes_by_name!r}. It maps the name of each phase to its changes. Write, for example, "
            "phases: {main: {}, context: {data: {max_length: 512}}}."
        )
    if not changes_by_name:
        return [(WHOLE_RUN, dict(config))]
    phases = []
    for number, (name, changes) in enumerate(changes_by_name.items()):
        state = _check_phase(name, changes, number)
        changed = {group: _merged(config.get(group), changes[group]) for group in _GROUPS if group in changes}
        _exclude(changed, changes)
        phases.append((Phase(str(name), number, state == "reset"), {**config, **changed, PHASE: str(name)}))
    return phases


def _check_phase(name: object, changes: object, number: int) -> str:
    """Checks the changes of a phase and returns its handling of the optimizer's state."""
    if not isinstance(changes, Mapping | None):
        raise ConfigError(
            f"`phases.{name}` is {changes!r}. A phase is a mapping of config groups, and an empty one changes nothing. "
            "Write, for example, {data: {max_length: 512}}."
        )
    for group in changes or {}:
        if group not in (*_GROUPS, _OPTIMIZER_STATE):
            raise ConfigError(
                f"`phases.{name}.{group}` cannot change within a run. Phases may change {', '.join(_GROUPS)} and set "
                f"{_OPTIMIZER_STATE}. Set `{group}` for the whole run."
            )
    state = (changes or {}).get(_OPTIMIZER_STATE, "keep")
    if state not in ("keep", "reset") or (number == 0 and state == "reset"):
        raise ConfigError(
            f"`phases.{name}.{_OPTIMIZER_STATE}` is {state!r}. It is keep, or, except in the first phase, reset. "
            "Choose keep to continue with the optimizer's state of the phase before."
        )
    return str(state)


def _merged(base: Any, changes: Any) -> Any:
    if not isinstance(base, Mapping) or not isinstance(changes, Mapping):
        return changes
    if TARGET_KEY in changes and changes[TARGET_KEY] != base.get(TARGET_KEY):
        return dict(changes)
    return {**base, **{name: _merged(base.get(name), value) for name, value in changes.items()}}


def _exclude(changed: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Clears keys of the run's trainer that exclude a key of the phase's."""
    given = changes.get("trainer") or {}
    for names in _EXCLUSIVE:
        if any(given.get(name) is not None for name in names):
            changed["trainer"] |= {name: given.get(name) for name in names}


@contextmanager
def naming_phase(phase: Phase) -> Iterator[None]:
    """Context in which errors of a config name the phase."""
    try:
        yield
    except FrameworkError as error:
        if phase.name is None:
            raise
        raise type(error)(f"phase {phase.name}: {error}") from error


def check_phases(shapes: Sequence[Mapping[str, tuple[int, ...]]], configs: Sequence[Mapping[str, Any]]) -> None:
    """Checks that each phase can continue with the weights and the optimizer of the first one.

    Args:
        shapes: Shape of each parameter by name, for each phase.
        configs: Config of each phase.

    Raises:
        ConfigError: A phase has other parameters, another optimizer, or a setting that works on whole runs only.
    """
    if len(configs) == 1:
        return
    first, others = configs[0], configs[1:]
    if first.get("privacy"):
        raise ConfigError(
            "`privacy` is set, and the run has phases. The guarantee is computed for one sampling rate and one number "
            "of steps. Remove `phases`, or use privacy=none."
        )
    for config, its_shapes in zip(others, shapes[1:], strict=True):
        name = config[PHASE]
        differing = sorted(
            each for each in shapes[0].keys() | its_shapes.keys() if shapes[0].get(each) != its_shapes.get(each)
        )
        if differing:
            raise ConfigError(
                f"phase {name}: parameter {differing[0]} has shape {its_shapes.get(differing[0])} and in phase "
                f"{first[PHASE]} {shapes[0].get(differing[0])}. All phases train the same parameters. Change only "
                "settings of model and task that keep them, or start another run with init_from."
            )
        for key_name in ("optimizer", "trainer.freeze", "trainer.ema_decay"):
            if _structure(first, key_name) != _structure(config, key_name):
                raise ConfigError(
                    f"phase {name}: `{key_name}` differs from phase {first[PHASE]}: {_structure(config, key_name)} and "
                    f"{_structure(first, key_name)}. The state of the optimizer continues, so its class and its "
                    "parameters must stay. Remove the key from the phase."
                )
    for config in configs:
        if config["trainer"].get("early_stopping_patience") is not None:
            raise ConfigError(
                f"phase {config[PHASE]}: `trainer.early_stopping_patience` is set. A phase has a fixed length, because "
                "the next one begins at its last step. Set it to null."
            )


def _structure(config: Mapping[str, Any], name: str) -> Any:
    """Returns what the state of the optimizer depends on: its classes, or the value of a key of the trainer."""
    if name == "optimizer":
        return _classes(config["optimizer"])
    return config["trainer"].get(name.removeprefix("trainer.")) or None


def _classes(node: Mapping[str, Any]) -> list[str]:
    nested = [each for value in node.values() if isinstance(value, Mapping) for each in _classes(value)]
    return [str(node[TARGET_KEY]), *nested] if TARGET_KEY in node else nested


def with_results(config: Mapping[str, Any], results: Mapping[str | None, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Returns the config of a phase with what assembling found for each phase: complete model and last step.

    Args:
        config: Config of a phase, or of a run without phases, which stays the same.
        results: Values by name of the phase.
    """
    if PHASE not in config:
        return config
    return {**config, PHASES: {name: {**(each or {}), **results[name]} for name, each in config[PHASES].items()}}


def model_at(config: Mapping[str, Any], step: int) -> Mapping[str, Any]:
    """Returns the model config under which a step of a run was trained.

    Args:
        config: Saved config of the run, which is that of its newest phase.
        step: Number of completed steps.
    """
    name = phase_of(config, step)
    return (config if name is None else config[PHASES][name])["model"]  # type: ignore[no-any-return]


def phase_of(config: Mapping[str, Any], step: int) -> str | None:
    """Returns the name of the phase of a saved config that trained a step; None if the run has no phases."""
    phases = config.get(PHASES) or {}
    return next((name for name, phase in phases.items() if step <= phase[LAST_STEP]), next(reversed(phases), None))


def phase_ends(config: Mapping[str, Any]) -> frozenset[int]:
    """Returns the last step of each phase of a saved config; empty if the run has no phases."""
    return frozenset(phase[LAST_STEP] for phase in (config.get(PHASES) or {}).values())
