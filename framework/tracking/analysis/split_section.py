"""Builds the section of a report about one split: plots, classes, confused labels, worst examples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from framework.tracking.analysis.content import most_confused
from framework.tracking.analysis.explanation_section import pieces_of
from framework.tracking.analysis.explanations import EXPLANATIONS
from framework.tracking.analysis.galleries import GALLERIES, gallery_tables
from framework.tracking.analysis.page import Picture, Section, Table
from framework.tracking.analysis.pictures import MOST_NUMBERED_LABELS, needs_legend

_FEW_LABELS = 6
_PAIRS = 15
_MOST_BESIDE_OTHERS = 12
"""With more labels, a confusion matrix gets the full width."""

_NO_NUMBER = "–"
_SHOWN_CHARACTERS = 320
"""Characters of a coloured text that are shown before it is opened; report.html.jinja shows as many of other texts."""

_EXAMPLE_NUMBERS = (
    ("confidence", "confidence", ".1%"),
    ("loss", "loss", ".3f"),
    ("score", "score", ".3f"),
    ("length", "tokens", ",d"),
)
"""Key in an example, name of the column, and format of each number of the worst examples."""


def split_section(run_folder: Path, name: str, analysis: Mapping[str, Any]) -> Section:
    """Builds the section of an analysis, without its metrics.

    Args:
        run_folder: Run folder, which has the plots in `plots/`.
        name: Name of the analysis.
        analysis: Analysis from `framework.tracking.analysis.content`.
    """
    details = [
        f"{analysis['rows']:,} rows",
        *(f"{fact}: {value}" for fact, value in analysis["facts"].items() if value),
    ]
    if analysis["score"] is not None:
        details.insert(1, f"{analysis['score_name']}: {analysis['score']:.4f}")
    return Section(
        name,
        heading(name),
        details=" · ".join(details),
        pictures=_pictures(run_folder, name, analysis),
        tables=[
            *_classes(analysis["classes"]),
            *_confused(analysis["confusion"]),
            *gallery_tables(analysis.get(GALLERIES, ())),
        ],
        examples=_examples(analysis["examples"], analysis.get(EXPLANATIONS, {}).get("examples", ())),
    )


def heading(name: str) -> str:
    """Returns the name of an analysis as a heading."""
    return name[:1].upper() + name[1:].replace("_", " ")


def number(value: float | None, form: str = ".4f") -> str:
    """Formats a number for a table cell; None becomes a dash."""
    return _NO_NUMBER if value is None else format(value, form)


def _pictures(run_folder: Path, name: str, analysis: Mapping[str, Any]) -> list[Picture]:
    captions = {
        "confusion": "Rows are expected labels, columns are predicted labels. The colour is the share of the row.",
        "calibration": "A prediction with the probability on the horizontal axis should be correct that often. The "
        "error is the mean distance from the diagonal (Guo et al. 2017).",
        "lengths": f"Mean {analysis['score_name']} of rows of similar length, with 95 % intervals."
        if analysis["score"] is not None
        else "Mean loss of rows of similar length.",
        "numbers": "Each point is a row.",
    }
    kinds = {"confusion": "tall"}
    if analysis["confusion"] and len(analysis["confusion"]["labels"]) > _MOST_BESIDE_OTHERS:
        kinds = {"confusion": "wide"}
    paths = {key: run_folder / "plots" / f"{name}_{key}.png" for key in captions if analysis[key]}
    return [
        Picture(path, f"{key} of {name}", captions[key], kinds.get(key, ""))
        for key, path in paths.items()
        if path.is_file()
    ]


def _classes(classes: Sequence[Mapping[str, Any]]) -> list[Table]:
    if not classes:
        return []
    is_long = len(classes) > MOST_NUMBERED_LABELS and "f1" in classes[0]
    rows = sorted(classes, key=lambda row: row["f1"]) if is_long else classes
    header = [column.replace("_", " ") for column in classes[0]]
    cells = [
        [
            f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
            for value in row.values()
        ]
        for row in rows
    ]
    return [Table(header, cells, f"The {len(rows)} classes, worst F1 first" if is_long else "By class")]


def _confused(confusion: Mapping[str, Any] | None) -> list[Table]:
    if confusion is None:
        return []
    tables = []
    labels = confusion["labels"]
    if needs_legend(labels):
        legend = [(str(index), label) for index, label in enumerate(labels, start=1)]
        tables.append(Table(("number", "label"), legend, "Numbers in the confusion matrix"))
    pairs = most_confused(confusion, _PAIRS)
    if pairs and len(labels) >= _FEW_LABELS:
        present = dict.fromkeys(labels, 0)
        for row, _, times in confusion["cells"]:
            present[labels[row]] += times
        rows = [
            (expected, predicted, f"{times:,}", f"{times / present[expected]:.1%}")
            for expected, predicted, times in pairs
        ]
        tables.append(Table(("expected", "predicted", "times", "of the expected label"), rows, "Most confused"))
    return tables


def _examples(
    examples: Sequence[Mapping[str, Any]], explained: Sequence[Mapping[str, Any] | None]
) -> list[dict[str, Any]]:
    """Adds the `numbers` that the page shows to each example, as texts by column, and its coloured text.

    Columns whose values are all 0 or missing are omitted: a score of 0 only repeats that the row is wrong.
    """
    columns = [column for column in _EXAMPLE_NUMBERS if any(example[column[0]] for example in examples)]
    coloured = [*explained, *[None] * len(examples)][: len(examples)]
    return [
        {
            **example,
            "numbers": {title: number(example[key], form) for key, title, form in columns},
            **_coloured(example["text"], words),
        }
        for example, words in zip(examples, coloured, strict=True)
    ]


def _coloured(text: str, explained: Mapping[str, Any] | None) -> dict[str, Any]:
    words = [] if explained is None else explained["words"]
    if explained is None or not words:
        return {"explained": "", "pieces": [], "first_pieces": []}
    pieces, _ = pieces_of(text, words, len(text))
    first, is_longer = pieces_of(text, words, _SHOWN_CHARACTERS)
    return {"explained": explained["explained"], "pieces": pieces, "first_pieces": first if is_longer else []}
