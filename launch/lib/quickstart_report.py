"""Prints the closing table of the quick-start from the files of its runs."""

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

FINE_TUNED = {
    "finetune_pretrained": "encoder pre-trained here",
    "finetune_random": "same encoder, random weights",
    "finetune_minilm": "published MiniLM weights",
}


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file that contains one object."""
    return json.loads(path.read_text(encoding="utf-8"))


def first_and_last_loss(folder: Path) -> tuple[float, float]:
    """Returns the training loss of masked words in the first and the last row with such a loss."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [row["train/mlm_loss"] for row in rows if "train/mlm_loss" in row]
    return losses[0], losses[-1]


def sentiment_table(folder: Path) -> Table:
    """Builds a table of scores on the validation split, with the speed and the duration of each run."""
    table = Table(
        title="sentiment of Rotten Tomatoes sentences, validation split", title_justify="left", title_style="bold"
    )
    table.add_column("model")
    for name in ("accuracy", "macro F1", "tokens/s", "seconds"):
        table.add_column(name, justify="right")
    baseline = read_json(folder / "tfidf.json")
    table.add_row(
        "TF-IDF + logistic regression",
        f"{baseline['accuracy']:.3f}",
        f"{baseline['macro_f1']:.3f}",
        "",
        f"{baseline['seconds']:.0f}",
    )
    for run, label in FINE_TUNED.items():
        summary = read_json(folder / run / "summary.json")
        table.add_row(
            label,
            f"{summary['last']['val/accuracy']:.3f}",
            f"{summary['last']['val/macro_f1']:.3f}",
            f"{summary['tokens_per_second']:,.0f}",
            f"{summary['wall_seconds']:.0f}",
        )
    return table


def main(folder: Path, seconds: int, is_quick: bool) -> None:
    """Prints losses, scores, run folders and the total time."""
    console = Console()
    pretraining = read_json(folder / "pretrain" / "summary.json")
    first, last = first_and_last_loss(folder / "pretrain")
    console.print(
        f"pre-training: masked-word loss {first:.2f} -> {last:.2f} in {pretraining['steps']:,} steps, "
        f"{pretraining['tokens']:,} tokens, {pretraining['tokens_per_second']:,.0f} tokens/s, "
        f"{pretraining['wall_seconds']:.0f} seconds",
        soft_wrap=True,
    )
    console.print(sentiment_table(folder))
    for run in ("pretrain", *FINE_TUNED):
        plots = ", ".join(sorted(path.name for path in (folder / run / "plots").glob("*.png")))
        console.print(f"run folder {folder / run}, plots/: {plots}", highlight=False, soft_wrap=True)
    console.print(f"all of it took {seconds // 60} min {seconds % 60} s")
    if is_quick:
        console.print(
            "[bold]QUICK=1 used less data and fewer steps: these scores only show that the commands work.[/bold]"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1")
