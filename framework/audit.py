"""Audits a run, checkpoint or export: `python -m framework.audit run=RUN audit=[contrast]`.

The same command runs under torchrun, where processes share the rows.
"""

if __name__ == "__main__":
    from framework.config.command import start

    start("framework.audit")  # imports this module, and so all of the below, when the config is composed

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.table import Table

import framework.distributed.processes.early_check  # noqa: F401  must come before Lightning
from framework.audits.audit import Audit, Finding, RowAudit, Subject
from framework.audits.passes import gather_rows, run_audits
from framework.config.command import command
from framework.config.command_schema import AuditConfig
from framework.config.dry_check import print_check
from framework.config.nodes import TARGET_KEY
from framework.config.outputs import write_to_stdout
from framework.distributed.processes.environment import process_info
from framework.errors import AuditError, ConfigError
from framework.runs.evaluation_data import describe_weights, open_split, open_training, read_data_settings
from framework.runs.trained import Trained, describe_trained, open_inference, open_model
from framework.tracking.analysis.audits import format_cell, write_audit
from framework.tracking.analysis.report import draw_pictures, write_report
from framework.tracking.console import open_console, print_line

_DECIMALS = 4
"""Decimals of written numbers. The way in which rows are packed changes later decimals."""

_MOST_PARTS = 60
"""Most rows of a table on the console."""


@command("audit")
def audit(composed: DictConfig) -> dict[str, dict[str, Any]]:
    """Runs audits, writes their results to the run folder and prints a table.

    Returns:
        Results by name of the audit, as they are written; empty under `check`.

    Raises:
        AuditError: A rate exceeds `fail_above`. All results are written before.
    """
    settings, split, changes = read_data_settings(composed, AuditConfig)
    audits = build_audits(settings)
    is_first = process_info().rank == 0
    trained = open_model(settings, settings.task)
    folder = result_folder(settings, trained)
    read_split = partial(open_split, trained, settings.run, settings.data, split, changes)
    read_training = partial(open_training, trained, settings.run, settings.data, changes)
    subject = Subject(trained, split, read_split, read_training, settings.seed)
    for each in audits.values():
        each.check(subject)
    rows = gather_rows({name: each for name, each in audits.items() if isinstance(each, RowAudit)}, subject)
    if settings.check:
        if is_first:
            counts = [(f"audit {name}", f"{len(needed):,} rows") for name, needed in rows.needed.items()]
            print_check([*describe_trained(trained), *counts, ("different rows", f"{len(rows.different):,}")])
        return {}
    with open_inference(trained, settings.micro_batch_tokens, settings.precision.name) as inference:
        findings = run_audits(audits, rows, subject, inference)
    facts = {"weights": describe_weights(settings, trained), "precision": settings.precision.name}
    facts["seed"] = str(settings.seed)
    results = {
        name: as_json(finding, {**facts, "settings": describe_audit(settings, name)}, settings.report_examples)
        for name, finding in findings.items()
    }
    if is_first:
        print_results(settings.run, results, folder)
    check_limits(settings, results)
    return results


run = audit.run


def build_audits(settings: AuditConfig) -> dict[str, Audit]:
    """Builds the chosen audits by name.

    Raises:
        ConfigError: A class is not an audit.
    """
    audits = {name: component.build() for name, component in settings.audit.items()}
    for name, each in audits.items():
        if not isinstance(each, Audit):
            raise ConfigError(
                f"`audit.{name}.{TARGET_KEY}` is {type(each).__name__}, which is no audit. The class must derive from "
                "framework.audits.audit.RowAudit or ModelAudit. Change the class."
            )
    return audits


def result_folder(settings: AuditConfig, trained: Trained) -> Path:
    """Returns the folder of the results: `output`, else the run folder, else a folder beside the export.

    Raises:
        ConfigError: `output` is a file.
    """
    if settings.output is not None:
        folder = Path(settings.output)
        if folder.exists() and not folder.is_dir():
            raise ConfigError(
                f"output={folder} is a file. Results are several files in a folder. Give the name of a folder."
            )
        return folder
    if trained.folder is not None:
        return trained.folder
    export = Path(settings.run)
    return export.with_name(f"{export.resolve().name}_audit") if export.is_dir() else Path(f"{export.name}_audit")


