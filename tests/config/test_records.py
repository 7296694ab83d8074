"""Records from other people: only values, and no code except this package's and that of trusted modules."""

import sys
from pathlib import Path

import pytest

from framework.config.nodes import check_component
from framework.config.records import Record, modules_of
from framework.data.examples.table import TableData
from framework.errors import CheckpointError, ConfigError
from framework.runs.task_parts import data_kind
from framework.runs.trained import build_task
from framework.tasks.sequence_classification.task import SequenceClassificationTask
from framework.tasks.task import Task
from tests.support.tasks.recorded import recorded

TASK = "framework.tasks.sequence_classification.task.SequenceClassificationTask"
DATA = "framework.data.examples.table.TableData"


def record(node: object, path: str = "task", *trust: str) -> Record:
    return Record(Path("stranger/task.json"), path, node, trust)


def shell(trace: Path) -> dict[str, str]:
    return {"_target_": "subprocess.getoutput", "cmd": f"touch {trace}"}


@pytest.mark.parametrize("key", ["best_metric", "class_weights", "max_length", "pooling"])
def test_a_nested_target_of_another_author_never_runs(key, tmp_path):
    node = {**recorded("sequence_classification"), key: shell(tmp_path / "trace")}
    with pytest.raises(ConfigError, match=r"stranger/task.json names the class 'subprocess.getoutput'"):
        build_task(record(node), {})
    # Even from a trusted module and on the user's own command line, a value is no part.
    with pytest.raises(CheckpointError, match="has the `_target_`"):
        build_task(record(node, "task", "subprocess"), {})
    with pytest.raises(ConfigError, match="has the `_target_`"):
        check_component("task", node).build()
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("value", [{"a": "list"}, [{"a": "list"}]])
def test_targets_inside_free_values_are_detected(value, tmp_path):
    attack = shell(tmp_path / "trace")
    nested = [{"column": attack}] if isinstance(value, list) else {"column": attack}
    for where in (nested, attack):
        node = {"_target_": DATA, "train": "rows.csv", "where": where}
        with pytest.raises(ConfigError, match=r"names the class .subprocess\.getoutput"):
            record(node, "data").component(TableData)
    assert not (tmp_path / "trace").exists()


def test_functions_of_this_package_are_rejected_as_parts(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    remove = {"_target_": "framework.checkpoint.layout.remove", "folder": str(kept)}
    for node in (remove, {**recorded("translation"), "search": remove}):
        with pytest.raises(CheckpointError, match="which is not a class"):
            build_task(record(node), {})
    assert kept.is_dir()


def test_a_class_of_another_kind_is_rejected():
    with pytest.raises(CheckpointError, match=r"`task._target_` in stranger/task.json is .* It must be a Task"):
        build_task(record({"_target_": DATA, "train": "rows.csv"}), {})
    node = {**recorded("translation"), "search": {"_target_": DATA, "train": "rows.csv"}}
    with pytest.raises(CheckpointError, match=r"`task.search` has the `_target_` .*TableData"):
        build_task(record(node), {})
    with pytest.raises(CheckpointError, match="must be a TableData"):
        record({"_target_": TASK, "max_length": 8}, "data").component(data_kind(SequenceClassificationTask))


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """Writes a module that creates a file when it is imported."""
    folder = tmp_path / "foreign_parts"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "own.py").write_text(
        "from pathlib import Path\n"
        "from framework.tasks.sequence_classification.task import SequenceClassificationTask\n"
        f"Path({str(tmp_path / 'trace')!r}).touch()\n"
        "class OwnTask(SequenceClassificationTask):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "trace"
    for name in ("foreign_parts", "foreign_parts.own"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("trust", [(), ("foreign",), ("foreign_parts.other",)])
def test_a_module_is_imported_only_if_it_is_trusted(foreign, trust):
    node = {**recorded("sequence_classification"), "_target_": "foreign_parts.own.OwnTask"}
    with pytest.raises(ConfigError, match=r"add trust=\[foreign_parts.own\]"):
        build_task(record(node, "task", *trust), {})
    assert not foreign.exists()


@pytest.mark.parametrize("trust", ["foreign_parts", "foreign_parts.own"])
def test_a_trusted_module_or_package_provides_its_tasks(foreign, trust):
    node = {**recorded("sequence_classification"), "_target_": "foreign_parts.own.OwnTask"}
    task = build_task(record(node, "task", trust), {})
    assert type(task).__name__ == "OwnTask" and isinstance(task, Task)
    assert foreign.exists()


def test_a_config_names_the_modules_that_its_user_trusts():
    config = {"task": {"_target_": "mine.task.Own", "parts": [{"_target_": "other.Part"}]}, "seed": 1}
    assert modules_of(config) == ("mine.task", "other")


def test_a_masked_secret_is_requested():
    node = {"_target_": DATA, "train": "https://***hidden***@host/rows.csv"}
    with pytest.raises(ConfigError, match=r"`data.train` in .* Set `data` on the command line"):
        record(node, "data").component(TableData)


@pytest.mark.parametrize(
    "node", [5, None, [], {}, {"_target_": None}, {"_target_": 5}, {"_target_": TASK, "max_length": "long"}]
)
def test_damaged_records_are_one_error(node):
    with pytest.raises((ConfigError, CheckpointError), match=r"stranger/task\.json"):
        build_task(record(node), {})
