"""The data with which a new file can be evaluated."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from framework.config.records import Record
from framework.errors import ConfigError
from framework.runs.evaluation_data import changed_data


def test_a_run_on_data_without_files_by_split_accepts_no_new_file():
    node = {"_target_": "framework.data.store_data.StoreData", "store": "store", "validation_fraction": 0.05}
    trained = SimpleNamespace(data_layout=Record(Path("config.yaml"), "data", node))
    with pytest.raises(ConfigError, match="run=mine was trained on StoreData, which has no file per split"):
        changed_data(trained, "mine", "test", {"test": "new.txt"})  # type: ignore[arg-type]