def describe_audit(settings: AuditConfig, name: str) -> str:
    """Describes the settings of an audit, for example "suite=tests.jsonl, tolerance=0.1"; null ones are left out."""
    given = settings.audit[name].arguments
    return ", ".join(f"{key}={value}" for key, value in given.items() if value is not None and value != [])


def as_json(finding: Finding, facts: Mapping[str, str], num_cases: int) -> dict[str, Any]:
    """Returns a finding as it is written (`framework.tracking.analysis.audits`).

    Args:
        finding: Result of an audit.
        facts: Further facts to show, such as the weights that were used.
        num_cases: Number of failed cases to keep.
    """
    interval = finding.interval
    limits = None if interval is None else {"low": interval.low, "high": interval.high, "method": interval.method}
    worst = [
        {"part": case.part, "text": case.text, "expected": case.expected, "predicted": case.predicted}
        for case in finding.worst[:num_cases]
    ]
    values = {
        "facts": dict(facts),
        "measure": finding.measure,
        "rate": finding.rate,
        "interval": limits,
        "cases": finding.num_cases,
        "summary": finding.summary,
        "parts": [dict(part) for part in finding.parts],
        "worst": worst,
        "notes": list(finding.notes),
    }
    rounded: dict[str, Any] = _rounded(values)
    return rounded


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, _DECIMALS) if isinstance(value, float) else value


def print_results(run_name: str, results: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Writes the results to a folder, redraws its report, and prints the tables.

    Tables are printed even if the folder cannot be written.
    """
    failure = None
    try:
        for name, values in results.items():
            write_audit(folder, name, values)
        draw_pictures(folder)
        line = f"report      {write_report(folder)}"
    except OSError as error:
        failure = ConfigError(
            f"the results could not be written to {folder} ({error.strerror or error}). The folder must be writable "
            "and have free space. Correct this, or give output=FOLDER."
        )
        line = ""
    console = open_console()
    with console.capture() as printed:
        console.print(f"[bold]{run_name}[/bold]", highlight=False)
        for name, values in results.items():
            if values["parts"]:
                console.print(part_table(name, values["parts"]))
        console.print(rate_table(results))
        for values in results.values():
            for sentence in (values["summary"], *values["notes"]):
                print_line(sentence, console)
        if line:
            print_line(line, console)
    write_to_stdout([printed.get()])
    if failure is not None:
        raise failure


def part_table(name: str, parts: list[dict[str, Any]]) -> Table:
    """Builds the table of the parts of an audit, at most _MOST_PARTS of them."""
    table = Table(title=name if len(parts) <= _MOST_PARTS else f"{name}, first {_MOST_PARTS} of {len(parts)} parts")
    for index, column in enumerate(parts[0]):
        table.add_column(column.replace("_", " "), justify="right" if index else "left")
    for part in parts[:_MOST_PARTS]:
        table.add_row(*(format_cell(value) for value in part.values()))
    return table


def rate_table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Builds a table with one row per audit."""
    table = Table("audit", "measure")
    for column in ("rate", "interval", "cases"):
        table.add_column(column, justify="right")
    for name, values in results.items():
        interval = values["interval"]
        limits = f"{interval['low']:.4f} to {interval['high']:.4f}" if interval else ""
        table.add_row(name, values["measure"], f"{values['rate']:.4f}", limits, f"{values['cases']:,}")
    return table


def check_limits(settings: AuditConfig, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks the rates against `fail_above`.

    Raises:
        AuditError: A rate exceeds its limit.
    """
    exceeded = [
        f"the audit {name} has the rate {values['rate']:.4f} ({values['measure']}), above fail_above={limit}"
        for name, values in results.items()
        if (limit := settings.limit(name)) is not None and values["rate"] > limit
    ]
    if exceeded:
        raise AuditError(f"{'; '.join(exceeded)}. The report lists the failed cases. Train the model on such cases.")
