"""Private runs: checks of the config, the guarantee, and the file with the secret in the run folder."""

import os
import re
import secrets
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from framework.config.schema import TrainConfig
from framework.data.augmentation.edits import Delete, Swap
from framework.distributed.processes.agreement import first_rank_value
from framework.errors import CheckpointError, ConfigError
from framework.modules.passes.one_pass import OnePass
from framework.modules.passes.tape import Tape
from framework.privacy.guarantee import Guarantee, solve_guarantee
from framework.privacy.secret import SECRET_BYTES, Secret
from framework.runs.folder import RunFolder
from framework.runs.privacy_units import PrivateItems
from framework.tasks.task import Task, TaskModel
from framework.tracking.privacy_file import read_guarantee, write_guarantee

SECRET_FILE = Path("private") / "key"


@dataclass(frozen=True)
class Privacy:
    """Guarantee of a run, and its secret, which `open_secret` sets."""

    guarantee: Guarantee
    secret: Secret = field(default_factory=Secret)


def check_privacy(settings: TrainConfig) -> None:
    """Checks the settings that a private run cannot have. Other settings are accepted.

    Raises:
        ConfigError: A setting excludes privacy; the message gives the reason.
    """
    if settings.privacy is None:
        return
    for key, (value, is_excluded, reason, remedy) in (_of_steps(settings) | _of_rows(settings)).items():
        if is_excluded:
            raise ConfigError(
                f"`{key}` is {value}, but privacy=dp_sgd is set. {reason}. Use {remedy}, or privacy=none."
            )


_Exclusions = dict[str, tuple[object, bool, str, str]]
"""By key: the value, True if it excludes privacy, the reason, and the remedy."""


def _of_steps(settings: TrainConfig) -> _Exclusions:
    """Returns the exclusions by settings of steps."""
    strategy, trainer, regularization = settings.strategy, settings.trainer, settings.regularization.target
    return {
        "strategy": (
            strategy.name,
            strategy.name in ("tp", "fsdp2_tp"),
            "Tensor parallel ranks hold parts of activations, so no rank can compute the gradient norm of a row",
            "strategy=fsdp2",
        ),
        "precision": (
            settings.precision.name,
            settings.precision.name in ("float8", "fp16"),
            "The scales of float8 and fp16 depend on all rows of a step",
            "precision=bf16",
        ),
        "strategy.compile": (
            strategy.compile,
            strategy.compile not in ("none", "auto"),
            "Gradient norms of rows need the inputs and outputs of each module, which compiled layers do not have",
            "strategy.compile=none",
        ),
        "regularization": (
            regularization.__name__,
            regularization is not OnePass,
            "R-Drop and adversarial passes add losses whose gradient norms are not computed",
            "regularization=none",
        ),
        "trainer.on_non_finite": (
            trainer.on_non_finite,
            trainer.on_non_finite != "stop",
            "To skip a step because of its rows would publish a fact about them",
            "trainer.on_non_finite=stop",
        ),
        "trainer.batch_warmup_start": (
            trainer.batch_warmup_start,
            trainer.batch_warmup_start is not None,
            "The guarantee assumes one sampling rate for all steps",
            "trainer.batch_warmup_start=null trainer.batch_warmup_steps=null",
        ),
        "run.resume": (
            settings.run.resume,
            settings.run.resume not in ("auto", "never"),
            "The guarantee counts the steps of one run with one secret",
            "run.resume=auto",
        ),
    }


def _of_rows(settings: TrainConfig) -> _Exclusions:
    """Returns the exclusions by settings that make a row's part depend on other rows."""
    augmentation, task, data = settings.augmentation, settings.task.arguments, settings.data.arguments
    balance, most_rows, scheme = (data.get(key) for key in ("balance", "max_train_rows", "scheme"))
    weights, group_loss = task.get("class_weights"), task.get("group_loss")
    return {
        "augmentation": (
            None if augmentation is None else augmentation.target.__name__,
            augmentation is not None and augmentation.target not in (Delete, Swap),
            "The guarantee covers only an augmentation that depends on nothing but its row",
            "augmentation=delete, swap or none",
        ),
        "task.class_weights": (
            weights,
            weights == "balanced",
            "Balanced weights are computed from the labels of all rows without noise",
            "task.class_weights={LABEL: WEIGHT}",
        ),
        "task.group_loss": (
            group_loss,
            group_loss is not None,
            "The weights of groups follow the losses of all rows of a step",
            "task.group_loss=null",
        ),
        "data.balance": (
            balance,
            balance is not None,
            "With a balance, the sampling rate of a row depends on other rows",
            "data.balance=null",
        ),
        "data.max_train_rows": (
            most_rows,
            most_rows is not None,
            "Which rows are chosen depends on the other rows of the file",
            "a file of the rows to train on",
        ),
        "data.deduplicate": (
            data.get("deduplicate"),
            bool(data.get("deduplicate")) and settings.privacy is not None and settings.privacy.unit_column is not None,
            "Rows of a unit would decide which rows of other units are removed",
            "data.deduplicate=false, or remove the duplicates within each unit first",
        ),
        "data.scheme": (
            scheme,
            scheme == "auto",
            "The scheme is detected from the tags of all rows, so that one row may change the tags of others",
            "data.scheme=bio, iob1 or bioes",
        ),
    }


