"""Findings: what one analysis of a teacher found, as a record that travels. No torch.

An analysis answers a published claim about document models on the teacher at hand. Its finding says
in words what was asked and how, and carries the numbers as tables and figures and the answers as
verdicts, so that the page, the plots and the JSON file are made of one record.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from circuitsearch.core.errors import DataError, choice_problem, integer_problems, raise_together
from circuitsearch.core.files import plain, record_fields

__all__ = ["ANSWERS", "Chart", "Finding", "Series", "Table", "Verdict"]

Cell = str | int | float | None
Answer = Literal["shown", "partly", "not shown", "open", "cannot be asked"]
ANSWERS: tuple[str, ...] = get_args(Answer)
"""Verdicts: the claim holds here, in part, does not; intervals are too wide; nothing to ask."""

ChartKind = Literal["bars", "lines", "heat"]


@dataclass(frozen=True)
class Table:
    """A table of a finding.

    Attributes:
        caption: what it shows, units included.
        head: headings of the columns; the first column names the row.
        rows: cells, as many as headings; numbers stay numbers, None is an empty cell.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        """Refuse rows of another length, and numbers that are none."""
        wrong = [i for i, row in enumerate(self.rows) if len(row) != len(self.head)]
        cells = [cell for row in self.rows for cell in row]
        problems = [f"row {i}: got {len(self.rows[i])} cells for {len(self.head)}" for i in wrong]
        problems += [] if _finite(cells) else ["a cell is NaN or infinite; leave it None instead"]
        raise_together(problems, DataError, f"Table {self.caption!r}")


@dataclass(frozen=True)
class Series:
    """One line of a chart, or its bars of one colour.

    Attributes:
        name: what it stands for, as the legend says it.
        y: [n] values, one per place on the chart's axis; None leaves a gap.
        low: [n] lower ends of 95 % intervals, or empty.
        high: [n] upper ends, or empty.
    """

    name: str
    y: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Chart:
    """A chart of a finding.

    Attributes:
        title: what it shows.
        kind: `bars` and `heat` have names on the x axis, `lines` has numbers.
        x: [n] names or numbers along the axis.
        x_label: what they are, with the unit.
        y_label: what the values are, with the unit; of `heat`, what the colour means.
        series: `bars`, `lines`: one or more; `heat`: one per line of the map, top to bottom.
        log_x: whether the axis of `lines` is logarithmic.
    """

    title: str
    kind: ChartKind
    x: tuple[str | float, ...]
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    log_x: bool = False

    def __post_init__(self) -> None:
        """Refuse an unknown kind, an empty chart, and values of another number than places."""
        problems = []
        if self.kind not in get_args(ChartKind):
            problems.append(choice_problem("kind", self.kind, get_args(ChartKind)))
        if not self.series or not self.x:
            problems.append("got no values; leave out a chart that shows nothing")
        for series in self.series:
            for name, values in (("y", series.y), ("low", series.low), ("high", series.high)):
                if len(values) != len(self.x) and (values or name == "y"):
                    problems.append(f"{series.name}: {name} has {len(values)} of {len(self.x)}")
                if not _finite(values):
                    problems.append(f"{series.name}: {name} holds NaN or infinity; use None")
        if self.kind == "lines" and any(isinstance(place, str) for place in self.x):
            problems.append("lines need numbers along the axis")
        raise_together(problems, DataError, f"Chart {self.title!r}")


@dataclass(frozen=True)
class Verdict:
    """Whether this teacher shows what was claimed of another one.

    Attributes:
        claim: name of the claim, e.g. `Proposition 2`, `Figure 3`.
        says: the claim in one sentence of our own.
        paper: the published number or statement, "" when there is none.
        here: this teacher's number with its interval and n.
        answer: one of `ANSWERS`.
        rule: how the answer follows from the number, the same for every teacher.
    """

    claim: str
    says: str
    paper: str
    here: str
    answer: Answer
    rule: str

    def __post_init__(self) -> None:
        """Refuse an unknown answer."""
        if self.answer not in ANSWERS:
            raise DataError(choice_problem("Verdict", self.answer, ANSWERS))


@dataclass(frozen=True)
class Finding:
    """What one analysis found.

    Attributes:
        analysis: its name in `discovery.analyses.registry.ANALYSES`.
        title: heading.
        asks: what it asks and why that matters, for someone who has not read the paper.
        method: how it was measured, in words; readings that the paper leaves open are named.
        examples: number of examples behind it; 0 where nothing was run.
        tables: its numbers.
        charts: its pictures.
        verdicts: one or more.
        notes: what a reader has to know to judge it.
        values: further numbers for programs, JSON.
    """

    analysis: str
    title: str
    asks: str
    method: str
    examples: int
    tables: tuple[Table, ...] = ()
    charts: tuple[Chart, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()
    values: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse a finding without an answer."""
        problems = integer_problems("examples", self.examples, 0)
        problems += [] if self.verdicts else ["got no verdict; an analysis answers something"]
        raise_together(problems, DataError, f"Finding {self.analysis!r}")

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object; `from_json` reads it back equal."""
        made: dict[str, Any] = plain(asdict(self))
        return made

    @classmethod
    def from_json(cls, data: Any) -> Finding:
        """Read what `to_json` wrote.

        Raises:
            DataError: a field is missing or unknown, or a value is impossible.
        """
        given = record_fields(cls, data)
        return cls(
            **{
                **given,
                "tables": tuple(_table(entry) for entry in given.get("tables", ())),
                "charts": tuple(_chart(entry) for entry in given.get("charts", ())),
                "verdicts": tuple(
                    Verdict(**record_fields(Verdict, entry)) for entry in given["verdicts"]
                ),
                "notes": tuple(given.get("notes", ())),
            }
        )


def _table(data: Any) -> Table:
    given = record_fields(Table, data)
    rows = tuple(tuple(row) for row in given["rows"])
    return Table(given["caption"], tuple(given["head"]), rows)


def _chart(data: Any) -> Chart:
    given = record_fields(Chart, data)
    lines = tuple(_series(entry) for entry in given["series"])
    return Chart(**{**given, "x": tuple(given["x"]), "series": lines})


def _series(data: Any) -> Series:
    given = record_fields(Series, data)
    ends = (tuple(given.get(end, ())) for end in ("low", "high"))
    return Series(given["name"], tuple(given["y"]), *ends)


def _finite(values: Sequence[Cell]) -> bool:
    return all(math.isfinite(v) for v in values if isinstance(v, int | float))
