"""Charts of findings: every value drawn, nothing embedded, the same chart in the same bytes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from circuitsearch.core.findings import Chart, Series
from circuitsearch.show import analysis_charts
from circuitsearch.show.analysis_charts import chart_files
from circuitsearch.show.report_canvas import drawing
from tests.show.findings import bars, heat, lines

EMPTY = Series("nothing", (None,) * 3)
CASES: dict[str, Chart] = {
    "bars": bars(),
    "one series": bars(5, 1),
    "many bars": bars(200, 1),
    "long names": bars(5, 9, "a name that goes on and on and does not end"),
    "numbers as names": replace(bars(3, 1), x=(1.0, 2.5, 3.0)),
    "lines": lines(),
    "straight axis": lines(log_x=False),
    "from zero": replace(lines(), x=(0.0, 1.0, 2.0, 9.0)),
    "only zero": Chart("t", "lines", (0.0,), "x", "y", (Series("a", (1.0,)),), log_x=True),
    "one place": Chart("t", "lines", (3.0,), "x", "y", (Series("a", (1.0,), (0.0,), (2.0,)),)),
    "long line": Chart(
        "t",
        "lines",
        tuple(map(float, range(300))),
        "x",
        "y",
        (Series("a", tuple(n / 300 for n in range(300))),),
    ),
    "heat": heat(),
    "all above": heat(3, 8, low=0),
    "wide heat": heat(2, 100),
    "equal heat": Chart("t", "heat", ("a", "b"), "x", "y", (Series("r", (2.0, 2.0)),)),
    "zero heat": Chart("t", "heat", ("a", "b"), "x", "y", (Series("r", (0.0, 0.0)),)),
    **{
        f"empty {kind}": Chart("t", kind, (1.0, 2.0, 3.0), "x", "y", (EMPTY, EMPTY))
        for kind in ("bars", "lines", "heat")
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_chart_is_drawn_without_complaint_and_of_shapes_alone(case: str) -> None:
    files = chart_files(CASES[case])
    assert files["png"].startswith(b"\x89PNG")
    assert not re.findall(r"<(?:image|text|script|foreignObject|a)\b", files["svg"].decode())


@pytest.mark.parametrize("chart", [bars(4), lines(), heat(3, 3)], ids=lambda one: one.kind)
def test_a_chart_is_the_same_bytes_twice(chart: Chart) -> None:
    assert chart_files(chart) == chart_files(chart)


@pytest.fixture
def axes() -> Callable[[Chart], Any]:
    """Draw a chart and return its first axes."""

    def drawn(chart: Chart) -> Any:
        with drawing():
            return analysis_charts._figure(chart).axes[0]

    return drawn


def test_bars_and_error_bars_stand_where_the_values_say(axes: Callable[[Chart], Any]) -> None:
    made = bars(12, 2)
    found = axes(made)
    for container, series in zip(found.containers[0::3], made.series, strict=True):
        heights = [patch.get_height() for patch in container.patches]
        assert heights == [y for y in series.y if y is not None]
    ends = np.array([s for line in found.collections for s in line.get_segments()])[:, :, 1]
    assert {round(float(low), 6) for low, _ in ends} >= {
        round(low, 6)
        for series in made.series
        for y, low in zip(series.y, series.low, strict=True)
        if y is not None and low is not None
    }


def test_names_that_do_not_fit_stand_upright(axes: Callable[[Chart], Any]) -> None:
    def rotation(chart: Chart) -> float:
        return float(axes(chart).get_xticklabels()[0].get_rotation())

    assert rotation(bars(12, 1)) == 0
    assert rotation(bars(64, 1)) == 90
    assert rotation(CASES["long names"]) == 90
    # of very many names some are written, so that those can be read
    assert len(axes(CASES["many bars"]).get_xticklabels()) == 67


def test_a_heat_map_shows_its_numbers_and_leaves_gaps_blank(axes: Callable[[Chart], Any]) -> None:
    made = heat(12, 12)
    texts = {
        (round(t.get_position()[1] - 0.5), round(t.get_position()[0] - 0.5)): t.get_text()
        for t in axes(made).texts
    }
    for row, series in enumerate(made.series):
        for column, y in enumerate(series.y):
            if y is None:
                assert (row, column) not in texts
            else:
                shown = float(texts[row, column].replace("\N{MINUS SIGN}", "-"))
                assert shown == pytest.approx(y, abs=0.0051)
    found = axes(made)
    assert found.yaxis_inverted()  # the first series on top
    low, high = found.collections[0].get_clim()
    assert low == -high  # zero is white
    assert not axes(CASES["wide heat"]).texts


def luminance(color: str) -> float:
    parts = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in mpl.colors.to_rgb(color)
    ]
    return float(np.dot((0.2126, 0.7152, 0.0722), parts))


@pytest.mark.parametrize("low", [-1, 0])
def test_numbers_in_cells_have_the_contrast_of_small_text(
    axes: Callable[[Chart], Any], low: float
) -> None:
    found = axes(heat(16, 16, low=low))
    mesh = found.collections[0]
    colors = mesh.cmap(mesh.norm(mesh.get_array()))
    for text in found.texts:
        column, row = (int(one) for one in text.get_position())
        cell = luminance(mpl.colors.to_hex(colors[row, column]))
        ink = luminance(text.get_color())
        assert (max(cell, ink) + 0.05) / (min(cell, ink) + 0.05) >= 4.5


def test_bands_are_the_intervals(axes: Callable[[Chart], Any]) -> None:
    found = axes(lines())
    assert len(found.collections) == len(lines().series)
    first = found.collections[0].get_paths()[0].vertices[:, 1]
    assert {round(float(y), 6) for y in first} == {0.0, 0.4, 0.6}
    assert found.get_xscale() == "log"
    assert [tick.get_text() for tick in found.get_xticklabels()] == ["1", "2", "8", "64"]


def test_the_session_keeps_its_settings() -> None:
    with mpl.rc_context({"axes.titlesize": 31, "svg.hashsalt": "other"}):
        usual = chart_files(bars(4))
        assert mpl.rcParams["axes.titlesize"] == 31
    assert chart_files(bars(4)) == usual