def build_privacy(
    settings: TrainConfig,
    task: Task,
    items: PrivateItems | None,
    model: TaskModel,
    expected_batch: int,
    max_steps: int,
) -> Privacy | None:
    """Solves the noise of a private run, and checks its labels and model; None if the run is not private.

    Args:
        settings: Settings of the run.
        task: Task of the run.
        items: Training items.
        model: Model with its trained parameters, on the meta device.
        expected_batch: Expected units of a step.
        max_steps: Steps of the run.

    Raises:
        ConfigError: The labels or a trained module do not support privacy, or no noise suffices.
    """
    if settings.privacy is None or items is None:
        return None
    labels, names = settings.data.arguments, getattr(task, "labels", ()) or getattr(task, "types", ())
    if names and "labels" in labels and labels["labels"] is None:
        listed = ",".join(name if re.fullmatch(r"\w+", name) else f'"{name}"' for name in names)
        raise ConfigError(
            "`data.labels` is null, but privacy=dp_sgd is set. A label set that is read from the rows publishes their "
            f"labels. Give it, for example 'data.labels=[{listed}]'."
        )
    if model.encoder.config.relative_bias == "disentangled":
        raise ConfigError(
            "model.relative_bias is 'disentangled', but privacy=dp_sgd is set. Layers multiply tokens and positions "
            "with the same weights, which run twice in a pass, and gradient norms need modules that run once. Use a "
            "family without this bias, or privacy=none."
        )
    Tape(model, task.head_rows)
    return Privacy(solve_guarantee(settings.privacy, items.unit, len(items.source), expected_batch, max_steps))


def open_secret(folder: RunFolder, privacy: Privacy | None) -> None:
    """Reads the secret of a private run on all ranks, or makes it at the first start. Collective: all ranks must call.

    Raises:
        ConfigError: The run was started with another guarantee, for example with fewer steps.
        CheckpointError: The run has steps, and its secret is missing or damaged.
    """
    if privacy is None:
        return
    privacy.secret.set(first_rank_value(lambda: _secret_of(folder, privacy.guarantee)))


def delete_secret(run_folder: Path) -> None:
    """Deletes the secret of a run that has finished. Without it, nobody can take the noise off the weights."""
    shutil.rmtree(run_folder / SECRET_FILE.parent, ignore_errors=True)


def _secret_of(folder: RunFolder, guarantee: Guarantee) -> bytes:
    """Returns the bytes of the secret. Call on rank 0 only."""
    saved, path = read_guarantee(folder.path), folder.path / SECRET_FILE
    if folder.checkpoint is not None and saved != guarantee:
        before = "another guarantee" if saved is None else f"sigma {saved.sigma:.4f} for {saved.steps:,} steps"
        raise ConfigError(
            f"the run in {folder.path} was started with {before}, and this config needs sigma {guarantee.sigma:.4f} "
            f"for {guarantee.steps:,} steps. The noise of trained steps cannot be changed. Restore the config, or "
            "choose another `run.id`."
        )
    value = path.read_bytes() if path.is_file() else b""
    if len(value) == SECRET_BYTES and saved == guarantee:
        return value
    if folder.checkpoint is not None:
        raise CheckpointError(
            f"the secret of the private run, {path}, is {'damaged' if value else 'missing'}. It determines samples and "
            "noise and is needed to resume; it is deleted when a run has finished. Restore the file, or choose another "
            "`run.id`."
        )
    value = secrets.token_bytes(SECRET_BYTES)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(value)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    write_guarantee(folder.path, guarantee)
    return value
