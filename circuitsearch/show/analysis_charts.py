"""Charts of findings: bars with error bars, lines with bands, heat maps with their values.

What a colour says is said by something else, too: hatching of bars, markers and dashes of lines,
numbers in the cells of a map. Error bars and bands are 95 % intervals. Canvas, settings and files
are those of `report_canvas`: the same chart gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.ticker import FuncFormatter, NullLocator

from circuitsearch.core.findings import Chart, Finding, Series
from circuitsearch.show.analysis_axes import add_legend, chart_size, name_places, wrapped
from circuitsearch.show.analysis_heat import draw_heat
from circuitsearch.show.report_canvas import (
    BASELINE,
    BEST,
    GREY,
    INK,
    canvas,
    drawing,
    label,
    saved,
)

__all__ = ["chart_files", "charts_of"]

_STYLES = (
    (BEST, "", "o", "-"),
    (BASELINE, "//", "s", "--"),
    ("#009e73", "..", "^", "-."),
    ("#cc79a7", "\\\\", "D", ":"),
    (INK, "xx", "v", (0, (5, 1, 1, 1, 1, 1))),
    ("#e69f00", "--", "P", (0, (8, 2))),
    ("#56b4e9", "++", "X", (0, (2, 3))),
    (GREY, "oo", "<", (0, (1, 1))),
)
"""Colour of a series, hatching of its bars, marker and dashes of its line."""


def chart_files(chart: Chart) -> dict[str, bytes]:
    """Return a chart as the content of a `png` and of an `svg` file."""
    with drawing():
        figure = _figure(chart)
        # what is where is found out once; it takes as long as drawing does
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        return {kind: saved(figure, kind) for kind in ("png", "svg")}


def charts_of(findings: Mapping[str, Finding]) -> dict[str, list[dict[str, bytes]]]:
    """Return the files of every chart, by the name of the analysis."""
    return {
        name: [chart_files(chart) for chart in finding.charts] for name, finding in findings.items()
    }


def _figure(chart: Chart) -> Any:
    """Draw a chart."""
    axes = canvas(size=chart_size(chart))
    width, height = axes.figure.get_size_inches()
    {"bars": _bars, "lines": _lines, "heat": draw_heat}[chart.kind](axes, chart)
    axes.set_title(wrapped(chart.title, 9 * width))
    axes.set_xlabel(wrapped(chart.x_label, 10 * width))
    if chart.kind != "heat":
        axes.set_ylabel(wrapped(chart.y_label, 9 * min(height, 4.0)))
        add_legend(axes, chart)
    return axes.figure


def _bars(axes: Any, chart: Chart) -> None:
    """Draw groups of bars, one bar of a group per series."""
    count = len(chart.series)
    width = 0.8 / count
    for place, series in enumerate(chart.series):
        color, hatch, *_ = _STYLES[place % len(_STYLES)]
        shift = (place - (count - 1) / 2) * width
        known = [(at + shift, y) for at, y in enumerate(series.y) if y is not None]
        axes.bar(
            [at for at, _ in known],
            [y for _, y in known],
            width,
            color=color,
            hatch=hatch,
            edgecolor="white" if color == INK else INK,
            linewidth=0.6,
            label=label(series.name),
        )
        _error_bars(axes, series, shift)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set_xlim(-0.6, len(chart.x) - 0.4)
    axes.grid(visible=False, axis="x")
    name_places(axes, chart, range(len(chart.x)))


def _error_bars(axes: Any, series: Series, shift: float) -> None:
    """Draw the intervals of a series of bars, where there are any."""
    spans = [
        (at + shift, y, max(0.0, y - low), max(0.0, high - y))
        for at, (y, low, high) in enumerate(zip(series.y, series.low, series.high, strict=False))
        if y is not None and low is not None and high is not None
    ]
    if spans:
        at, y, below, above = zip(*spans, strict=True)
        axes.errorbar(at, y, yerr=[below, above], fmt="none", ecolor="#7d8b98", elinewidth=2.4)
        axes.errorbar(at, y, yerr=[below, above], fmt="none", ecolor=INK, elinewidth=1, capsize=2)


def _lines(axes: Any, chart: Chart) -> None:
    """Draw lines, their intervals as bands."""
    places = [float(x) for x in chart.x]
    nan = float("nan")
    for place, series in enumerate(chart.series):
        color, _, marker, dashes = _STYLES[place % len(_STYLES)]
        values, low, high = (
            [nan if one is None else one for one in each]
            for each in (series.y, series.low, series.high)
        )
        axes.plot(
            places,
            values,
            color=color,
            linestyle=dashes,
            linewidth=1.8,
            marker=marker if len(places) <= 40 else "",
            markersize=5.5,
            markeredgecolor="white",
            markeredgewidth=0.6,
            label=label(series.name),
        )
        if low and high:
            axes.fill_between(places, low, high, color=color, alpha=0.18, linewidth=0)
    if chart.log_x:
        _logarithmic(axes, places)


def _logarithmic(axes: Any, places: list[float]) -> None:
    """Make the axis logarithmic; where it begins at 0 or below, straight around 0."""
    sizes = [abs(x) for x in places if x]
    if min(places) > 0:
        axes.set_xscale("log")
    elif sizes:
        axes.set_xscale("symlog", linthresh=min(sizes))
    # formulas are off (names are names), so powers of ten are written out
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    if len(places) <= 12:
        axes.set_xticks(places)
    axes.xaxis.set_minor_locator(NullLocator())
