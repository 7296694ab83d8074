"""The task protocol rejects classes that still use names of earlier versions."""

import sys

import pytest

from framework.config.nodes import import_target
from framework.errors import ConfigError

OLD_NAME = """
from framework.tasks.sequence_classification.task import SequenceClassificationTask


class OldTask(SequenceClassificationTask):
    def {name}(self):
        return {{}}
"""


@pytest.mark.parametrize(("old", "new"), [("side_config", "to_record"), ("side_files", "extra_files")])
def test_methods_with_their_former_names_are_rejected(old, new, tmp_path, monkeypatch):
    (tmp_path / f"task_with_{old}.py").write_text(OLD_NAME.format(name=old))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError) as info:
        import_target("task", f"task_with_{old}.OldTask")
    assert str(info.value) == (
        f"task_with_{old}.OldTask defines {old}, which Cloze no longer calls. "
        f"The method is now called {new}. Rename it."
    )
    assert f"task_with_{old}" not in sys.modules


@pytest.mark.parametrize("name", ["to_record", "extra_files"])
def test_methods_with_their_present_names_are_accepted(name, tmp_path, monkeypatch):
    (tmp_path / f"task_with_{name}.py").write_text(OLD_NAME.format(name=name))
    monkeypatch.syspath_prepend(tmp_path)
    assert import_target("task", f"task_with_{name}.OldTask").__name__ == "OldTask"
