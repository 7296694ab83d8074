"""Private runs: refused settings, the file of the secret, and what a run writes."""

import json
import stat
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from framework.config.nodes import Component
from framework.data.augmentation.edits import Delete, Replace
from framework.data.facts import SplitFacts
from framework.data.flat_source import FlatSource
from framework.data.planning.mixture import Mixture
from framework.data.sentence_pairs import SentenceChunks
from framework.data.store.sequence_index import Division, SequenceIndex
from framework.data.store_data import StoreData
from framework.errors import CheckpointError, ConfigError
from framework.modules.passes.one_pass import OnePass
from framework.modules.passes.r_drop import RDrop
from framework.privacy.guarantee import Guarantee, PrivacySettings
from framework.runs.folder import RunFolder
from framework.runs.privacy import SECRET_FILE, Privacy, build_privacy, check_privacy, delete_secret, open_secret
from framework.runs.privacy_units import private_items, reading_units
from framework.tasks.embedding.task import EmbeddingTask
from framework.tasks.pretraining.features import PretrainingSource
from framework.tasks.pretraining.task import PretrainingTask
from framework.tasks.sequence_classification.task import SequenceClassificationTask
from framework.tracking.privacy_file import PRIVACY_FILE, privacy_spent
from tests.support.training.toy_run import build_module

GUARANTEE = Guarantee(8.0, 1e-5, "row", 1.0, 0.6, 32, 0.01, 100)


def settings(**changes: Any) -> Any:
    """Returns the settings that `check_privacy` reads; a key with a dot changes a part."""
    parts: dict[str, Any] = {
        "privacy": PrivacySettings(8.0, 1e-5, 1.0),
        "strategy": SimpleNamespace(name="fsdp2", compile="auto"),
        "precision": SimpleNamespace(name="bf16"),
        "trainer": SimpleNamespace(on_non_finite="stop", batch_warmup_start=None, micro_batch_tokens=16),
        "run": SimpleNamespace(resume="auto"),
        "regularization": Component("regularization", OnePass, {}),
        "augmentation": None,
        "task": Component("task", SequenceClassificationTask, {"class_weights": None, "group_loss": None}),
        "data": Component("data", dict, {"labels": ["0", "1"]}),
    }
    for name, value in changes.items():
        part, _, key = name.partition("__")
        if not key:
            parts[part] = value
        elif isinstance(parts[part], Component):
            parts[part] = replace(parts[part], arguments={**parts[part].arguments, key: value})
        else:
            setattr(parts[part], key, value)
    return SimpleNamespace(**parts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategy__name": "tp"}, "`strategy` is tp, .* Use strategy=fsdp2"),
        ({"strategy__name": "fsdp2_tp"}, "`strategy` is fsdp2_tp"),
        ({"precision__name": "float8"}, "`precision` is float8"),
        ({"precision__name": "fp16"}, "`precision` is fp16"),
        ({"strategy__compile": "inductor"}, "`strategy.compile` is inductor"),
        ({"regularization": Component("regularization", RDrop, {})}, "`regularization` is RDrop"),
        ({"augmentation": Component("augmentation", Replace, {})}, "`augmentation` is Replace"),
        ({"trainer__on_non_finite": "skip"}, "`trainer.on_non_finite` is skip"),
        ({"run__resume": "runs/other"}, "`run.resume` is runs/other"),
        ({"task__class_weights": "balanced"}, "labels of all rows without noise"),
        ({"task__group_loss": "worst"}, "`task.group_loss` is worst"),
        ({"data__balance": "label"}, "`data.balance` is label"),
        ({"data__max_train_rows": 50}, "`data.max_train_rows` is 50"),
        ({"data__scheme": "auto"}, "`data.scheme` is auto"),
        ({"trainer__batch_warmup_start": 8}, "`trainer.batch_warmup_start` is 8"),
    ],
)
def test_settings_that_exclude_privacy_are_refused_with_a_reason(changes, message):
    with pytest.raises(ConfigError, match=message):
        check_privacy(settings(**changes))
    check_privacy(settings(**changes, privacy=None))


def test_duplicates_of_other_users_cannot_be_removed():
    users = PrivacySettings(8.0, 1e-5, 1.0, unit_column="user")
    with pytest.raises(ConfigError, match=r"`data\.deduplicate` is True, .* decide which rows of other units"):
        check_privacy(settings(privacy=users, data__deduplicate=True))
    check_privacy(settings(data__deduplicate=True))
    check_privacy(settings(privacy=users, data__deduplicate=False))


def test_other_settings_are_accepted():
    check_privacy(settings())
    check_privacy(settings(augmentation=Component("augmentation", Delete, {}), strategy__name="ddp"))
    check_privacy(settings(task__class_weights={"0": 2.0}))


