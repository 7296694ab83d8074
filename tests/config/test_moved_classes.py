"""Moved classes: older configs and run folders name them by their former module."""

import pytest

from framework.config.identity import check_same_run, identity_text
from framework.config.moved_classes import _FORMER, former_name
from framework.config.nodes import import_target
from framework.errors import ConfigError


@pytest.mark.parametrize(("current", "former"), _FORMER.items())
def test_both_names_import_the_class(current, former):
    target = import_target("data", former)
    assert target is import_target("data", current)
    assert f"{target.__module__}.{target.__qualname__}" == current


def test_a_config_keeps_its_identity():
    before = {"data": {"_target_": "framework.data.examples.tagged.TaggedData", "seed": 1}}
    now = {"data": {"_target_": "framework.tasks.token_classification.data.TaggedData", "seed": 1}}
    assert identity_text(now) == identity_text(before)
    assert identity_text(before) == '{"data._target_": "framework.data.examples.tagged.TaggedData", "data.seed": 1}'
    check_same_run("run", before, now)
    check_same_run("run", now, before)
    with pytest.raises(ConfigError, match=r"data\._target_"):
        check_same_run("run", before, {"data": {**now["data"], "_target_": "framework.tasks.translation.data.X"}})


def test_other_values_do_not_change():
    assert [former_name(value) for value in ("framework.optim.muon.Muon", 1, None, [])] == [
        *("framework.optim.muon.Muon", 1, None, []),
    ]
