"""Draws the data card of a token store as one picture, in the style of the pictures of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from framework.data.preparation.card import length_edges
from framework.errors import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

_BLUE = "#2f6db3"
_ORANGE = "#d9792b"
_GREY = "#5a6270"
_PALE = "#e3e6ea"
_DOTS_PER_INCH = 150
_SIZE_INCHES = (11.0, 7.6)
_BINS_PER_DOUBLING = 4
_MAX_SOURCES = 4
_AXIS_STEPS = {95: 1, 90: 2, 80: 5, 50: 10, 0: 20}
"""Lower limits of a percent axis in %, each with the distance of its ticks."""
_FATES = {
    "kept": "kept",
    "duplicates": "duplicates",
    "near_duplicates": "near-duplicates",
    "excluded": "excluded",
    "empty": "empty",
    "skipped_rows": "unreadable rows",
    "personal_data": "personal data",
}


def draw_card(content: Mapping[str, Any], path: str | Path, title: str) -> None:
    """Draws a card into a PNG file.

    Args:
        content: Content from `CardBuilder.content`.
        path: PNG file.
        title: Name of the store, shown at the top.
    """
    # A local import, because only one of the many processes of preparation draws.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(rect=(0.008, 0.008, 0.984, 0.984), h_pad=0.09, w_pad=0.09)
    figure = Figure(figsize=_SIZE_INCHES, layout=layout)
    FigureCanvasAgg(figure)  # needs no display and ignores the configured backend
    rows = figure.add_gridspec(3, 1, height_ratios=[1.3, 3.4, 2.3])
    head, middle, foot = (figure.add_subfigure(rows[row]) for row in range(3))
    _draw_totals(head, content, title)
    documents, sentences = middle.subplots(1, 2)
    _draw_lengths(documents, content["tokens_per_document"], "document")
    _draw_lengths(sentences, content["tokens_per_sentence"], "sentence")
    packing = content["packing_efficiency"]
    if packing:
        fates, efficiency = foot.subplots(1, 2, width_ratios=[3, 2])
        _draw_packing(efficiency, packing)
    else:
        fates = foot.subplots()
    _draw_fates(fates, content["documents"])
    figure.savefig(path, dpi=_DOTS_PER_INCH)


def _draw_totals(figure: "SubFigure", content: Mapping[str, Any], title: str) -> None:
    unknown = content["unknown_token_rate"]
    totals = {
        "tokens": _short(content["tokens"]),
        "documents": _short(content["documents"]["kept"]),
        "sentences": _short(content["sentences"]),
        "of text read": _short(content["bytes"], "B"),
        "vocabulary size": f"{content['vocab_size']:,}",
        "unknown tokens" if unknown is not None else "unknown (not counted)": _percent(unknown),
    }
    figure.text(0.012, 0.84, title, fontsize=16, fontweight="bold", va="center", parse_math=False)
    sources = _format_sources(content["sources"])
    figure.text(0.988, 0.84, sources, fontsize=10, color=_GREY, va="center", ha="right", parse_math=False)
    for index, (name, value) in enumerate(totals.items()):
        left = 0.012 + index * 0.165
        figure.text(left, 0.45, value, fontsize=20, color=_BLUE, va="center")
        figure.text(left, 0.17, name, fontsize=10, color=_GREY, va="center")


def _format_sources(sources: Sequence[Mapping[str, Any]]) -> str:
    listed = [f"{source['name']} {source['documents']:,}" for source in sources[:_MAX_SOURCES]]
    more = len(sources) - len(listed)
    return ", ".join([*listed, counted(more, "more source")] if more else listed)


def _draw_lengths(axes: "Axes", lengths: Mapping[str, Any], unit: str) -> None:
    edges, heights = _bars(lengths["histogram"])
    axes.stairs(heights, edges, fill=True, color=_BLUE)
    axes.set_xscale("log", base=2)
    # Show at least four doublings; otherwise the bar of a store of one document would fill the whole width.
    missing = max(0.0, 4.0 - float(np.log2(edges[-1] / edges[0]))) / 2
    axes.set_xlim(max(0.5, edges[0] / 2**missing), edges[-1] * 2**missing)
    _ticks_at_powers_of_two(axes)
    top = 1.12 * max(1.0, float(heights.max()))
    axes.set_ylim(0.0, top)
    axes.locator_params(axis="y", integer=True, min_n_ticks=1)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    median = lengths["quantiles"]["0.5"]
    axes.axvline(median, color=_ORANGE, linewidth=1.5)
    name = f"median {median:,.0f}"
    axes.annotate(name, (median, top), (5, -2), textcoords="offset points", va="top", color=_ORANGE, fontsize=9)
    note = f"95 % up to {lengths['quantiles']['0.95']:,.0f}, longest {lengths['maximum']:,}"
    _frame(axes, f"Tokens per {unit}", note)
    axes.grid(axis="y", color=_PALE, linewidth=0.8)
    axes.set_xlabel("length (tokens)")
    axes.set_ylabel(f"{unit}s per bin")


def _bars(histogram: Mapping[str, Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the edges and the heights of wider bins.

    The heights are scaled to bins of equal width on the log axis, because bins of few integers differ in width.
    """
    fine, counts = np.array(histogram["edges"]), np.array(histogram["counts"])
    edges = length_edges(_BINS_PER_DOUBLING)
    first = np.searchsorted(edges, fine[0], side="right") - 1
    past = np.searchsorted(edges, fine[-1], side="left")
    edges = edges[first : past + 1]
    sums = np.histogram(fine[:-1], bins=edges, weights=counts)[0]
    # Shift the edges so that a bar surrounds the integers that it counts.
    edges = edges - 0.5
    return edges, sums / (_BINS_PER_DOUBLING * np.diff(np.log2(edges)))