def source_of(num_items: int, num_rows: int) -> FlatSource:
    source = FlatSource(np.ones(num_items * 3), np.full(num_items, 3), {}, {}, 8)
    source.facts = SplitFacts(rows=num_rows)
    return source


def build(task: Any, source: Any, relative_bias: str = "none", **changes: Any) -> Privacy | None:
    model = build_module(task=None).model
    model.encoder.config = replace(model.encoder.config, relative_bias=relative_bias)
    model.head = torch.nn.Module()
    chosen = settings(**changes)
    return build_privacy(chosen, task, private_items(chosen, task, source), model, 100, 50)


def task_with_labels(*labels: str) -> SequenceClassificationTask:
    task = SequenceClassificationTask()
    task.problem.labels = labels
    return task


def test_the_noise_follows_from_rows_batch_and_steps():
    privacy = build(task_with_labels("0", "1"), source_of(2000, 2000))
    assert privacy is not None
    guarantee = privacy.guarantee
    assert (guarantee.sampling_rate, guarantee.steps, guarantee.expected_batch) == (0.05, 50, 100)
    assert guarantee.spent(50) == pytest.approx(8.0, rel=1e-4)
    assert build(task_with_labels("0", "1"), source_of(2000, 2000), privacy=None) is None


def task_without_rows() -> SequenceClassificationTask:
    task = task_with_labels("0", "1")
    task.head_rows = {}
    return task


@pytest.mark.parametrize(
    ("task", "source", "changes", "message"),
    [
        (
            task_with_labels("0", "1"),
            source_of(2000, 1990),
            {},
            "1,990 rows of the training split give items",
        ),
        (task_with_labels("no", "yes"), source_of(2000, 2000), {"data__labels": None}, r"'data.labels=\[no,yes\]'"),
        (task_with_labels("0", "1"), object(), {}, "the training data of SequenceClassificationTask is object"),
        (task_without_rows(), source_of(2000, 2000), {}, "does not state `head_rows`.* translation lacks them"),
        (
            task_with_labels("0", "1"),
            source_of(2000, 2000),
            {"privacy": PrivacySettings(8.0, 1e-5, 1.0, "document")},
            "Only a token store has documents",
        ),
        (EmbeddingTask(), source_of(2000, 2000), {}, "compares the rows of a step with each other"),
    ],
)
def test_tasks_and_rows_that_exclude_privacy_are_refused(task, source, changes, message):
    with pytest.raises(ConfigError, match=message):
        build(task, source, **changes)


def test_positions_that_share_the_weights_of_tokens_are_refused():
    with pytest.raises(ConfigError, match=r"relative_bias is 'disentangled'.* run twice in a pass"):
        build(task_with_labels("0", "1"), source_of(2000, 2000), relative_bias="disentangled")


def folder_of(path: Path, has_steps: bool) -> RunFolder:
    checkpoint = path / "checkpoints" / "step_00000010" if has_steps else None
    return RunFolder(path, path / "checkpoints", checkpoint, is_new=not has_steps)


def drawn(folder: RunFolder, guarantee: Guarantee = GUARANTEE) -> torch.Tensor:
    privacy = Privacy(guarantee)
    open_secret(folder, privacy)
    return privacy.secret.normals(0, "weight", 0, 4)


def test_the_secret_is_made_once_readable_only_by_its_owner_and_deleted_at_the_end(tmp_path: Path):
    open_secret(folder_of(tmp_path, has_steps=False), None)
    assert not list(tmp_path.iterdir())
    first = drawn(folder_of(tmp_path, has_steps=False))
    path = tmp_path / SECRET_FILE
    assert path == tmp_path / "private" / "key" and path.stat().st_size == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert torch.equal(drawn(folder_of(tmp_path, has_steps=True)), first)
    assert path.read_bytes().hex() not in (tmp_path / PRIVACY_FILE).read_text()
    delete_secret(tmp_path)
    assert not path.parent.exists()
    with pytest.raises(CheckpointError, match=r"private/key, is missing.* deleted when a run has finished"):
        drawn(folder_of(tmp_path, has_steps=True))


def test_two_runs_have_different_secrets(tmp_path: Path):
    ours, theirs = (drawn(folder_of(tmp_path / name, has_steps=False)) for name in "ab")
    assert not torch.equal(ours, theirs)


def test_a_damaged_secret_ends_a_run_with_steps_and_is_replaced_without_any(tmp_path: Path):
    drawn(folder_of(tmp_path, has_steps=False))
    (tmp_path / SECRET_FILE).write_bytes(b"short")
    with pytest.raises(CheckpointError, match="is damaged"):
        drawn(folder_of(tmp_path, has_steps=True))
    drawn(folder_of(tmp_path, has_steps=False))
    assert (tmp_path / SECRET_FILE).stat().st_size == 32


