"""Values that Hydra cannot parse are quoted; others are not changed."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from framework.config.quoting import with_quotes


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("data.label_column=#class", "#class"),
        ("data.label_column=review text (old)", "review text (old)"),
        ("data.label_column=标签", "标签"),
        ("data.train=data/it's here & there.csv", "data/it's here & there.csv"),
        ('data.text_column=say "it\'s" so', 'say "it\'s" so'),
        ("data.text_column=C:\\new\\#x\\", "C:\\new\\#x\\"),
        ("data.text_column=a=b", "a=b"),
        ("data.labels=[#1 fan,not good, 很好]", ["#1 fan", "not good", "很好"]),
        ("data.labels=['a, b',#c,5,[#d,e]]", ["a, b", "#c", 5, ["#d", "e"]]),
        ("data.labels=[it's,#b]", ["it's", "#b"]),
        ("data.where={source: #imdb, kind: 电影, n: 3}", {"source": "#imdb", "kind": "电影", "n": 3}),
        ("+data.text_column=größer", "größer"),
        ("text=A warm, funny film (1999): yes", "A warm, funny film (1999): yes"),
        ("text=Good, but long", "Good, but long"),
        ("text=[MASK] is [MASK]", "[MASK] is [MASK]"),
        ("text=[A [MASK] film,[MASK] or [MASK]]", ["A [MASK] film", "[MASK] or [MASK]"]),
        ("text=['Good, but long',Bad]", ["Good, but long", "Bad"]),
    ],
)
def test_the_value_is_the_typed_text(argument, value):
    (quoted,) = with_quotes([argument])
    override = OverridesParser.create().parse_override(quoted)
    assert not override.is_sweep_override()
    actual = override.value()
    assert ({str(key): item for key, item in actual.items()} if isinstance(value, dict) else actual) == value
    assert override.input_line.partition("=")[0] == argument.partition("=")[0]


@pytest.mark.parametrize(
    "argument",
    [
        "data.label_column='#class'",
        "data.labels=[not good,good]",
        "optimizer.lr=1e-3,2e-3",
        "seed=range(1,3)",
        "~data.where",
        "--multirun",
        "data.where={#key: x}",
        "run.name=${oc.env:HOME}",
        "data.train=",
    ],
)
def test_values_that_hydra_parses_or_nobody_can_stay_unchanged(argument):
    assert with_quotes([argument]) == [argument]


def test_each_value_of_a_sweep_is_quoted():
    (quoted,) = with_quotes(["data.label_column=label,#class"])
    assert OverridesParser.create().parse_override(quoted).is_sweep_override()
