"""The plot that a search is judged by: quality against cost, everything in one picture.

Teacher, exhaustive baseline, every trial by who proposed it, the best student, the budget as a line
and the Pareto front: nothing else says faster whether a search was worth it. Error bars are 95 %
intervals where the rows have them, one standard deviation over seeds elsewhere.

Canvas, colours and files are those of `report_canvas`: the same rows give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

from matplotlib.ticker import FuncFormatter

from circuitsearch.core.budget import Limit
from circuitsearch.core.cost import QUANTITIES, Quantity
from circuitsearch.core.errors import ConfigError, DataError, choice_problem
from circuitsearch.core.files import write_bytes
from circuitsearch.show.label_places import columns, spread
from circuitsearch.show.report_canvas import (
    BASELINE,
    BEST,
    GREY,
    INK,
    TRIALS,
    canvas,
    drawing,
    inline_svg,
    label,
    saved,
)
from circuitsearch.show.rows import ResultRow
from circuitsearch.show.text import count, one_line

__all__ = ["Measure", "pareto_front", "quality_against_cost", "quality_svg"]

Measure = Literal["quality", "loss"]
_NAME, _LETTER, _BESIDE = 12.0, 6.0, 24.0
"""Height of a name of 9-point font, width of its letters, roughly, and its distance from the
points, in points."""
_MEASURES = {"quality": "ANLS (higher is better)", "loss": "Answer loss in nats (lower is better)"}


def quality_against_cost(
    rows: Sequence[ResultRow],
    png_path: str | os.PathLike[str],
    svg_path: str | os.PathLike[str],
    *,
    title: str,
    cost_label: str | None = None,
    limits: Sequence[Limit] = (),
    trials: Sequence[ResultRow] = (),
    quantity: Quantity = "parameters",
    measure: Measure = "quality",
) -> None:
    """Draw quality against cost as PNG and as SVG, each written atomically.

    Args:
        rows: the named rows: teacher (phase `teacher`), exhaustive baseline (source
            `exhaustive`), the search's best (name `best`), others. Each carries its name.
        png_path: the PNG file.
        svg_path: the SVG file.
        title: heading, cut to nothing when empty.
        cost_label: label of the cost axis; what the rows count when None.
        limits: the budget; limits of the rows' quantity, scope and accounting become lines.
        trials: rows drawn without names, one colour and marker per source.
        quantity: what the cost axis shows.
        measure: what the other axis shows; rows without it are left out.

    Raises:
        ConfigError: `quantity` or `measure` is unknown.
        DataError: no row has the measure, or rows count under different accountings or scopes.
        StorageError: a file cannot be written.
    """
    with drawing():
        axes = _drawn(rows, title, cost_label, limits, trials, quantity, measure)
        for path, kind in ((svg_path, "svg"), (png_path, "png")):
            write_bytes(path, saved(axes.figure, kind))


def quality_svg(
    rows: Sequence[ResultRow],
    name: str,
    words: str,
    *,
    limits: Sequence[Limit] = (),
    trials: Sequence[ResultRow] = (),
    quantity: Quantity = "parameters",
) -> str:
    """Return the same figure, of quality and without a title, as SVG to stand inside a page.

    Args:
        rows: the named rows, see `quality_against_cost`.
        name: prefix of its identifiers.
        words: what it shows, for readers who do not see it.
        limits: the budget.
        trials: rows drawn without names.
        quantity: what the cost axis shows.

    Raises:
        DataError: no row has a quality, or rows count under different accountings or scopes.
    """
    with drawing():
        axes = _drawn(rows, "", None, limits, trials, quantity, "quality")
        return inline_svg(axes.figure, name, words)


def _drawn(
    rows: Sequence[ResultRow],
    title: str,
    cost_label: str | None,
    limits: Sequence[Limit],
    trials: Sequence[ResultRow],
    quantity: Quantity,
    measure: Measure,
) -> Any:
    """Check what is to be drawn and return the axes with everything on them."""
    if quantity not in QUANTITIES:
        raise ConfigError(choice_problem("Plot: quantity", quantity, QUANTITIES))
    if measure not in _MEASURES:
        raise ConfigError(choice_problem("Plot: measure", measure, list(_MEASURES)))
    shown = [row for row in (*rows, *trials) if getattr(row, measure) is not None]
    if not shown:
        raise DataError(f"Plot {title!r}: no row has a {measure}")
    units = sorted({f"{row.scope} {quantity} ({row.accounting})" for row in shown})
    if len(units) > 1:
        raise DataError(f"Plot {title!r}: rows count different things: {', '.join(units)}")
    named = [row for row in rows if getattr(row, measure) is not None]
    cloud = [row for row in trials if getattr(row, measure) is not None]
    lines = [limit for limit in limits if limit.name == units[0]]
    words = units[0].replace("macs", "MACs") if cost_label is None else cost_label
    axes = canvas(one_line(title))
    axes.set_xlabel(one_line(words))
    axes.set_ylabel(_MEASURES[measure])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(round(value))))
    _draw(axes, named, cloud, lines, quantity, measure)
    return axes


def pareto_front(
    rows: Sequence[ResultRow], quantity: Quantity, measure: Measure
) -> list[tuple[int, float]]:
    """Return the points that no other row beats in both cost and measure, by rising cost.

    Args:
        rows: rows that have the measure.
        quantity: the cost.
        measure: `quality` (more is better) or `loss` (less is better).
    """
    sign = 1.0 if measure == "quality" else -1.0
    points = sorted((_cost(row, quantity), -sign * _value(row, measure)) for row in rows)
    front: list[tuple[int, float]] = []
    for cost, worse in points:
        if not front or worse < -sign * front[-1][1]:
            front.append((cost, -sign * worse))
    return front


def _draw(
    axes: Any,
    named: Sequence[ResultRow],
    cloud: Sequence[ResultRow],
    limits: Sequence[Limit],
    quantity: Quantity,
    measure: Measure,
) -> None:
    """Draw everything, the most important last."""
    for limit in limits:
        text = "budget" if limit.text in ("", str(limit.maximum)) else f"budget {limit.text}"
        axes.axvline(limit.maximum, color=INK, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1.5)
        axes.annotate(
            label(text),
            (limit.maximum, 0.0),
            xycoords=axes.get_xaxis_transform(),
            xytext=(-3, 4),
            textcoords="offset points",
            ha="right",
            va="bottom",
            rotation=90,
            fontsize=9,
        )
    front = pareto_front([*named, *cloud], quantity, measure)
    if len(front) > 1:
        costs, values = zip(*front, strict=True)
        axes.step(costs, values, where="post", color=GREY, linewidth=1.2, label="Pareto front")
    sources = list(dict.fromkeys(sorted(row.source for row in cloud)))
    for place, source in enumerate(sources):
        color, marker = TRIALS[place % len(TRIALS)]
        group = [row for row in cloud if row.source == source]
        style = {"color": color, "fmt": marker, "ms": 5, "alpha": 0.75, "label": f"trial, {source}"}
        _points(axes, group, quantity, measure, style)
    for role, group, style in _roles(named):
        _points(axes, group, quantity, measure, {**style, "label": role})
    _finish(axes, named, quantity, measure)
    _label(axes, named, quantity, measure)


def _roles(named: Sequence[ResultRow]) -> list[tuple[str, list[ResultRow], dict[str, Any]]]:
    """Group the named rows by what they are: label, rows, style."""
    roles: dict[str, tuple[list[ResultRow], dict[str, Any]]] = {
        "student": ([], {"color": GREY, "fmt": "P", "ms": 8}),
        "exhaustive": ([], {"color": BASELINE, "fmt": "s", "ms": 7}),
        "teacher": ([], {"color": INK, "fmt": "*", "ms": 13}),
        "best": ([], {"color": BEST, "fmt": "D", "ms": 9}),
    }
    for row in named:
        role = "student"
        if row.phase == "teacher":
            role = "teacher"
        elif row.name == "best":
            role = "best"
        elif row.source == "exhaustive":
            role = "exhaustive"
        roles[role][0].append(row)
    return [(role, group, style) for role, (group, style) in roles.items() if group]


def _points(
    axes: Any,
    rows: Sequence[ResultRow],
    quantity: Quantity,
    measure: Measure,
    style: dict[str, Any],
) -> None:
    """Draw points with error bars."""
    spreads = [_spread(row, measure) for row in rows]
    axes.errorbar(
        [_cost(row, quantity) for row in rows],
        [_value(row, measure) for row in rows],
        yerr=[[low for low, _ in spreads], [high for _, high in spreads]],
        capsize=3 if style["ms"] > 5 else 0,
        elinewidth=1.1 if style["ms"] > 5 else 0.6,
        markeredgecolor="white",
        markeredgewidth=0.8,
        zorder=4 if style["fmt"] in "D*s" else 3,
        **{**style, "label": label(style["label"])},
    )


def _finish(axes: Any, named: Sequence[ResultRow], quantity: Quantity, measure: Measure) -> None:
    """Set ranges and legend, and show the share of the teacher above."""
    axes.set_xlim(left=0)
    axes.margins(x=0.08, y=0.1)
    if measure == "loss":
        axes.invert_yaxis()
    teacher = [_cost(row, quantity) for row in named if row.phase == "teacher"]
    if teacher and teacher[0] > 0:
        whole = teacher[0] / 100
        above = axes.secondary_xaxis(
            "top", functions=(lambda cost: cost / whole, lambda share: share * whole)
        )
        above.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))
        above.tick_params(length=0, labelsize=8, colors="#55616d")
        above.spines["top"].set_visible(False)
    axes.legend(loc="best", fontsize=9)


def _label(axes: Any, named: Sequence[ResultRow], quantity: Quantity, measure: Measure) -> None:
    """Write the names beside their points, in the order of their heights, with a line to each."""
    points_per_pixel = 72 / axes.figure.dpi
    names = [label(row.name) for row in named]
    points = [(_cost(row, quantity), _value(row, measure)) for row in named]
    places = [axes.transData.transform(point) * points_per_pixel for point in points]
    rooms = [_BESIDE + _LETTER * len(name) for name in names]
    frame = axes.get_window_extent()
    low, high = (edge * points_per_pixel for edge in (frame.y0 + _NAME, frame.y1 - _NAME))
    for column in columns([float(x) for x, _ in places], rooms):
        right = places[column[-1]][0] + _BESIDE
        heights = spread([places[at][1] for at in column], _NAME, low, high)
        for at, height in zip(column, heights, strict=True):
            axes.annotate(
                names[at],
                points[at],
                xytext=(right - places[at][0], height - places[at][1]),
                textcoords="offset points",
                va="center",
                fontsize=9,
                zorder=5,
                arrowprops={
                    **{"arrowstyle": "-", "color": GREY, "lw": 0.6},
                    **{"relpos": (0.0, 0.5), "shrinkA": 1, "shrinkB": 5},
                },
            )


def _cost(row: ResultRow, quantity: Quantity) -> int:
    """Return a row's place on the cost axis."""
    return row.parameters if quantity == "parameters" else row.macs


def _value(row: ResultRow, measure: Measure) -> float:
    """Return a row's place on the other axis; callers have left out rows without it."""
    value = row.quality if measure == "quality" else row.loss
    if value is None:
        raise DataError(f"Plot: row {row.name!r} has no {measure}")
    return value


def _spread(row: ResultRow, measure: Measure) -> tuple[float, float]:
    """Return the lengths of the error bar below and above a row's point."""
    if measure == "loss":
        return (row.loss_sd or 0.0,) * 2
    if row.quality is None or row.quality_low is None or row.quality_high is None:
        return (row.quality_sd or 0.0,) * 2
    # A mean may lie a rounding outside its interval; matplotlib refuses negative lengths.
    return max(0.0, row.quality - row.quality_low), max(0.0, row.quality_high - row.quality)
