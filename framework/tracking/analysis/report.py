"""Writes report.html: a run on one page without network access and scripts, built only from the files of its folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from framework.files import write_atomic
from framework.tracking.analysis.audits import audit_section, read_audits
from framework.tracking.analysis.content import read_analyses
from framework.tracking.analysis.data_section import data_section
from framework.tracking.analysis.explanation_section import explanation_section
from framework.tracking.analysis.explanations import EXPLANATIONS
from framework.tracking.analysis.page import Picture, Section, Table, render
from framework.tracking.analysis.pictures import draw_analysis
from framework.tracking.analysis.split_section import heading, number, split_section
from framework.tracking.data_facts import read_data_facts
from framework.tracking.metric_names import describe
from framework.tracking.plots import draw_plots
from framework.tracking.run_files import PROVENANCE_FILE, read_object, read_saved_config
from framework.tracking.summary_file import SUMMARY_FILE, read_summary

REPORT_FILE = "report.html"
_CURVES = ("loss", "learning_rate", "throughput")
_START_KEYS = {"commit", "host", "hardware", "versions", "world_size", "fingerprints", "command"}

_CONFIG_FACTS = {
    "task": "task._target_",
    "problem": "task.problem",
    "data": "data._target_",
    "training data": "data.train",
    "validation data": "data.validation",
    "test data": "data.test",
    "token store": "data.store",
    "started from": "init_from",
    "family": "model.family",
    "layers": "model.num_layers",
    "hidden size": "model.hidden_size",
    "vocabulary": "model.vocab_size",
    "batch, sequences": "trainer.global_batch_size",
    "batch, tokens": "trainer.global_batch_tokens",
    "optimizer": "optimizer._target_",
    "learning rate": "optimizer.lr",
    "schedule": "schedule._target_",
    "regularization": "regularization._target_",
    "adapter": "adapter._target_",
    "precision": "precision.name",
    "strategy": "strategy.name",
    "seed": "seed",
}


def make_report(run_folder: Path) -> Path:
    """Draws all plots of a run folder and writes its report.html; returns the path of the report.

    Raises:
        OSError: Writing failed.
        CheckpointError: The rows of the run are damaged.
    """
    draw_pictures(run_folder)
    return write_report(run_folder)


def has_report(run_folder: Path) -> bool:
    """Returns True if report.html is as new as summary.json."""
    report, summary = run_folder / REPORT_FILE, run_folder / SUMMARY_FILE
    return report.is_file() and (not summary.is_file() or report.stat().st_mtime >= summary.stat().st_mtime)


def draw_pictures(run_folder: Path) -> list[Path]:
    """Draws the curves of a run and the plots of its analyses into `plots/`.

    Raises:
        OSError: Writing failed.
    """
    written = draw_plots(run_folder, run_folder.resolve().name)
    for name, analysis in read_analyses(run_folder).items():
        written += draw_analysis(run_folder, name, analysis)
    return written


def write_report(run_folder: Path) -> Path:
    """Writes report.html from the files of the folder. Without a run in the folder it contains only the analyses.

    Returns:
        Path of the file, which replaces an earlier one atomically.

    Raises:
        OSError: Writing failed.
    """
    name = run_folder.resolve().name
    summary, analyses = read_summary(run_folder), read_analyses(run_folder)
    config, start = read_saved_config(run_folder), _last_start(run_folder)
    settings = _phases(config) | {title: _setting(config, key) for title, key in _CONFIG_FACTS.items()}
    sections = [
        Section("metrics", "Metrics", tables=_metrics(summary, analyses)),
        Section("curves", "Curves", pictures=_curves(run_folder, analyses)),
        *(section for split, analysis in analyses.items() for section in _sections(run_folder, split, analysis)),
        *(audit_section(audit, values) for audit, values in read_audits(run_folder).items()),
        data_section(read_data_facts(run_folder)),
        Section("run", "Run", facts=[rows for rows in (settings, _origin(start)) if any(rows.values())]),
    ]
    path = run_folder / REPORT_FILE
    write_atomic(path, render(name, summary, _tiles(summary, analyses), sections))
    return path


def _sections(run_folder: Path, name: str, analysis: Mapping[str, Any]) -> tuple[Section, Section]:
    """Returns the section of a split and the section of its explanations."""
    explanations = analysis.get(EXPLANATIONS, {})
    return (
        split_section(run_folder, name, analysis),
        explanation_section(run_folder, name, heading(name), explanations),
    )


def _tiles(summary: Mapping[str, Any] | None, analyses: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Returns the values at the top of the page by their titles."""
    tiles = {}
    for split, analysis in analyses.items():
        metric = analysis["best_metric"]
        if metric in analysis["metrics"]:
            tiles[f"{describe(metric).label}, {heading(split).lower()}"] = number(analysis["metrics"][metric])
    if summary is not None:
        speed = summary["tokens_per_second"]
        tiles |= {
            "steps": f"{summary['steps']:,} of {summary['max_steps']:,}",
            "tokens": f"{summary['tokens']:,}",
            "tokens per second": f"{speed:,.0f}" if speed else "",
            "time": _duration(summary["wall_seconds"]),
        }
    return tiles


