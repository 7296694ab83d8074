"""Draws a comparison of plans: tokens a second by the number of devices, and the memory of a rank."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib.ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from framework.planning.comparison import Compared, Totals, cheapest, totals_of
from framework.planning.hardware import GIGA
from framework.planning.memory import KINDS
from framework.planning.planner import Plan
from framework.tracking.palette import BLUE, DOTS_PER_INCH, GREY, LIGHT, ORANGE
from framework.tracking.plots import label_axes

PICTURE = "plan.png"

_WIDTH_INCHES, _ROW_INCHES, _LEAST_INCHES = 11.0, 0.3, 4.0
_SERIES = (BLUE, ORANGE, "#3d8f5f", "#8a5fb0", "#b04a5a", GREY)
_COLORS = (BLUE, "#b04a5a", "#8a5fb0", ORANGE, "#3d8f5f", "#c2b04a", "#6ab0c2", GREY)
_KIND_COLORS = dict(zip(KINDS, _COLORS, strict=True))
_RANK_KEYS = ("plan.nodes", "plan.gpus_per_node")


def draw_comparison(compared: Sequence[Compared], folder: Path, title: str) -> Path:
    """Draws the combinations that can be planned into `plan.png`, and returns its path.

    Args:
        compared: Combinations in the order of the table.
        folder: Folder, which is created.
        title: Names of the compared keys, shown above the picture.
    """
    shown = [(each, each.plan, totals_of(each.plan)) for each in compared if each.plan is not None]
    height = max(_LEAST_INCHES, _ROW_INCHES * len(shown) + 1.5)
    figure = Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")
    FigureCanvasAgg(figure)
    speed, memory = figure.subplots(1, 2)
    if len({totals.ranks for _, _, totals in shown}) > 1:
        _draw_scaling(speed, shown)
    else:
        _draw_speeds(speed, shown)
    _draw_memory(memory, shown, cheapest(compared))
    speed.set_title(title, loc="right", color=GREY, fontsize=9)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PICTURE
    figure.savefig(path, dpi=DOTS_PER_INCH)
    return path


def _draw_scaling(axes: Axes, shown: Sequence[tuple[Compared, Plan, Totals]]) -> None:
    """Draws a line for each combination of the keys other than the number of devices, with its range."""
    series: dict[str, list[Totals]] = defaultdict(list)
    for each, _, totals in shown:
        pairs = (override.partition("=")[::2] for override in each.overrides)
        series[", ".join(value for key, value in pairs if key not in _RANK_KEYS)].append(totals)
    for number, (name, members) in enumerate(series.items()):
        members = sorted(members, key=lambda totals: totals.ranks)
        ranks = [totals.ranks for totals in members]
        expected, least, most = zip(*(totals.tokens_per_second for totals in members), strict=True)
        color = _SERIES[number % len(_SERIES)]
        axes.plot(ranks, expected, "o-", color=color, linewidth=1.8, markersize=4, label=name or "expected")
        axes.fill_between(ranks, least, most, color=color, alpha=0.12, linewidth=0)
    first = min((totals for _, _, totals in shown), key=lambda totals: (totals.ranks, -totals.tokens_per_second[0]))
    last = max(totals.ranks for _, _, totals in shown)
    start = first.tokens_per_second[0]
    line = [start, start * last / first.ranks]
    axes.plot([first.ranks, last], line, "--", color=GREY, linewidth=1.0, label="proportional")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sorted({totals.ranks for _, _, totals in shown}))
    axes.xaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    label_axes(axes, "Speed", "devices", "tokens per second")
    axes.legend(frameon=False)


def _draw_speeds(axes: Axes, shown: Sequence[tuple[Compared, Plan, Totals]]) -> None:
    """Draws a bar for each combination, with its range."""
    speeds = [totals.tokens_per_second for _, _, totals in shown]
    expected = [speed[0] for speed in speeds]
    ranges = [[speed[0] - speed[1] for speed in speeds], [speed[2] - speed[0] for speed in speeds]]
    axes.barh(range(len(shown)), expected, xerr=ranges, color=BLUE, ecolor=GREY, height=0.62)
    _label_bars(axes, "Speed", "tokens per second", [each.label for each, _, _ in shown])


def _draw_memory(axes: Axes, shown: Sequence[tuple[Compared, Plan, Totals]], best: Compared | None) -> None:
    """Draws the memory of a rank in the phase that needs most, by its kinds, and the memory of the device."""
    lefts = [0.0] * len(shown)
    peaks = [
        max((record.step.peak for record in plan.records), key=lambda peak: peak.num_bytes) for _, plan, _ in shown
    ]
    reserves = [plan.required_bytes - peak.num_bytes for (_, plan, _), peak in zip(shown, peaks, strict=True)]
    parts: list[tuple[str, Sequence[float], str]] = [
        *((kind, [peak.by_kind[kind] for peak in peaks], _KIND_COLORS[kind]) for kind in KINDS),
        ("device and fragments", reserves, LIGHT),
    ]
    for name, sizes, color in parts:
        widths = [size / GIGA for size in sizes]
        if max(widths) > 0.002 * max(plan.required_bytes for _, plan, _ in shown) / GIGA:
            axes.barh(range(len(shown)), widths, left=lefts, color=color, height=0.62, label=name)
        lefts = [left + width for left, width in zip(lefts, widths, strict=True)]
    for row, (_, plan, _) in enumerate(shown):
        limit = plan.hardware.memory_gb
        axes.plot([limit, limit], [row - 0.45, row + 0.45], color="black", linewidth=1.5)
    marks = [f"{each.label} *" if each is best else each.label for each, _, _ in shown]
    _label_bars(axes, "Memory of a rank", "GB; black: memory of the device; *: cheapest that fits", marks)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4)


def _label_bars(axes: Axes, title: str, horizontal: str, labels: Sequence[str]) -> None:
    label_axes(axes, title, horizontal, "")
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.grid(axis="x", color=LIGHT, linewidth=0.8)
