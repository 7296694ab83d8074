"""Builds the section of a report about one split: plots, classes, confused labels, worst examples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from framework.tracking.analysis.content import most_confused
from framework.tracking.analysis.page import Markup, element, figures, framed_table, joined, picture, table
from framework.tracking.analysis.pictures import MOST_NUMBERED_LABELS, needs_legend

_SHOWN_CHARACTERS = 320
_FEW_LABELS = 6
_PAIRS = 15
_MOST_BESIDE_OTHERS = 12
"""With more labels, a confusion matrix gets the full width."""

_NO_NUMBER = "–"


def split_section(run_folder: Path, name: str, analysis: Mapping[str, Any]) -> Markup:
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
    return element(
        "section",
        element("h2", heading(name)),
        element("p", " · ".join(details), kind="soft"),
        joined(
            [_pictures(run_folder, name, analysis), _classes(analysis["classes"]), _confused(analysis["confusion"])]
        ),
        _examples(analysis),
        identity=name,
    )


def heading(name: str) -> str:
    """Returns the name of an analysis as a heading."""
    return name[:1].upper() + name[1:].replace("_", " ")


def number(value: float | None, form: str = ".4f") -> str:
    """Formats a number for a table cell; None becomes a dash."""
    return _NO_NUMBER if value is None else format(value, form)


def _pictures(run_folder: Path, name: str, analysis: Mapping[str, Any]) -> Markup:
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
    pictures = [
        picture(run_folder / "plots" / f"{name}_{key}.png", f"{key} of {name}", caption, kinds.get(key, ""))
        for key, caption in captions.items()
        if analysis[key]
    ]
    return figures(pictures)


def _classes(classes: Sequence[Mapping[str, Any]]) -> Markup:
    if not classes:
        return Markup()
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
    title = f"The {len(rows)} classes, worst F1 first" if is_long else "By class"
    return joined([element("h3", title), table(header, cells)])


def _confused(confusion: Mapping[str, Any] | None) -> Markup:
    if confusion is None:
        return Markup()
    parts = []
    labels = confusion["labels"]
    if needs_legend(labels):
        legend = [(str(index), label) for index, label in enumerate(labels, start=1)]
        parts += [element("h3", "Numbers in the confusion matrix"), table(("number", "label"), legend)]
    pairs = most_confused(confusion, _PAIRS)
    if pairs and len(labels) >= _FEW_LABELS:
        present = dict.fromkeys(labels, 0)
        for row, _, times in confusion["cells"]:
            present[labels[row]] += times
        rows = [
            (expected, predicted, f"{times:,}", f"{times / present[expected]:.1%}")
            for expected, predicted, times in pairs
        ]
        title = element("h3", "Most confused")
        parts += [title, table(("expected", "predicted", "times", "of the expected label"), rows)]
    return joined(parts)


def _examples(analysis: Mapping[str, Any]) -> Markup:
    examples = analysis["examples"]
    if not examples:
        return Markup()
    columns = {
        name: (title, form)
        for name, title, form in (
            ("confidence", "confidence", ".1%"),
            ("loss", "loss", ".3f"),
            ("score", "score", ".3f"),
            ("length", "tokens", ",d"),
        )
        # Columns whose values are all 0 or missing are omitted: a score of 0 only repeats that the row is wrong.
        if any(example[name] for example in examples)
    }
    head = element(
        "tr",
        *(element("th", name) for name in ("text", "expected", "predicted")),
        *(element("th", title, kind="number") for title, _ in columns.values()),
    )
    lines = [
        element(
            "tr",
            element("td", _shorten(example["text"]), element("small", example["place"]), kind="text"),
            *(element("td", _shorten(example[name]), kind=name) for name in ("expected", "predicted")),
            *(element("td", number(example[name], form), kind="number") for name, (_, form) in columns.items()),
        )
        for example in examples
    ]
    order = "largest loss first" if examples[0]["loss"] is not None else "lowest score first, then the most confident"
    return joined(
        [
            element("h3", f"The {len(examples)} worst examples, {order}"),
            framed_table(head, lines, "examples", full_length=True),
        ]
    )


def _shorten(text: str) -> str:
    """Shows the beginning of a long text; a click opens the full text."""
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    beginning = text[:_SHOWN_CHARACTERS].rstrip() + " …"
    return element("details", element("summary", beginning), element("div", text))
