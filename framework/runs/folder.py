"""Finds and checks the folder of a run, and writes its records at the start."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from framework.checkpoint.layout import COMPLETE, checkpoints_folder, newest_complete, step_of
from framework.checkpoint.storage import Location, location
from framework.config.identity import check_same_run, identity_text
from framework.config.phases import PHASE
from framework.config.run_config import RunConfig
from framework.data.tokenization.tokenizer import SEPARATORS_KEY, Tokenizer
from framework.distributed.processes.environment import resolve_run_id
from framework.errors import CheckpointError, ConfigError, DataError, reading_record
from framework.files import read_json_object, write_atomic
from framework.runs.record_files import find_lost_step, read_starts
from framework.tracking.run_files import CONFIG_FILE, PROVENANCE_FILE, TASK_FILE

TOKENIZER_FOLDER = "tokenizer"

_MAX_VALUES = 1_000_000


@dataclass(frozen=True)
class RunFolder:
    """Run on disk.

    Attributes:
        path: Run folder, `run.dir/run.id`.
        checkpoints: Folder of the run's checkpoints, inside the run folder or elsewhere.
        checkpoint: Complete checkpoint to resume from; None: the run starts at step 0.
        is_new: True if the folder does not contain a run yet.
        falls_back: True if an older checkpoint may be used when `checkpoint` is damaged.
        lost_step: Newest step of the run whose checkpoint is missing on disk; None if no checkpoint is missing.
    """

    path: Path
    checkpoints: Location
    checkpoint: Location | None
    is_new: bool
    falls_back: bool = True
    lost_step: int | None = None


def find_run_folder(run: RunConfig, configs: Sequence[Mapping[str, Any]]) -> RunFolder:
    """Finds the folder of a run and checks that it may be used. Nothing is written.

    Args:
        run: Settings of the config group `run`.
        configs: Resolved config of each phase with masked secrets; of a run without phases, its config.

    Raises:
        ConfigError: The folder belongs to another config, or contains a run although `run.resume` is "never".
        CheckpointError: The checkpoint in `run.resume` does not exist, or all checkpoints of the run are missing.
    """
    path = Path(run.dir) / resolve_run_id(run.id, identity_text(configs[0]))
    saved = path / CONFIG_FILE
    is_new = not saved.is_file()
    if path.parent.exists() and not path.parent.is_dir():
        raise ConfigError(
            f"`run.dir` is {run.dir!r}, which is a file. It must be a folder for run folders. Choose a folder."
        )
    if path.exists() and not path.is_dir():
        raise ConfigError(f"the run folder {path} is a file. Choose another `run.id` or `run.dir`.")
    if not is_new:
        if run.resume == "never":
            raise ConfigError(
                f"the run folder {path} already contains a run, but `run.resume` is never. Choose another `run.id`, or "
                "run.resume=auto."
            )
        saved_config = read_config(path)
        # A saved phase that does not exist any more is a difference of `phases`, which the check names.
        same = [config for config in configs if config.get(PHASE) == saved_config.get(PHASE)]
        check_same_run(str(path), saved_config, (same or configs)[0])
    checkpoints = checkpoints_folder(path, run.checkpoints)
    own = newest_complete(checkpoints)
    _check_own(path, checkpoints, own, is_new, run.resume)
    lost_step = None if is_new else find_lost_step(path, checkpoints, own)
    if own is None and lost_step is not None and run.resume == "auto" and run.missing == "error":
        raise CheckpointError(
            f"the run in {path} was trained up to step {lost_step}, but {checkpoints} contains no checkpoint. Without "
            "one, the run would start again at step 0 and empty metrics.jsonl. Mount or restore the checkpoints, "
            "resume from a copy with run.resume=PATH, or start again with run.missing=accept."
        )
    if own is not None or run.resume in ("auto", "never"):
        return RunFolder(path, checkpoints, own, is_new, lost_step=lost_step)
    checkpoint, falls_back = find_checkpoint(location(run.resume))
    return RunFolder(path, checkpoints, checkpoint, is_new, falls_back)


def saved_checkpoints_folder(path: Path) -> Location:
    """Returns the folder of a run's checkpoints according to its saved config.

    Raises:
        CheckpointError: The saved config is missing or damaged.
    """
    with reading_record(path / CONFIG_FILE, "Restore the run folder"):
        checkpoints = read_config(path).get("run", {}).get("checkpoints")
        if not isinstance(checkpoints, str | None):
            raise TypeError(f"run.checkpoints={checkpoints!r} is not text")
    return checkpoints_folder(path, checkpoints)


def _check_own(path: Path, checkpoints: Location, own: Location | None, is_new: bool, resume: str) -> None:
    """Checks that checkpoints outside of the run folder belong to the run, and that no newer ones exist elsewhere."""
    if is_new and own is not None and resume in ("auto", "never") and checkpoints.parent != path:
        raise ConfigError(
            f"{checkpoints} contains checkpoints, but the run folder {path} is new. The checkpoints may belong to "
            f"another run. Choose another `run.id`, restore the run folder, or resume from them with run.resume={own}."
        )
    before = checkpoints if is_new else saved_checkpoints_folder(path)
    newest = newest_complete(before) if before != checkpoints else None
    if newest is not None and (own is None or step_of(own) < step_of(newest)):
        content = "none" if own is None else f"checkpoints only up to {own.name}"
        raise ConfigError(
            f"`run.checkpoints` now means {checkpoints}, which contains {content}, but the run in {path} has "
            f"checkpoints up to {newest.name} in {before}. Restore the former value of `run.checkpoints`, or copy the "
            "checkpoints."
        )


def find_checkpoint(path: Location) -> tuple[Location, bool]:
    """Finds the checkpoint that a path means.

    Args:
        path: Checkpoint, run folder, or folder of checkpoints. The last two mean their newest complete checkpoint.

    Returns:
        The checkpoint, and True if an older checkpoint may be used when it is damaged. This is False if `path` names
        the checkpoint itself.

    Raises:
        CheckpointError: The path contains no complete checkpoint.
    """
    if (path / COMPLETE).is_file():
        return path, False
    if isinstance(path, Path) and (path / CONFIG_FILE).is_file():
        newest = newest_complete(saved_checkpoints_folder(path))
    else:
        newest = newest_complete(path)
    if newest is None:
        raise CheckpointError(
            f"{path} contains no complete checkpoint. Give a run folder with a complete checkpoint, or the folder "
            "step_N of the checkpoint."
        )
    return newest, True


def read_config(path: Path) -> dict[str, Any]:
    """Reads the resolved config of a run folder.

    Raises:
        CheckpointError: The file is missing or cannot be read.
    """
    file = path / CONFIG_FILE
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}). {_not_a_run(path)}") from error
    if _num_values(content) > _MAX_VALUES:
        raise CheckpointError(f"{file} contains more than {_MAX_VALUES:,} values. {_not_a_run(path)}")
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} contains no config. {_not_a_run(path)}")
    return content


def _not_a_run(path: Path) -> str:
    return f"{path} is not a run folder, or it is damaged. Give another folder, or restore the file."


def _num_values(content: object) -> int:
    """Counts nested values up to the limit, because a few lines of YAML aliases can expand to billions of values."""
    num, waiting = 0, [content]
    while waiting and num <= _MAX_VALUES:
        num, node = num + 1, waiting.pop()
        if isinstance(node, dict):
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return num


def check_same_data(
    folder: RunFolder, tokenizer: Tokenizer, data: str, phase: str | None = None, teacher: str | None = None
) -> None:
    """Checks that tokenizer, data and teacher are the same as at the first start of the run, or of one of its phases.

    Args:
        folder: Run folder.
        tokenizer: Tokenizer of the config.
        data: Fingerprint of the data.
        phase: Name of the phase; None: the run has no phases.
        teacher: Fingerprint of the weights of the teacher; None: the run has no teacher.

    Raises:
        DataError: The tokenizer, the data or the teacher has changed, although the config is the same.
    """
    starts = [] if folder.is_new else [each for each in read_starts(folder.path) if each.get(PHASE) == phase]
    if not starts:
        return
    before = starts[0]["fingerprints"]
    joined = recorded_pair_separators(read_task_record(folder.path))
    if not tokenizer.is_recorded_as(before.get("tokenizer")):
        name, now = "tokenizer", tokenizer.fingerprint
    elif before.get("data") == data and before.get("teacher") == teacher:
        return
    elif before.get("data") == data:
        name, now = "teacher", str(teacher)
    elif joined != tokenizer.pair_separators:
        raise DataError(
            f"the run in {folder.path} joined pairs of texts with {joined} separator, but this version joins "
            f"them with {tokenizer.pair_separators}, as published models of this vocabulary do. The input of a run "
            "must not change. Start a new run with another `run.id`. The old run can still be evaluated and exported."
        )
    else:
        name, now = "data", data
    raise DataError(
        f"the {name} of the run in {folder.path} had fingerprint {before.get(name)} at its first start and has {now} "
        f"now. The {name} of a run must not change. Restore the original files, or choose another `run.id`."
    )


def read_task_record(path: Path) -> dict[str, Any]:
    """Reads the task record of a run folder: `config` and the values of `Task.to_record`.

    Raises:
        CheckpointError: The file is missing or cannot be read.
    """
    file = path / TASK_FILE
    with reading_record(file, "Restore the run folder"):
        return read_json_object(file)


def recorded_pair_separators(record: Mapping[str, Any]) -> int:
    """Returns the number of separators between the texts of a pair, according to the task record of a run or export.

    Earlier versions did not write the key and always used one separator.
    """
    return int(record.get(SEPARATORS_KEY, 1))


def write_start(
    folder: RunFolder,
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
    task_record: Mapping[str, Any],
    task_files: Mapping[str, str] | None = None,
) -> None:
    """Writes config.yaml, provenance.json, task.json and the files of the task. Call on rank 0 only.

    Args:
        folder: Run folder.
        config: Resolved config with masked secrets.
        provenance: Provenance of this start, which is appended to that of earlier starts.
        task_record: Values of the task that predictions and exports need.
        task_files: Texts of `Task.extra_files`, by file name; None: no files.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    starts = read_starts(folder.path)
    for name, text in (task_files or {}).items():
        write_atomic(folder.path / name, text)
    write_atomic(folder.path / TASK_FILE, json.dumps(dict(task_record), indent=2, ensure_ascii=False) + "\n")
    # config.yaml is written last, because it marks the folder as a run.
    write_atomic(folder.path / PROVENANCE_FILE, json.dumps({"starts": [*starts, dict(provenance)]}, indent=2) + "\n")
    write_atomic(folder.path / CONFIG_FILE, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