def _origin(start: Mapping[str, Any]) -> dict[str, str]:
    """Returns the code, the machine and the command of a start as texts."""
    if not start:
        return {}
    hardware, versions = start["hardware"], start["versions"]
    return {
        "code": start["commit"],
        "host": start["host"],
        "processor": f"{hardware['processor']}, {hardware['cores']} cores",
        "GPUs": ", ".join(hardware["gpus"]),
        "processes": f"{start['world_size']:,}",
        "starts": f"{start['starts']:,}",
        "data fingerprint": start["fingerprints"].get("data", ""),
        "tokenizer fingerprint": start["fingerprints"].get("tokenizer", ""),
        "versions": ", ".join(f"{library} {versions[library]}" for library in ("python", "torch", "lightning")),
        "command": start["command"],
    }


def _phases(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns the phases of a run, and the one whose settings the config holds; empty if the run has none."""
    phases = config.get("phases") or {}
    ends = [f"{name} up to step {phase['last_step']:,}" for name, phase in phases.items()]
    return {"phases": ", ".join(ends), "settings of phase": str(config["phase"])} if ends else {}


def _setting(config: Mapping[str, Any], key: str) -> str:
    """Formats a value of the config for the report; empty if the config does not have it."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if value is None:
        return ""
    if key.endswith("_target_"):
        return str(value).rpartition(".")[2]
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _metrics(summary: Mapping[str, Any] | None, analyses: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Builds a table with one row per metric and one column per measurement; empty if there are no metrics."""
    columns: dict[str, dict[str, float | None]] = {}
    if summary is not None:
        best = summary["best"] or {}
        columns["training, last"] = _of_split(summary["last"], "train/")
        columns["validation, last"] = _of_split(summary["last"], "val/")
        if best:
            columns[f"validation, best (step {best['step']:,})"] = _of_split(best, "val/")
    for name, analysis in analyses.items():
        if name != "validation" or summary is None:
            columns[heading(name).lower()] = analysis["metrics"]
    columns = {title: values for title, values in columns.items() if values}
    names = list(dict.fromkeys(name for values in columns.values() for name in values))
    rows = [
        (
            describe(name).with_unit,
            *(_metric(values, name) for values in columns.values()),
        )
        for name in names
    ]
    return [Table(("metric", *columns), rows, full_length=True)] if rows else []


def _of_split(values: Mapping[str, Any], prefix: str) -> dict[str, float | None]:
    return {
        key.removeprefix(prefix): value
        for key, value in values.items()
        if key.startswith(prefix) and key != "train/tokens"
    }


def _metric(values: Mapping[str, float | None], name: str) -> str:
    """Formats a metric. The files contain null for values that are not finite."""
    if name not in values:
        return ""
    return "nan" if values[name] is None else number(values[name])


def _curves(run_folder: Path, analyses: Mapping[str, Any]) -> list[Picture]:
    """Returns the plots that do not belong to an analysis, the known curves first."""
    plots = {path.stem: path for path in (run_folder / "plots").glob("*.png")}
    others = sorted(name for name in plots if not any(name.startswith(f"{split}_") for split in analyses))
    names = dict.fromkeys((*_CURVES, *others))
    return [Picture(plots[name], name.replace("_", " ")) for name in names if name in plots]


def _last_start(run_folder: Path) -> dict[str, Any]:
    """Returns the newest start in provenance.json with the number of `starts`; empty if it is damaged."""
    starts = read_object(run_folder / PROVENANCE_FILE).get("starts")
    if not isinstance(starts, list) or not starts or not isinstance(starts[-1], dict):
        return {}
    return {**starts[-1], "starts": len(starts)} if starts[-1].keys() >= _START_KEYS else {}


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
