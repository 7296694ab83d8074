"""Draws the plots of a run from its metrics.jsonl and perf.jsonl: loss, learning rate, throughput, probes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from framework.tracking.metric_names import describe, label_in_run
from framework.tracking.metrics_jsonl import read_rows
from framework.tracking.palette import BLUE, DOTS_PER_INCH, GREY, LIGHT, ORANGE

_SIZE_INCHES = (7.2, 4.0)


def draw_plots(run_folder: Path, title: str) -> list[Path]:
    """Draws the plots for which the run has rows into `plots/`.

    Args:
        run_folder: Folder with metrics.jsonl and perf.jsonl.
        title: Name of the run, shown above each plot.

    Returns:
        Paths of the PNG files.
    """
    metrics = read_rows(run_folder / "metrics.jsonl")
    perf = read_rows(run_folder / "perf.jsonl")
    pictures = {
        "loss": lambda axes: _draw_loss(axes, metrics),
        "learning_rate": lambda axes: _draw_learning_rate(axes, metrics),
        "throughput": lambda axes: _draw_throughput(axes, perf),
        "probes": lambda axes: _draw_probes(axes, metrics),
    }
    written = []
    for name, draw in pictures.items():
        figure, axes = new_figure(title, _SIZE_INCHES, "constrained")
        if draw(axes):
            path = run_folder / "plots" / f"{name}.png"
            path.parent.mkdir(exist_ok=True)
            figure.savefig(path, dpi=DOTS_PER_INCH)
            written.append(path)
    return written


def smooth(values: np.ndarray) -> np.ndarray:
    """Returns the centred moving average over a tenth of the points.

    The window stays symmetric and shrinks towards both ends.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    half = np.minimum(max(1, len(values) // 20), np.minimum(index, index[::-1]))
    return (sums[index + half + 1] - sums[index - half]) / (2 * half + 1)


def _series(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64)


def _draw_loss(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> bool:
    steps, values = _series(rows, "train/loss")
    if not len(steps):
        return False
    axes.plot(steps, values, color=BLUE, alpha=0.3, linewidth=1.0)
    axes.plot(steps, smooth(values), color=BLUE, linewidth=2.0, label="training (smoothed)")
    val_steps, val_values = _series(rows, "val/loss")
    if len(val_steps):
        axes.plot(val_steps, val_values, color=ORANGE, linewidth=1.0, alpha=0.5)
        axes.plot(val_steps, val_values, "o", color=ORANGE, markersize=5, label="validation")
    axes.legend(frameon=False)
    _label_steps(axes, "train/loss", "Loss")
    return True


def _draw_learning_rate(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> bool:
    steps, values = _series(rows, "optim/lr")
    if not len(steps):
        return False
    axes.plot(steps, values, color=BLUE, linewidth=2.0)
    axes.set_ylim(bottom=0.0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useMathText=True)
    _label_steps(axes, "optim/lr", "Learning rate")
    return True


def _draw_throughput(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> bool:
    steps, values = _series(rows, "perf/tokens_per_second")
    if not len(steps):
        return False
    median = float(np.median(values))
    axes.plot(steps, values, color=BLUE, linewidth=1.5)
    axes.axhline(median, color=GREY, linewidth=1.0, linestyle="--", label=f"median {median:,.0f} tokens/s")
    _, planned = _series(rows, "plan/tokens_per_second")
    if len(planned):
        axes.axhline(planned[-1], color=ORANGE, linewidth=1.0, label=f"planned {planned[-1]:,.0f} tokens/s")
    axes.set_ylim(bottom=0.0, top=1.25 * float(max([*values, *planned])))
    axes.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.0f}"))
    axes.legend(frameon=False, loc="upper right")
    _label_steps(axes, "perf/tokens_per_second", "Throughput")
    return True


def _draw_probes(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Draws the first metric of each probe."""
    first: dict[str, str] = {}
    for key in (key for row in rows for key in row if key.startswith("probe/")):
        first.setdefault(key.split("/")[1], key)
    for key in first.values():
        axes.plot(*_series(rows, key), "o-", linewidth=1.5, markersize=4, label=label_in_run(key))
    if first:
        axes.legend(frameon=False)
        names = {describe(key) for key in first.values()}
        _label_steps(axes, next(iter(first.values())), "Probes on frozen features")
        axes.set_ylabel(", ".join(sorted(name.label for name in names)))
    return bool(first)


def new_figure(title: str, size_inches: tuple[float, float], layout: str) -> tuple[Figure, Axes]:
    """Makes a figure with one plot, titled at the right.

    Args:
        title: Name of the run or split.
        size_inches: Width and height.
        layout: Layout engine of matplotlib. "constrained" cuts off elements beside a square plot.
    """
    figure = Figure(figsize=size_inches, layout=layout)  # type: ignore[arg-type]  # a Literal there
    FigureCanvasAgg(figure)  # needs no window or display, whatever backend is configured
    axes = figure.add_subplot()
    axes.set_title(title, loc="right", color=GREY, fontsize=9)
    return figure, axes


def label_axes(axes: Axes, title: str, horizontal: str, vertical: str) -> None:
    """Writes the title and the names of the axes, and draws a grid behind the content."""
    axes.set_title(title, loc="left", fontweight="bold", fontsize=12)
    axes.set_xlabel(horizontal)
    axes.set_ylabel(vertical)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=LIGHT, linewidth=0.8)
    axes.set_axisbelow(True)


def _label_steps(axes: Axes, key: str, title: str) -> None:
    label_axes(axes, title, "step", describe(key).with_unit)
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(nbins=8, integer=True))
    axes.xaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.0f}"))
