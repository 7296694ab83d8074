"""The folder of a run: which one it is, whether it may be used, and what is written into it at the start."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from framework.checkpoint.layout import COMPLETE, checkpoints_folder, newest_complete, step_of
from framework.checkpoint.storage import Location, location
from framework.config.identity import check_same_run, identity_text
from framework.config.run_config import RunConfig
from framework.config.run_records import find_lost_step, read_starts
from framework.data.tokenization.tokenizer import SEPARATORS_KEY, Tokenizer
from framework.distributed.processes.environment import resolve_run_id
from framework.errors import CheckpointError, ConfigError, DataError, reading_record
from framework.files import parse_json, write_whole
from framework.tracking.run_files import CONFIG_FILE, PROVENANCE_FILE, TASK_FILE

TOKENIZER_FOLDER = "tokenizer"

_MAX_VALUES = 1_000_000


@dataclass(frozen=True)
class RunFolder:
    """One run on disk.

    Attributes:
        path: `run.dir/run.id`.
        checkpoints: The folder of its checkpoints, in it or elsewhere.
        checkpoint: The complete checkpoint to go on from; None: the run starts at step 0.
        is_new: True where the folder holds no run yet.
        falls_back: An older checkpoint may take the place of that one where it is damaged.
        lost_step: Newest step of the run whose checkpoint is missing on disk; None if no checkpoint is missing.
    """

    path: Path
    checkpoints: Location
    checkpoint: Location | None
    is_new: bool
    falls_back: bool = True
    lost_step: int | None = None


def find_run_folder(run: RunConfig, config: Mapping[str, Any]) -> RunFolder:
    """Finds the folder of a run and checks that it may be used; writes nothing.

    Args:
        run: Id, parent folder and how to resume.
        config: Resolved config of the run, secrets masked.

    Raises:
        ConfigError: The folder belongs to another config, or holds a run where a new one is asked for.
        CheckpointError: A checkpoint was named and is not there, or all checkpoints of the run are gone.
    """
    path = Path(run.dir) / resolve_run_id(run.id, identity_text(config))
    saved = path / CONFIG_FILE
    is_new = not saved.is_file()
    if path.parent.exists() and not path.parent.is_dir():
        raise ConfigError(f"`run.dir` is {run.dir!r}, which is a file. Run folders lie in it. Choose a folder.")
    if path.exists() and not path.is_dir():
        raise ConfigError(f"the run folder {path} is a file; choose another `run.id` or `run.dir`.")
    if not is_new:
        if run.resume == "never":
            raise ConfigError(
                f"the run folder {path} holds a run already and `run.resume` is never; choose another `run.id`, or "
                "resume=auto."
            )
        check_same_run(str(path), read_config(path), config)
    checkpoints = checkpoints_folder(path, run.checkpoints)
    own = newest_complete(checkpoints)
    _check_own(path, checkpoints, own, is_new, run.resume)
    lost_step = None if is_new else find_lost_step(path, checkpoints, own)
    if own is None and lost_step is not None and run.resume == "auto" and run.missing == "error":
        raise CheckpointError(
            f"the run in {path} was trained up to step {lost_step}, but {checkpoints} holds no checkpoint. A start "
            "without one would begin at step 0 and empty metrics.jsonl. Mount or restore the checkpoints, resume from "
            "a copy with run.resume=PATH, or start again with run.missing=accept."
        )
    if own is not None or run.resume in ("auto", "never"):
        return RunFolder(path, checkpoints, own, is_new, lost_step=lost_step)
    checkpoint, falls_back = find_checkpoint(location(run.resume))
    return RunFolder(path, checkpoints, checkpoint, is_new, falls_back)


def saved_checkpoints_folder(path: Path) -> Location:
    """Returns the folder of a run's checkpoints, as stated in its saved config."""
    with reading_record(path / CONFIG_FILE, "Restore the run folder"):
        checkpoints = read_config(path).get("run", {}).get("checkpoints")
        if not isinstance(checkpoints, str | None):
            raise TypeError(f"run.checkpoints={checkpoints!r} is not text")
    return checkpoints_folder(path, checkpoints)


def _check_own(path: Path, checkpoints: Location, own: Location | None, is_new: bool, resume: str) -> None:
    """Checks that checkpoints outside of the run folder are the run's own, and that it has no newer ones elsewhere."""
    if is_new and own is not None and resume in ("auto", "never") and checkpoints.parent != path:
        raise ConfigError(
            f"{checkpoints} holds checkpoints, but the run folder {path} is new, so they may be of another run; choose "
            f"another `run.id`, restore the run folder, or go on from them with run.resume={own}."
        )
    before = checkpoints if is_new else saved_checkpoints_folder(path)
    newest = newest_complete(before) if before != checkpoints else None
    if newest is not None and (own is None or step_of(own) < step_of(newest)):
        found = "none" if own is None else f"{own.name} as its newest"
        raise ConfigError(
            f"the run in {path} has its checkpoints in {before}, up to {newest.name}, but `run.checkpoints` now means "
            f"{checkpoints}, which has {found}; give the former value, or copy them there."
        )


