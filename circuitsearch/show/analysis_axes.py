"""Axes of charts of findings: their size, and the names along them, which may be many or long."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from circuitsearch.core.findings import Chart
from circuitsearch.show.report_canvas import label
from circuitsearch.show.text import one_line

__all__ = ["add_legend", "chart_size", "name_places", "wrapped"]

_SMALLEST, _LARGEST = 8.0, 12.0  # inches; pages shrink wider figures until nobody can read them
_NAMED = 80  # names along an axis; of more, every second or third is written
_LETTER = 0.085  # inches that a letter of 9 points takes, roughly


def chart_size(chart: Chart) -> tuple[float, float]:
    """Return width and height in inches; names that stand upright add to the height."""
    places, count = len(chart.x), len(chart.series)
    if chart.kind == "heat":
        width = min(max(5.0, 2.6 + 0.55 * places), _LARGEST)
        return width, min(max(2.6, 1.8 + 0.36 * count), _LARGEST) + _upright(chart, width)
    if chart.kind == "bars":
        width = min(max(_SMALLEST, 1.5 + 0.2 * places * count), _LARGEST)
    else:
        width = _SMALLEST
    lines = -(-count // _legend_columns(chart, width)) if count > 1 else 0
    return width, 4.0 + 0.22 * lines + _upright(chart, width)


def name_places(axes: Any, chart: Chart, places: Sequence[float]) -> None:
    """Write the names along the lower axis, upright where they would run into each other."""
    names = _names(chart)
    step = -(-len(names) // _NAMED)
    axes.set_xticks(places[::step], names[::step])
    upright = _upright(chart, axes.figure.get_size_inches()[0]) > 0
    axes.tick_params(
        axis="x", length=0, rotation=90 if upright else 0, labelsize=8 if len(names) > 30 else 9
    )


def add_legend(axes: Any, chart: Chart) -> None:
    """Say below the axes, where it covers nothing, which series is which."""
    if len(chart.series) > 1:
        columns = _legend_columns(chart, axes.figure.get_size_inches()[0])
        axes.figure.legend(loc="outside lower left", ncols=columns, fontsize=9)


def wrapped(text: str, characters: float) -> str:
    """Return foreign text as three lines at most."""
    ends = "\N{HORIZONTAL ELLIPSIS}"
    width = max(20, int(characters))
    return "\n".join(textwrap.wrap(one_line(text), width, max_lines=3, placeholder=ends))


def _names(chart: Chart) -> list[str]:
    return [label(x if isinstance(x, str) else f"{x:g}") for x in chart.x]


def _upright(chart: Chart, width: float) -> float:
    """Return the inches that upright names take; 0 where names fit side by side, or are numbers."""
    if chart.kind == "lines":
        return 0.0
    longest = max(map(len, _names(chart)))
    room = (width - (2.6 if chart.kind == "heat" else 1.0)) / len(chart.x)
    return _LETTER * longest if _LETTER * (longest + 1) > room else 0.0


def _legend_columns(chart: Chart, width: float) -> int:
    """Return how many names of series stand side by side; each has a sample of 6 letters."""
    longest = max(len(label(series.name)) for series in chart.series)
    return max(1, min(len(chart.series), int(width / (_LETTER * (longest + 7)))))
