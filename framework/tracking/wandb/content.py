"""Uploads the results of a finished run to Weights & Biases: plots, tables, report.html and the exported model.

All content is read from the run folder. `wandb` is imported only when something is uploaded.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.tracking.analysis.content import most_confused, read_analyses
from framework.tracking.analysis.report import REPORT_FILE

if TYPE_CHECKING:
    from wandb import Run

_PAIRS = 50


def log_content(run: "Run", run_folder: Path) -> None:
    """Logs `plots/NAME.png`, the tables of all analyses and report.html at the run's last step.

    Args:
        run: Open W&B run.
        run_folder: Run folder.
    """
    import wandb

    content: dict[str, Any] = {}
    for picture in sorted((run_folder / "plots").glob("*.png")):
        content[f"plots/{picture.stem}"] = wandb.Image(str(picture))
    for name, (columns, rows) in _tables(run_folder):
        content[name] = wandb.Table(columns=columns, data=rows)
    if (run_folder / REPORT_FILE).is_file():
        content["report"] = wandb.Html(str(run_folder / REPORT_FILE))
    if content:
        run.log(content)


def log_model(run: "Run", export: Path, metadata: Mapping[str, Any]) -> None:
    """Logs an exported model, which transformers can load, as an artifact of type `model` named after the run's id.

    Args:
        run: Open W&B run.
        export: Folder of the exported model.
        metadata: Values shown with the artifact, such as metrics.
    """
    import wandb

    artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=dict(metadata))
    artifact.add_dir(str(export))
    run.log_artifact(artifact)


def _tables(run_folder: Path) -> Iterator[tuple[str, tuple[list[str | int], list[list[Any]]]]]:
    """Yields name, columns and rows of each available table: `NAME/classes`, `NAME/confused`, `NAME/examples`."""
    for name, analysis in read_analyses(run_folder).items():
        for kind in ("classes", "examples"):
            if analysis[kind]:
                yield f"{name}/{kind}", _as_table(analysis[kind])
        pairs = most_confused(analysis["confusion"], _PAIRS) if analysis["confusion"] else []
        if pairs:
            yield f"{name}/confused", (["expected", "predicted", "times"], [list(pair) for pair in pairs])


def _as_table(records: Sequence[Mapping[str, Any]]) -> tuple[list[str | int], list[list[Any]]]:
    columns: list[str | int] = list(records[0])
    return columns, [list(record.values()) for record in records]
