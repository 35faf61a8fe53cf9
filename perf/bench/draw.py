"""Plots as SVG text, by matplotlib, for pages that need no other file."""

from __future__ import annotations

import io
from typing import Any

from .result import Plot, Series

COLOURS = ("#1f5fa8", "#c8553d", "#3b8b5a", "#8456a8", "#b08a1e", "#555555", "#1a9aa0", "#a83f6f")


def svg(plot: Plot) -> str:
    """The plot as one ``<svg>`` element. The same data give the same text."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    settings: Any = {"svg.hashsalt": plot.name, "svg.fonttype": "path", "font.size": 9.0}
    with mpl.rc_context(settings):
        figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
        draw = {"lines": _lines, "bars": _bars, "stacked": _stacked}[plot.kind]
        draw(axes, plot)
        axes.set(xlabel=plot.x_label, ylabel=plot.y_label)
        axes.grid(visible=True, alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if len(plot.series) > 1 or plot.kind == "lines":
            axes.legend(frameon=False, fontsize=8)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        plt.close(figure)
    whole = text.getvalue()
    return whole[whole.index("<svg") :]


def _colours(plot: Plot) -> dict[str, str]:
    """A colour a model: what is computed for it is dashed in the same one."""
    stems = dict.fromkeys(s.name.removesuffix(", ceiling").removesuffix(", floor") for s in plot.series)
    return {stem: COLOURS[i % len(COLOURS)] for i, stem in enumerate(stems)}


def _lines(axes: Any, plot: Plot) -> None:
    colours = _colours(plot)
    for series in plot.series:
        colour = colours[series.name.removesuffix(", ceiling").removesuffix(", floor")]
        dashed = series.style == "computed"
        axes.plot(
            series.x, series.y, label=series.name, color=colour, linestyle="--" if dashed else "-",
            marker=None if dashed else "o", markersize=3.5, linewidth=1.4,
        )  # fmt: skip
        if series.low is not None and series.high is not None:
            axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.15, linewidth=0)
    if plot.log_x:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    if plot.log_y:
        axes.set_yscale("log")


def _bars(axes: Any, plot: Plot) -> None:
    width = 0.8 / len(plot.series)
    places = range(len(plot.series[0].x))
    for i, series in enumerate(plot.series):
        at = [place + (i - (len(plot.series) - 1) / 2) * width for place in places]
        axes.bar(at, series.y, width, label=series.name, color=COLOURS[i % len(COLOURS)])
    _name(axes, plot.series[0])
    if plot.log_y:
        axes.set_yscale("log")


def _stacked(axes: Any, plot: Plot) -> None:
    names = plot.series[0].x
    bottom = [0.0] * len(names)
    for i, series in enumerate(plot.series):
        axes.bar(
            range(len(names)),
            series.y,
            0.6,
            bottom=bottom,
            label=series.name,
            color=COLOURS[i % len(COLOURS)],
        )
        bottom = [a + b for a, b in zip(bottom, series.y, strict=True)]
    _name(axes, plot.series[0])


def _name(axes: Any, series: Series) -> None:
    axes.set_xticks(range(len(series.x)), [str(x) for x in series.x])
