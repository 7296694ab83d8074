"""Draws the pictures of the explanations of a split: faithfulness, and the attention heads of one row."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from framework.tracking.analysis.explanations import decode_attention
from framework.tracking.analysis.fonts import font_for
from framework.tracking.palette import BLUE, DOTS_PER_INCH, GREY, LIGHT
from framework.tracking.plots import label_axes, new_figure

_WIDTH_INCHES = 7.2
_LARGEST_PANEL_INCHES = 1.6
_LONGEST_TOKEN = 14
_MEASURES = {
    "comprehensiveness": ("Comprehensiveness", "higher is better"),
    "sufficiency": ("Sufficiency", "lower is better"),
}


def draw_explanations(run_folder: Path, name: str, explanations: Mapping[str, Any]) -> list[Path]:
    """Draws the pictures for which explanations have data into `plots/NAME_*.png`.

    Args:
        run_folder: Run folder that the pictures are written into.
        name: Name of the analysis.
        explanations: Values of `explanation_values`; empty: the analysis has none.

    Raises:
        OSError: Writing failed.
    """
    pictures: dict[str, tuple[str, Callable[[str, Any], Figure]]] = {
        **{name: ("faithfulness", partial(_draw_faithfulness, name=name)) for name in _MEASURES},
        "attention": ("attention", _draw_mean_attention),
        "attention_heads": ("attention", _draw_attention_heads),
    }
    written = []
    for file, (key, draw) in pictures.items():
        if explanations.get(key):
            path = run_folder / "plots" / f"{name}_{file}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            draw(name, explanations[key]).savefig(path, dpi=DOTS_PER_INCH)
            written.append(path)
    return written


def _draw_faithfulness(title: str, measured: Mapping[str, Any], name: str) -> Figure:
    heading, direction = _MEASURES[name]
    figure, axes = new_figure(f"{title}, {direction}", (_WIDTH_INCHES, 4.4), "compressed")
    positions = np.arange(len(measured["fractions"]))
    for offset, key, colour, alpha, label in (
        (-0.2, name, BLUE, 0.85, "words with the highest scores"),
        (0.2, f"random_{name}", GREY, 0.45, "random words"),
    ):
        means = [mean for mean, _ in measured[key]]
        errors = [error or 0.0 for _, error in measured[key]]
        style: dict[str, Any] = {
            "yerr": errors,
            "ecolor": GREY,
            "capsize": 3,
            "color": colour,
            "alpha": alpha,
            "label": label,
        }
        axes.bar(positions + offset, means, 0.38, **style)
    label_axes(axes, heading, "share of the words of a row", f"drop of the {measured['value']}")
    axes.set_xticks(positions, [f"{fraction:.0%}" for fraction in measured["fractions"]])
    axes.axhline(0.0, color=GREY, linewidth=0.8)
    axes.set_ylim(*_limits(measured))
    axes.legend(frameon=False, loc="upper left", ncols=2)
    return figure


def _limits(measured: Mapping[str, Any]) -> tuple[float, float]:
    """Returns the same limits for both pictures, with space for the legend."""
    bounds = [
        mean + sign * (error or 0.0)
        for name in _MEASURES
        for key in (name, f"random_{name}")
        for mean, error in measured[key]
        for sign in (-1, 1)
    ]
    low, high = min(0.0, *bounds), max(0.0, *bounds)
    return low - 0.05 * (high - low), high + 0.2 * (high - low or 1.0)


def _draw_mean_attention(title: str, attention: Mapping[str, Any]) -> Figure:
    figure, axes = new_figure(title, (6.4, 5.8), "compressed")
    mean = np.mean([each.mean(axis=0) for each in decode_attention(attention)], axis=0)
    _draw_mean(axes, mean, [_short(token) for token in attention["tokens"]])
    axes.set_title("Mean of all heads", loc="left", fontweight="bold", fontsize=12)
    return figure


def _draw_attention_heads(title: str, attention: Mapping[str, Any]) -> Figure:
    layers = decode_attention(attention)
    num_heads = max(len(each) for each in layers)
    panel = min(_LARGEST_PANEL_INCHES, _WIDTH_INCHES / num_heads)
    figure, axes = new_figure(title, (panel * num_heads + 0.8, panel * len(layers) + 1.1), "compressed")
    _draw_heads(axes, layers, num_heads)
    axes.set_title("Every head", loc="left", fontweight="bold", fontsize=12)
    axes.set_ylabel("layer, from the input (1) to the output")
    return figure


def _draw_heads(axes: Axes, layers: Sequence[np.ndarray], num_heads: int) -> None:
    gap = 0.04
    for row, heads in enumerate(layers):
        for column, probabilities in enumerate(heads):
            extent = (column + gap, column + 1 - gap, row + 1 - gap, row + gap)
            axes.imshow(probabilities, cmap="Blues", vmin=0.0, vmax=1.0, interpolation="nearest", extent=extent)
    axes.set_xlim(0, num_heads)
    axes.set_ylim(len(layers), 0)
    axes.set_aspect("auto")
    axes.set_facecolor(LIGHT)
    axes.xaxis.tick_top()
    axes.set_xticks(np.arange(num_heads) + 0.5, [str(head + 1) for head in range(num_heads)])
    axes.set_yticks(np.arange(len(layers)) + 0.5, [str(layer + 1) for layer in range(len(layers))])
    axes.tick_params(length=0, colors=GREY, labelsize=9)
    axes.spines[:].set_visible(False)


def _draw_mean(axes: Axes, mean: np.ndarray, tokens: list[str]) -> None:
    axes.imshow(mean, cmap="Blues", vmin=0.0, vmax=float(mean.max()), interpolation="nearest")
    font = font_for(tokens)
    names = [str(index + 1) for index in range(len(tokens))] if font is None else tokens
    font = FontProperties() if font is None else font.copy()
    font.set_size(10 if len(tokens) <= 16 else 8)
    positions = np.arange(len(tokens))
    axes.xaxis.tick_top()
    axes.set_xticks(positions, names, rotation=60, ha="left", rotation_mode="anchor", fontproperties=font)
    axes.set_yticks(positions, names, fontproperties=font)
    for name in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        name.set_parse_math(False)  # a $ is shown as a dollar sign
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(positions[1:] - 0.5, minor=True)
    axes.set_yticks(positions[1:] - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.0)
    axes.tick_params(which="minor", length=0)


def _short(token: str) -> str:
    return token if len(token) <= _LONGEST_TOKEN else token[: _LONGEST_TOKEN - 1] + "…"