def find_checkpoint(path: Location) -> tuple[Location, bool]:
    """The checkpoint that a path names: itself, or the newest complete one of a run folder or of its checkpoints.

    Returns:
        The checkpoint, and whether an older one may take its place where it is damaged: who names a checkpoint means
        that one, who names a run means its newest that can be used.

    Raises:
        CheckpointError: There is none.
    """
    if (path / COMPLETE).is_file():
        return path, False
    if isinstance(path, Path) and (path / CONFIG_FILE).is_file():
        newest = newest_complete(saved_checkpoints_folder(path))
    else:
        newest = newest_complete(path)
    if newest is None:
        raise CheckpointError(
            f"{path} holds no complete checkpoint; give a run folder that has one, or the folder step_N of one."
        )
    return newest, True


def read_config(path: Path) -> dict[str, Any]:
    """The resolved config of a run folder.

    Raises:
        CheckpointError: It is missing or cannot be read.
    """
    file = path / CONFIG_FILE
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); {path} is no run folder, or a damaged one.") from error
    if _num_values(content) > _MAX_VALUES:
        raise CheckpointError(
            f"{file} holds more than {_MAX_VALUES:,} values; {path} is no run folder, or a damaged one."
        )
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds no config; {path} is no run folder, or a damaged one.")
    return content


def _num_values(content: object) -> int:
    """Counts the values of a tree up to the limit; aliases of YAML make few lines stand for billions of values."""
    num, waiting = 0, [content]
    while waiting and num <= _MAX_VALUES:
        num, node = num + 1, waiting.pop()
        if isinstance(node, dict):
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return num


def check_same_data(folder: RunFolder, tokenizer: Tokenizer, data: str) -> None:
    """Compares tokenizer and data with those that the run began with.

    Args:
        folder: Run folder.
        tokenizer: Tokenizer of the config.
        data: Fingerprint of the data.

    Raises:
        DataError: They have changed, although the config names the same.
    """
    starts = [] if folder.is_new else read_starts(folder.path)
    if not starts:
        return
    before = starts[0]["fingerprints"]
    joined = joined_by(read_task_record(folder.path))
    if not tokenizer.is_recorded_as(before.get("tokenizer")):
        name, now = "tokenizer", tokenizer.fingerprint
    elif before.get("data") == data:
        return
    elif joined != tokenizer.pair_separators:
        raise DataError(
            f"the run in {folder.path} joined pairs of texts with {joined} separator, but this version joins "
            f"them with {tokenizer.pair_separators}, as published models of this vocabulary do. The input of a run "
            "must not change. Start a new run with another `run.id`; the old one can be evaluated and exported."
        )
    else:
        name, now = "data", data
    raise DataError(
        f"the {name} of the run in {folder.path} had fingerprint {before.get(name)} when it began and has {now} now; "
        "restore the files that it began with, or choose another `run.id`."
    )


def read_task_record(path: Path) -> dict[str, Any]:
    """What a run folder keeps of its task: `config`, and what `Task.side_config` gave.

    Raises:
        CheckpointError: It is missing or cannot be read.
    """
    file = path / TASK_FILE
    with reading_record(file, "Restore the run folder"):
        record = parse_json(file.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise TypeError(f"{type(record).__name__} instead of an object")
        return record


def joined_by(record: Mapping[str, Any]) -> int:
    """Returns the number of separators between the texts of a pair, according to the task record of a run or export.

    Earlier versions, which did not write the key, always used one.
    """
    return int(record.get(SEPARATORS_KEY, 1))


def write_start(
    folder: RunFolder,
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    task_record: Mapping[str, Any],
    task_files: Mapping[str, str] | None = None,
) -> None:
    """Writes config.yaml, provenance.json, task.json and the files of the task; call on rank 0.

    Args:
        folder: Of the run.
        config: The resolved config, secrets masked.
        provenance: Of this start; it is added to those of earlier starts.
        task_record: What predictions and exports need of the task.
        task_files: `Task.side_files`; None: there are none.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    starts = read_starts(folder.path)
    for name, text in (task_files or {}).items():
        write_whole(folder.path / name, text)
    write_whole(folder.path / TASK_FILE, json.dumps(dict(task_record), indent=2, ensure_ascii=False) + "\n")
    # config.yaml last: it is what makes the folder a run.
    write_whole(folder.path / PROVENANCE_FILE, json.dumps({"starts": [*starts, dict(provenance)]}, indent=2) + "\n")
    write_whole(folder.path / CONFIG_FILE, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
