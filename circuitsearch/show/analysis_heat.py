"""Heat maps of findings: colours that colour-blind readers tell apart, and the number in each cell.

Cells are drawn as shapes, not as an image, so that a page needs no picture inside its figure.
"""

from __future__ import annotations

import math
from typing import Any

import matplotlib as mpl
import numpy as np

from circuitsearch.core.findings import Chart
from circuitsearch.show.analysis_axes import name_places
from circuitsearch.show.report_canvas import label

__all__ = ["draw_heat"]

_STEPS = 32  # of a colour map; from 50 on matplotlib draws its bar as an image
_MIDDLE = 0.179  # luminance from which on black is easier to read than white; either is 4.5 : 1
_WRITTEN = 24  # places along a side up to which the numbers can be read


def draw_heat(axes: Any, chart: Chart) -> None:
    """Draw a map, the first series on top; None stays blank.

    Values of both signs get red above and blue below a white zero; values of one sign get darker
    blues as they grow.
    """
    given = [[math.nan if y is None else y for y in series.y] for series in chart.series]
    values = np.ma.masked_invalid(np.array(given, dtype=float))
    low, high = (0.0, 1.0) if values.mask.all() else (float(values.min()), float(values.max()))
    diverging = low < 0
    if diverging:
        high = max(-low, high)
        low = -high
    colors = mpl.colormaps["RdBu_r" if diverging else "Blues"].resampled(_STEPS)
    high = high if high > low else low + 1.0
    drawn = axes.pcolormesh(
        values, cmap=colors, vmin=low, vmax=high, edgecolors="white", linewidth=0.8
    )
    axes.grid(visible=False)
    axes.invert_yaxis()
    _sides(axes, chart)
    bar = axes.figure.colorbar(drawn, ax=axes, pad=0.02)
    bar.set_label(label(chart.y_label))
    bar.outline.set_visible(False)
    if max(values.shape) <= _WRITTEN:
        _numbers(axes, values, colors, low, high)


def _sides(axes: Any, chart: Chart) -> None:
    """Write the names of columns and rows."""
    rows = [label(series.name) for series in chart.series]
    axes.set_yticks([place + 0.5 for place in range(len(rows))], rows)
    axes.tick_params(axis="y", length=0, labelsize=9 if len(rows) <= 30 else 6)
    name_places(axes, chart, [place + 0.5 for place in range(len(chart.x))])
    for side in axes.spines.values():
        side.set_visible(False)


def _numbers(axes: Any, values: Any, colors: Any, low: float, high: float) -> None:
    """Write every value into its cell, in the ink that stands out from its colour."""
    largest = 0.0 if values.mask.all() else float(abs(values).max())
    digits = max(0, min(4, 1 - math.floor(math.log10(largest)))) if largest else 0
    for (row, column), value in np.ndenumerate(values.filled(math.nan)):
        if math.isnan(value):
            continue
        text = f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")
        dark = _luminance(colors((value - low) / (high - low))) < _MIDDLE
        axes.text(
            column + 0.5,
            row + 0.5,
            text,
            ha="center",
            va="center",
            fontsize=8.5 if max(values.shape) <= 14 else 6.5,
            color="white" if dark else "black",
        )


def _luminance(color: tuple[float, ...]) -> float:
    """Return the relative luminance of a colour as WCAG 2 defines it, from 0 to 1."""
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
