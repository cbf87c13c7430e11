from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path

import matplotlib as mpl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.text import Text

from circuitsearch.core.budget import Budget, LimitSpec
from circuitsearch.core.errors import ConfigError, DataError
from circuitsearch.show.plots import pareto_front, quality_against_cost
from circuitsearch.show.report_canvas import saved
from circuitsearch.show.rows import result_rows
from tests.show.results import SHAPE, named, trials

ROWS = result_rows(named())
TRIALS = result_rows(trials())[1:]
LIMITS = Budget.resolve([LimitSpec("parameters", "31.25%"), LimitSpec("macs", "50%")], SHAPE).limits


def draw(folder: Path, name: str = "plot", **options: object) -> tuple[bytes, bytes]:
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    settings = {"title": "donut-base", "limits": LIMITS, "trials": TRIALS, **options}
    quality_against_cost(ROWS, png, svg, **settings)  # type: ignore[arg-type]
    return png.read_bytes(), svg.read_bytes()


def test_the_same_rows_give_the_same_bytes_under_any_settings(tmp_path: Path) -> None:
    first = draw(tmp_path, "a")
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.hashsalt": "other"}):
        before = dict(mpl.rcParams)
        second = draw(tmp_path, "b")
        assert dict(mpl.rcParams) == before
    assert first == second
    assert first[0].startswith(b"\x89PNG")
    assert len(first[0]) > 10_000


def test_the_svg_is_well_formed_undated_and_fetches_nothing(tmp_path: Path) -> None:
    _, svg = draw(tmp_path)
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert b"dc:date" not in svg
    assert b"<script" not in svg
    for value in (v for one in root.iter() for k, v in one.attrib.items() if k.endswith("href")):
        assert value.startswith("#")


def test_pyplot_is_not_needed(tmp_path: Path) -> None:
    loaded = "matplotlib.pyplot" in sys.modules
    draw(tmp_path)
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_limits_of_another_quantity_are_left_out(tmp_path: Path) -> None:
    assert [limit.quantity for limit in LIMITS] == ["parameters", "macs"]
    _, both = draw(tmp_path, "a")
    _, fitting = draw(tmp_path, "b", limits=LIMITS[:1])
    _, none = draw(tmp_path, "c", limits=())
    assert both == fitting != none


def test_foreign_names_are_drawn_as_text(tmp_path: Path) -> None:
    row = replace(ROWS[1], name="$\\frac{ <img>\x1b 表", source="_hidden $")
    quality_against_cost(
        [ROWS[0], row], tmp_path / "a.png", tmp_path / "a.svg", title="$x </svg>", trials=[row]
    )
    ElementTree.fromstring((tmp_path / "a.svg").read_bytes())


@pytest.mark.parametrize("measure", ["quality", "loss"])
@pytest.mark.parametrize("quantity", ["parameters", "macs"])
def test_every_pair_of_axes_is_drawn(tmp_path: Path, measure: str, quantity: str) -> None:
    png, _ = draw(tmp_path, quantity=quantity, measure=measure)
    assert len(png) > 10_000


@pytest.mark.parametrize("measure", ["quality", "loss"])
def test_no_name_covers_another_and_all_stand_in_the_order_of_their_points(
    tmp_path: Path, measure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[Figure] = []

    def kept(figure: Figure, kind: str) -> bytes:
        figures.append(figure)
        return saved(figure, kind)

    monkeypatch.setattr("circuitsearch.show.plots.saved", kept)
    crowd = [
        replace(
            ROWS[1],
            name=f"a student of a longer name {place}",
            quality=0.5 + place / 1000,
            loss=1 - place / 1000,
            parameters=ROWS[1].parameters + ROWS[0].parameters // 4 * (place % 2),
        )
        for place in reversed(range(14))
    ]
    files = tmp_path / "a.png", tmp_path / "a.svg"
    quality_against_cost([ROWS[0], *crowd], *files, title="", measure=measure)  # type: ignore[arg-type]
    figure = figures[0]
    texts = {text.get_text(): text for text in figure.axes[0].texts}
    # of the words alone: an annotation's own extent includes its line
    boxes = {name: Text.get_window_extent(text) for name, text in texts.items()}
    assert {row.name for row in crowd} <= set(boxes)
    assert not any(one.overlaps(other) for one, other in combinations(boxes.values(), 2))
    for side in (0, 1):
        heights = [boxes[row.name].y0 for row in crowd[side::2]]
        assert heights == sorted(heights, reverse=True)  # better is higher on both axes


def test_trials_alone_are_drawn(tmp_path: Path) -> None:
    quality_against_cost([], tmp_path / "a.png", tmp_path / "a.svg", title="", trials=TRIALS)
    assert (tmp_path / "a.svg").stat().st_size > 1000


def test_a_teacher_alone_is_drawn(tmp_path: Path) -> None:
    quality_against_cost(ROWS[:1], tmp_path / "a.png", tmp_path / "a.svg", title="")
    assert (tmp_path / "a.svg").stat().st_size > 1000


def test_what_cannot_be_drawn_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quantity"):
        draw(tmp_path, quantity="flops")
    with pytest.raises(ConfigError, match="measure"):
        draw(tmp_path, measure="anls")
    paths = (tmp_path / "a.png", tmp_path / "a.svg")
    with pytest.raises(DataError, match="no row"):
        quality_against_cost([replace(ROWS[1], quality=None)], *paths, title="t")
    with pytest.raises(DataError, match="different things"):
        quality_against_cost([ROWS[0], replace(ROWS[1], scope="total")], *paths, title="t")
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12),
    st.sampled_from(["quality", "loss"]),
)
def test_the_pareto_front_is_what_nothing_beats(
    points: list[tuple[int, int]], measure: str
) -> None:
    rows = [replace(ROWS[1], parameters=cost, **{measure: value / 10}) for cost, value in points]
    sign = 1 if measure == "quality" else -1
    front = pareto_front(rows, "parameters", measure)  # type: ignore[arg-type]
    # The slow definition: no other point is at least as good in both and better in one.
    expected = {
        (cost, value / 10)
        for cost, value in points
        if not any(
            c <= cost and sign * v >= sign * value and (c, v) != (cost, value) for c, v in points
        )
    }
    assert set(front) == expected
    assert all(a[0] < b[0] for a, b in pairwise(front))