def _ticks_at_powers_of_two(axes: "Axes") -> None:
    low, high = (float(np.log2(limit)) for limit in axes.get_xlim())
    step = max(1, int(np.ceil((high - low) / 10)))
    ticks = 2 ** np.arange(int(np.ceil(low)) + (low < 0), int(np.floor(high)) + 1, step)
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.minorticks_off()


def _draw_fates(axes: "Axes", documents: Mapping[str, int]) -> None:
    names = {fate: name for fate, name in _FATES.items() if fate in documents}
    values = [documents[fate] for fate in names]
    read = documents["read"]
    colors = [_BLUE] + [_ORANGE] * (len(values) - 1)
    bars = axes.barh(list(names.values()), values, color=colors, height=0.62)
    labels = [f"{value:,}   {_percent(value / read)}" if value else "0" for value in values]
    axes.bar_label(bars, labels, padding=5, color=_GREY, fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0.0, 1.25 * max(values))
    _frame(axes, "Documents by outcome", f"{read:,} read")
    # The bar labels show the numbers.
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _draw_packing(axes: "Axes", packing: Mapping[str, float]) -> None:
    percents = [100.0 * share for share in packing.values()]
    bottom = _axis_start(min(percents))
    bars = axes.bar([f"{int(length):,}" for length in packing], percents, color=_BLUE, width=0.55)
    axes.bar_label(bars, [f"{percent:.2f} %" for percent in percents], padding=3, color=_GREY, fontsize=9)
    axes.set_ylim(bottom, 100.0 + 0.14 * (100.0 - bottom))
    axes.set_yticks(np.arange(bottom, 101, _AXIS_STEPS[bottom]))
    middle, half = (len(packing) - 1) / 2, max(3, len(packing)) / 2
    axes.set_xlim(middle - half, middle + half)
    _frame(axes, "Packing efficiency", f"axis from {bottom} %" if bottom else "")
    axes.grid(axis="y", color=_PALE, linewidth=0.8)
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel("sequence length (tokens)")
    axes.set_ylabel("real tokens (% of all)")


def _axis_start(smallest: float) -> int:
    """Returns the highest lower limit in % with which the shortest bar still takes a third of the height."""
    return next((start for start in _AXIS_STEPS if smallest >= start + (100 - start) / 3), 0)


def _frame(axes: "Axes", title: str, note: str) -> None:
    axes.set_title(title, loc="left", fontweight="bold", fontsize=12)
    axes.set_title(note, loc="right", color=_GREY, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)


def _short(number: int, unit: str = "") -> str:
    for limit, prefix in ((10**12, "T"), (10**9, "G"), (10**6, "M")):
        if number >= limit:
            return f"{number / limit:.3g} {prefix}{unit}"
    return f"{number:,} {unit}".rstrip()


def _percent(share: float | None) -> str:
    """Formats a share with about two digits; a share that is not exactly 0 or 1 is never shown as 0 or 100 %."""
    if share is None:
        return "–"
    percent = 100.0 * share
    if 99.95 <= percent < 100.0:
        return "> 99.9 %"
    if 0.0 < percent < 0.001:
        return "< 0.001 %"
    return f"{percent:.1f} %" if 10.0 <= percent < 100.0 else f"{percent:.2g} %" if percent < 10.0 else "100 %"
