"""Collects the facts of a run for the model card of an export."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from framework.checkpoint.layout import step_of
from framework.config.command_schema import ExportConfig
from framework.config.nodes import TARGET_KEY
from framework.config.phases import LAST_STEP, PHASE, PHASES, phase_of
from framework.errors import CheckpointError, reading_record
from framework.exports.model_card import RunFacts
from framework.runs.evaluation_data import describe_weights
from framework.runs.folder import read_config
from framework.runs.record_files import read_starts
from framework.runs.trained import Trained
from framework.tasks.task import Task
from framework.tracking.analysis.audits import describe_rate, read_audits
from framework.tracking.metric_names import describe
from framework.tracking.privacy_file import privacy_spent
from framework.tracking.run_files import PROVENANCE_FILE
from framework.tracking.summary_file import read_summary


def run_facts(trained: Trained, folder: Path, settings: ExportConfig) -> RunFacts:
    """Reads the facts from config.yaml, provenance.json and summary.json of a run folder.

    Args:
        trained: Exported model.
        folder: Folder of its run.
        settings: Export settings, which select the weights of the run.

    Raises:
        CheckpointError: A file of the run folder cannot be read.
    """
    with reading_record(folder, "Restore the run folder"):
        config, start = read_config(folder), _first_start(folder)
        summary = read_summary(folder) or {}
        step = step_of(Path(trained.weights.source))
        return RunFacts(
            name=folder.resolve().name,
            about=_about(trained, config, start, step, settings),
            training=_training(config, summary, step),
            metrics=_metrics(config, summary, step, settings),
            versions={str(library): str(version) for library, version in start["versions"].items()},
            audits=_audits(trained, folder, settings),
            base_model=start.get("base_model"),
            predicts=type(trained.task).decode is not Task.decode,
            privacy=_privacy(folder, step),
            windows=config["task"].get("windows"),
        )


def _audits(trained: Trained, folder: Path, settings: ExportConfig) -> dict[str, str]:
    """Describes the results of the audits that measured exactly the exported weights, by name of the audit."""
    weights = describe_weights(settings, trained)
    audits = {name: each for name, each in read_audits(folder).items() if each["facts"].get("weights") == weights}
    return {name: f"{each['summary']} {describe_rate(each)}." for name, each in audits.items()}


def _first_start(folder: Path) -> dict[str, Any]:
    starts = read_starts(folder)
    if not starts:
        file = folder / PROVENANCE_FILE
        raise CheckpointError(f"{file} is missing or damaged. A run folder must have it. Restore the file.")
    return starts[0]


def _about(
    trained: Trained, config: Mapping[str, Any], start: Mapping[str, Any], step: int, settings: ExportConfig
) -> dict[str, str]:
    fingerprints = start["fingerprints"]
    is_average = settings.weights != "raw" and config["trainer"]["ema_decay"] is not None
    weights = f"step {step:,} of the run, {'their moving average' if is_average else 'as trained'}"
    if settings.average_last > 1:
        weights += f", mean of {settings.average_last} checkpoints"
    return {
        "task": f"{config['task'][TARGET_KEY]} ({trained.task.head_kind})",
        "started from": "fresh weights" if config["init_from"] is None else str(config["init_from"]),
        "data": f"{config['data'][TARGET_KEY]}, fingerprint {fingerprints['data']}",
        "tokenizer": f"fingerprint {fingerprints['tokenizer']}",
        "weights": weights,
        "code": str(start["commit"]),
    }


def _training(config: Mapping[str, Any], summary: Mapping[str, Any], step: int) -> dict[str, str]:
    trainer, optimizer = config["trainer"], config["optimizer"]
    size = trainer["global_batch_size"]
    batch = f"{size:,} sequences" if size is not None else f"about {trainer['global_batch_tokens']:,} tokens"
    if trainer["batch_warmup_start"] is not None:
        steps, tokens = trainer["batch_warmup_steps"], trainer.get("batch_warmup_tokens")
        length = f"{steps:,} steps" if tokens is None else f"{tokens:,} tokens"
        batch += f", growing from {trainer['batch_warmup_start']:,} over {length}"
    rows = {"steps": f"{step:,} of {summary['max_steps']:,}" if summary else f"{step:,}"}
    if phases := config.get(PHASES):
        rows["phases"] = ", ".join(f"{name} up to step {phase[LAST_STEP]:,}" for name, phase in phases.items())
    if phase_of(config, step) != config.get(PHASE):
        return rows | {"phase of these weights": str(phase_of(config, step))}  # the saved config is of a later phase
    rows |= {
        "batch of a step": batch,
        "optimizer": str(optimizer[TARGET_KEY]),
        **_rates(optimizer),
        "schedule": str(config["schedule"][TARGET_KEY]),
        "seed": str(config["seed"]),
        "precision": str(config["precision"]["name"]),
    }
    return rows | ({"tokens of the whole run": f"{summary['tokens']:,}"} if summary else {})


def _privacy(folder: Path, step: int) -> dict[str, str]:
    """Returns the guarantee of the exported weights, and what it does not cover; empty if the run was not private."""
    spent = privacy_spent(folder, step)
    if spent is None:
        return {}
    return {
        "guarantee": f"({spent['spent_epsilon']:.2f}, {spent['delta']:g})-differential privacy after {step:,} steps; "
        f"neighbouring data sets differ by one {spent['unit']}",
        "method": f"DP-SGD, gradient norm of a {spent['unit']} at most {spent['clip']:g}, noise multiplier "
        f"{spent['sigma']:.4f}",
        "sampling": f"{spent['sampling']}, rate {spent['sampling_rate']:.4g}, {spent['expected_batch']:,} expected",
        "accountant": spent["accountant"],
        "not covered": "; ".join(spent["not_covered"]),
    }


def _rates(optimizer: Mapping[str, Any]) -> dict[str, str]:
    """Returns the peak learning rates of an optimizer and of the optimizers nested in it."""
    rates = {"learning rate": str(optimizer["lr"])} if "lr" in optimizer else {}
    parts = {name: value for name, value in optimizer.items() if isinstance(value, Mapping) and "lr" in value}
    return rates | {f"learning rate of {name}": str(part["lr"]) for name, part in parts.items()}


def _metrics(
    config: Mapping[str, Any], summary: Mapping[str, Any], step: int, settings: ExportConfig
) -> dict[str, str]:
    """Returns the validation metrics of exactly the exported weights; empty if these weights were not validated.

    A run that keeps a moving average validates the average, not the raw weights.
    """
    was_validated = settings.weights != "raw" or config["trainer"]["ema_decay"] is None
    if settings.average_last > 1 or not was_validated or not summary:
        return {}
    best = summary["best"] or {}
    row: Mapping[str, Any] = {}
    if best.get("step") == step:
        row = best
    elif summary["ended"] == "finished" and summary["steps"] == step:
        row = summary["last"]
    values = {key: value for key, value in row.items() if key.startswith("val/") and isinstance(value, int | float)}
    return {describe(key).with_unit: f"{value:.4f}" for key, value in values.items()}