def test_a_run_keeps_its_guarantee_and_one_without_steps_gets_a_new_secret(tmp_path: Path):
    first = drawn(folder_of(tmp_path, has_steps=False))
    longer = replace(GUARANTEE, steps=200, sigma=0.7)
    with pytest.raises(ConfigError, match=r"sigma 0\.6000 for 100 steps, and this config needs sigma 0\.7000 for 200"):
        drawn(folder_of(tmp_path, has_steps=True), longer)
    # The same noise with two sigmas would give it away.
    assert not torch.equal(drawn(folder_of(tmp_path, has_steps=False), longer), first)


def test_the_record_states_what_is_spent_and_what_is_not_covered(tmp_path: Path):
    assert privacy_spent(tmp_path, 10) is None
    drawn(folder_of(tmp_path, has_steps=False))
    record = privacy_spent(tmp_path, 10)
    assert record is not None
    assert record["spent_epsilon"] == pytest.approx(GUARANTEE.spent(10), abs=1e-4)
    assert record["accountant"].startswith("RDP") and record["sampling"] == "Poisson"
    assert any("validation" in each for each in record["not_covered"])
    (tmp_path / PRIVACY_FILE).write_text(json.dumps({"epsilon": 8.0}))
    assert privacy_spent(tmp_path, 10) is None


def store_source(pairs: bool = False, is_plain: bool = True) -> PretrainingSource:
    """Returns a source of 6 sequences of 3 documents, without a store."""
    source = PretrainingSource.__new__(PretrainingSource)
    chunks = np.array([[0, 1, 0], [1, 2, 0], [2, 3, 0], [3, 4, 1], [4, 5, 2], [5, 6, 2]])
    index = SequenceIndex(np.arange(7) * 5, np.arange(3), np.array([[0, 3], [3, 4], [4, 6]]), chunks)
    source.chunks = SentenceChunks(index, Division(8, pairs))
    source._mixture = Mixture(np.array([4, 2]), np.ones(2) if is_plain else np.array([1.0, 2.0]))
    source._num_specials, source.max_length, source._is_evaluation = 2, 7, True
    return source


@pytest.mark.parametrize(
    ("source", "budget", "message"),
    [
        (store_source(pairs=True), 64, "`task.nsp` is true.* text of other documents"),
        (store_source(is_plain=False), 64, "`data.weights` is set"),
        (store_source(), 20, r"`trainer.micro_batch_tokens` is 20, .*\(document\) has up to 21 tokens in a step"),
    ],
)
def test_stores_that_exclude_privacy_are_refused(source, budget, message):
    chosen = settings(privacy=PrivacySettings(8.0, 1e-5, 1.0, "document"), trainer__micro_batch_tokens=budget)
    with pytest.raises(ConfigError, match=message):
        private_items(chosen, PretrainingTask(nsp=False), source)


def test_sequences_of_a_document_are_one_unit_if_the_unit_is_a_document():
    for unit, number in (("row", 6), ("document", 3)):
        chosen = settings(privacy=PrivacySettings(8.0, 1e-5, 1.0, unit), trainer__micro_batch_tokens=64)
        items = private_items(chosen, PretrainingTask(nsp=False), store_source())
        assert items is not None and len(items.source) == number
        assert items.unit == ("sequence" if unit == "row" else "document")


def test_a_unit_column_needs_a_table_and_joins_the_rows_of_a_value():
    users = PrivacySettings(8.0, 1e-5, 1.0, unit_column="user")
    with pytest.raises(ConfigError, match=r"`privacy\.unit_column` is user, but StoreData has no columns"):
        reading_units(StoreData("store"), users)
    source = source_of(4, 4)
    source.facts = replace(source.facts, units={"row 1": "b", "row 2": "a", "row 3": "b", "row 4": "b"})
    items = private_items(settings(privacy=users), task_with_labels("0", "1"), source)
    assert items is not None and items.unit == "value of the column user"
    assert items.source.lengths(np.zeros(2, np.int64), np.arange(2)).tolist() == [3, 9]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"unit_column": "user", "unit": "document"}, "Only one of them can name the unit"),
        ({"max_rows_per_unit": 2}, "the unit is one row"),
        ({"max_rows_per_unit": 0, "unit_column": "user"}, "privacy.max_rows_per_unit is 0"),
    ],
)
def test_contradicting_units_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        PrivacySettings(8.0, 1e-5, 1.0, **values)


def test_the_record_names_what_each_unit_does_not_cover():
    def not_covered(unit: str) -> str:
        return " ".join(replace(GUARANTEE, unit=unit).as_record()["not_covered"])

    assert "a person with several rows" in not_covered("row")
    assert "a document or person with several sequences" in not_covered("sequence")
    assert "a person with several" not in not_covered("value of the column user")
