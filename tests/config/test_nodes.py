"""The checker of config nodes: keys, types, nested parts, and its messages."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from framework.config.nodes import Component, check_arguments, check_component, check_value, hints_of
from framework.errors import ConfigError


class Part:
    def __init__(
        self, size: int, rate: float = 0.5, names: Sequence[str] = (), max_steps: int = 0, inner: Any = None
    ) -> None:
        self.size, self.rate, self.names, self.max_steps, self.inner = size, rate, names, max_steps, inner


@dataclass(frozen=True)
class Small:
    width: int
    name: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Whole:
    small: Small
    part: Component = field(metadata={"supplied": ("max_steps",)})
    folder: Path | None = None


PART = f"{__name__}.Part"


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, int, 3),
        (3, float, 3.0),
        (None, int | None, None),
        ("x", str | Sequence[str], "x"),
        (["x"], str | Sequence[str], ["x"]),
        ([1, 2], tuple[float, ...], (1.0, 2.0)),
        ({"a": 1}, Mapping[str, object] | None, {"a": 1}),
        ("runs", Path, Path("runs")),
        (True, bool, True),
        ("b", Literal["a", "b"], "b"),
        ({"width": 4}, Small, Small(4)),
        ({"width": 4}, Small | None, Small(4)),
        ("anything", Any, "anything"),
    ],
)
def test_valid_values(value, hint, expected):
    result = check_value("key", value, hint)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(
    ("value", "hint", "words"),
    [
        ("3", int, "`key` is '3'. It must be a whole number"),
        (True, int, "`key` is True. It must be a whole number"),
        (3.5, int, "It must be a whole number"),
        (True, float, "It must be a finite number"),
        (float("nan"), float, "`key` is nan. It must be a finite number"),
        (float("-inf"), float | None, "`key` is -inf. It must be a finite number or null"),
        (10**400, float, "It must be a finite number"),
        (float("nan"), int | float | str, "It must be a whole number or a finite number or text"),
        ({"a": float("inf")}, Mapping[str, float], "`key.a` is inf. It must be a finite number"),
        (1, bool, "It must be true or false"),
        (None, int, "It must be a whole number"),
        ("x", int | None, "It must be a whole number or null"),
        ("c", Literal["a", "b"], "It must be one of a, b"),
        (True, Literal[1, 2], "It must be one of 1, 2"),
        ([1, "x"], Sequence[int], r"`key\[1\]` is 'x'. It must be a whole number"),
        ("xy", Sequence[int], "It must be a list, each a whole number"),
        ({"a": "b"}, Mapping[str, int], "`key.a` is 'b'"),
        (3, Small, "It must be a group of keys"),
        ({"width": 4, "nam": "a"}, Small, "unknown config key `key.nam`. Did you mean `name`"),
        ({}, Small, "config key `key.width` is missing"),
    ],
)
def test_invalid_values(value, hint, words):
    with pytest.raises(ConfigError, match=words):
        check_value("key", value, hint)


def test_a_complete_config_becomes_dataclasses_and_components():
    whole = Whole(
        **check_arguments("", {"small": {"width": 2}, "part": {"_target_": PART, "size": 3, "rate": 1}}, Whole)
    )
    assert whole.small == Small(2)
    part = whole.part.build(max_steps=7, not_taken_by_the_part=1)
    assert (part.size, part.rate, part.max_steps) == (3, 1.0, 7)
    assert isinstance(part.rate, float)


def test_nested_parts_are_built_with_the_outer_one():
    node = {
        "_target_": PART,
        "size": 1,
        "inner": {"_target_": PART, "size": 2, "inner": [{"_target_": PART, "size": 3}]},
    }
    component = check_component("part", node)
    assert isinstance(component.arguments["inner"], Component)
    built = component.build()
    assert built.inner.size == 2


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({"_target_": PART, "size": 1, "sise": 2}, "unknown config key `part.sise`. Did you mean `size`"),
        ({"_target_": PART, "size": 1, "zzzzz": 2}, "Valid keys are inner, max_steps, names, rate, size"),
        ({"_target_": PART}, "`part.size` is missing"),
        ({"_target_": PART, "size": "big"}, "`part.size` is 'big'"),
        ({"_target_": PART, "size": 1, "inner": {"_target_": PART, "sise": 1}}, "unknown config key `part.inner.sise`"),
        ({"size": 1}, "`part` has no `_target_`"),
        ({"_target_": "framework.nowhere.Thing"}, "cannot be imported"),
        ({"_target_": "framework.errors.NoSuchError"}, "cannot be imported"),
        ({"_target_": "nodots"}, "cannot be imported"),
        ({"_target_": "framework.batch.IGNORE_INDEX"}, "which is not a class"),
        ("text", "`part` is 'text'. It must be a group of keys"),
    ],
)
def test_parts_that_cannot_be_built(node, words):
    with pytest.raises(ConfigError, match=words):
        check_component("part", node)


def test_a_supplied_value_may_be_omitted_or_null_or_given():
    required = check_component("part", {"_target_": PART, "size": None}, supplied=("size",))
    assert required.build(size=5).size == 5
    assert check_component("part", {"_target_": PART, "size": 6}, supplied=("size",)).build(size=5).size == 6


@dataclass(frozen=True)
class Edges:
    is_flat: ClassVar[bool] = True
    width: int = 1
    colour: str | None = None


class Framed:
    def __init__(self, name: str, edges: Edges = Edges()) -> None:
        self.name, self.edges = name, edges


def test_the_fields_of_a_flat_group_are_keys_beside_the_others():
    node = {"_target_": f"{__name__}.Framed", "name": "a", "width": 3}
    assert check_component("frame", node).build().edges == Edges(3)
    assert hints_of(Framed)["width"] is int
    for wrong, message in (
        ({"widht": 3}, "unknown config key `frame.widht`. Did you mean `width`"),
        ({"edges": {}}, "unknown config key `frame.edges`"),
        ({"width": "x"}, "`frame.width` is 'x'. It must be a whole number"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            check_component("frame", {**node, **wrong})
