"""Draws the plots of one split from its analysis: confusion matrix, calibration, scores by length, numbers."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import MaxNLocator, PercentFormatter

from framework.tracking.analysis.explanation_pictures import draw_explanations
from framework.tracking.analysis.explanations import EXPLANATIONS
from framework.tracking.analysis.fonts import font_for
from framework.tracking.palette import BLUE, DOTS_PER_INCH, GREY, LIGHT
from framework.tracking.plots import label_axes, new_figure

MOST_NUMBERED_LABELS = 30
"""With more labels, a matrix is drawn without names and counts, which would be too small to read."""

_WIDTH_INCHES = 7.2
_LONGEST_NAME = 28


def draw_analysis(run_folder: Path, name: str, analysis: Mapping[str, Any]) -> list[Path]:
    """Draws the plots for which an analysis has data into `plots/NAME_*.png`.

    Args:
        run_folder: Run folder that the plots are written into.
        name: Name of the analysis, shown above each plot.
        analysis: Analysis from `framework.tracking.analysis.content`.

    Raises:
        OSError: Writing failed.
    """
    pictures: dict[str, Callable[[str, Any], Figure]] = {
        "confusion": _draw_confusion,
        "calibration": _draw_calibration,
        "lengths": lambda title, buckets: _draw_lengths(title, buckets, analysis["score_name"]),
        "numbers": _draw_numbers,
    }
    written = []
    for key, draw in pictures.items():
        if analysis[key]:
            path = run_folder / "plots" / f"{name}_{key}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(name, analysis[key]).savefig(path, dpi=DOTS_PER_INCH)
            written.append(path)
    return written + draw_explanations(run_folder, name, analysis.get(EXPLANATIONS, {}))


def needs_legend(labels: Sequence[str]) -> bool:
    """Returns True if a confusion matrix needs numbers as names, because no installed font has their characters."""
    return len(labels) <= MOST_NUMBERED_LABELS and font_for(labels) is None


def _draw_confusion(title: str, confusion: Mapping[str, Any]) -> Figure:
    labels = confusion["labels"]
    counts = np.zeros((len(labels), len(labels)), dtype=np.int64)
    for row, column, times in confusion["cells"]:
        counts[row, column] = times
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    has_names = len(labels) <= MOST_NUMBERED_LABELS
    size = max(4.8, min(9.6, 3.4 + 0.34 * len(labels))) if has_names else 8.4
    figure, axes = new_figure(title, (size + 1.0, size), "compressed")
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, interpolation="nearest")
    bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.02, format=PercentFormatter(1.0, decimals=0))
    bar.set_label("share of the expected label", color=GREY)
    bar.outline.set_visible(False)  # type: ignore[operator]  # matplotlib types it as a callable
    axes.set_title("Confusion matrix", loc="left", fontweight="bold", fontsize=12)
    axes.set_xlabel("predicted")
    axes.set_ylabel("expected")
    axes.spines[:].set_visible(False)
    if has_names:
        _write_names(axes, labels)
        _write_counts(axes, counts, shares)
    return figure


def _write_names(axes: Axes, labels: Sequence[str]) -> None:
    font = font_for(labels)
    names = [str(index + 1) for index in range(len(labels))] if font is None else [_short(label) for label in labels]
    font = FontProperties() if font is None else font.copy()
    font.set_size(9 if len(labels) <= 16 else 7.5)
    positions = np.arange(len(labels))
    is_narrow = len(labels) <= 6 and max(map(len, names)) <= 10
    axes.set_xticks(positions, names, rotation=0 if is_narrow else 90, fontproperties=font)
    axes.set_yticks(positions, names, fontproperties=font)
    for name in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        name.set_parse_math(False)  # a $ is shown as a dollar sign
    axes.tick_params(length=0)
    axes.set_xticks(positions[1:] - 0.5, minor=True)
    axes.set_yticks(positions[1:] - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.0)
    axes.tick_params(which="minor", length=0)


def _write_counts(axes: Axes, counts: np.ndarray, shares: np.ndarray) -> None:
    size = 10 if len(counts) <= 8 else 8 if len(counts) <= 16 else 5.5
    for row, column in np.argwhere(counts).tolist():
        color = "white" if shares[row, column] > 0.55 else "#1d2733"
        text = f"{counts[row, column]:,}"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=size)


def _draw_calibration(title: str, calibration: Mapping[str, Any]) -> Figure:
    bins = calibration["bins"]
    figure = Figure(figsize=(_WIDTH_INCHES, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    axes.set_title(title, loc="right", color=GREY, fontsize=9)
    middles = [(each["start"] + each["stop"]) / 2 for each in bins]
    widths = [0.92 * (each["stop"] - each["start"]) for each in bins]
    model = f"model, expected calibration error {calibration['error']:.3f}"
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1.0, linestyle="--", label="calibrated")
    axes.bar(middles, [each["share"] for each in bins], widths, color=BLUE, alpha=0.25)
    axes.plot([each["probability"] for each in bins], [each["share"] for each in bins], "o-", color=BLUE, label=model)
    label_axes(axes, "Calibration", "", f"correct share of {calibration['of']}")
    axes.legend(frameon=False, loc="upper left", ncols=2)
    axes.set_xlim(0.0, 1.0)
    axes.set_ylim(0.0, 1.2)  # space for the legend
    axes.set_yticks([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    below.bar(middles, [each["count"] for each in bins], widths, color=GREY, alpha=0.6)
    label_axes(below, "", "probability", "count")
    below.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
    return figure


def _draw_lengths(title: str, buckets: Sequence[Mapping[str, Any]], score_name: str) -> Figure:
    has_scores = all(each["score"] is not None for each in buckets)
    figure, axes = new_figure(title, (_WIDTH_INCHES, 4.0), "compressed")
    values = np.array([each["score"] if has_scores else each["loss"] for each in buckets])
    positions = np.arange(len(buckets))
    axes.bar(positions, values, 0.72, color=BLUE, alpha=0.8)
    tops = values
    if has_scores:
        errors = np.array([each["score_error"] for each in buckets])
        bounds = np.stack([np.minimum(errors, values), np.minimum(errors, 1 - values)])
        axes.errorbar(positions, values, bounds, fmt="none", ecolor=GREY, elinewidth=1.2, capsize=3)
        tops = values + bounds[1]
        axes.set_ylim(0.0, 1.12)
        axes.set_yticks([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    for position, value, top in zip(positions.tolist(), values.tolist(), tops.tolist(), strict=True):
        axes.annotate(f"{value:#.3g}", (position, top), (0, 3), textcoords="offset points", ha="center", fontsize=9)
    names = [
        f"{each['first']}" if each["first"] == each["last"] else f"{each['first']}–{each['last']}" for each in buckets
    ]
    names = [f"{name}\n{each['rows']:,} rows" for name, each in zip(names, buckets, strict=True)]
    axes.set_xticks(positions, names, fontsize=9)
    label_axes(axes, "By length", "tokens", score_name if has_scores else "mean loss")
    return figure


def _draw_numbers(title: str, numbers: Mapping[str, Sequence[float]]) -> Figure:
    figure, axes = new_figure(title, (5.6, 5.0), "compressed")
    axes.plot(numbers["expected"], numbers["predicted"], "o", color=BLUE, alpha=0.3, markersize=4, markeredgewidth=0)
    label_axes(axes, "Predicted against expected", "expected", "predicted")
    axes.grid(axis="x", color=LIGHT, linewidth=0.8)
    return figure


def _short(label: str) -> str:
    return label if len(label) <= _LONGEST_NAME else label[: _LONGEST_NAME - 1] + "…"
