"""The findings of all analyses as one HTML file, the claims first.

As the report of a search the page holds no script and no address, foreign text stays text
(`report_markup`), and the same findings give the same bytes. A verdict is a word with a sign; its
colour says nothing that they do not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

from circuitsearch.core.findings import Cell, Chart, Finding, Series, Table, Verdict
from circuitsearch.show.analysis_text import SYMBOLS, cell_text, number_columns, tally
from circuitsearch.show.report_canvas import inlined
from circuitsearch.show.report_frame import framed
from circuitsearch.show.report_markup import Markup, details, element, joined, table
from circuitsearch.show.report_results import figure, missing
from circuitsearch.show.text import DASH, flat

__all__ = ["analyses_html"]

_FOLDED = 16  # rows from which on a table is folded away
_COLORS = {"shown": "right", "partly": "close", "not shown": "wrong"}
_CLAIMS = ("Claim", "What it says", "Published", "This teacher", "Verdict")
_VERDICTS = ("Claim", "Verdict", "This teacher", "Published", "Rule")
_INTERVALS = {"bars": "Error bars: 95 % intervals.", "lines": "Bands: 95 % intervals."}
_KINDS = {"bars": "Bars", "lines": "Lines", "heat": "Map"}


def analyses_html(
    findings: Mapping[str, Finding],
    facts: Mapping[str, Any],
    charts: Mapping[str, Sequence[Mapping[str, bytes]]],
) -> str:
    """Return the page as the text of an HTML file.

    Args:
        findings: by the name of their analysis, in the order of the sections.
        facts: what they are about, plain JSON values; `title` is the heading.
        charts: their charts as files, see `analysis_charts.charts_of`.
    """
    names = {name: _anchor(name, place) for place, name in enumerate(findings, 1)}
    sections = {"claims": ("Claim by claim", _claims(findings, names))}
    for place, (name, finding) in enumerate(findings.items(), 1):
        content = _section(finding, place, charts[name])
        sections[names[name]] = (f"{place}. {finding.title}", content)
    sections["redo"] = ("How to do it again", _redo(facts))
    return framed(
        str(facts.get("title", "Findings")),
        tally(findings.values()),
        sections,
        kind="published analyses",
        skip="Skip to the claims",
        made="findings of the analyses",
    )


def _anchor(name: str, place: int) -> str:
    """Return the identifier of a section: its analysis, where that can stand in an address."""
    return f"analysis-{name if re.fullmatch(r'[a-z][a-z0-9-]*', name) else place}"


def _answer(verdict: Verdict) -> Markup:
    sign = element("span", SYMBOLS[verdict.answer], aria_hidden="true")
    kind = f"verdict {_COLORS.get(verdict.answer, 'unsure')}"
    return element("span", joined((sign, verdict.answer), Markup(" ")), kind=kind)


def _claims(findings: Mapping[str, Finding], names: Mapping[str, str]) -> Markup:
    """Return the table of all claims, each linked to its section."""
    rows = [
        (
            element("a", one.claim, href=f"#{names[name]}"),
            one.says,
            one.paper or DASH,
            one.here,
            _answer(one),
        )
        for name, finding in findings.items()
        for one in finding.verdicts
    ]
    if not rows:
        return missing("No analysis was run.")
    made = table("What was claimed, and what this teacher shows", _CLAIMS, rows)
    return element("div", made, kind="claims")


def _section(finding: Finding, place: int, charts: Sequence[Mapping[str, bytes]]) -> Markup:
    """Return the section of one analysis; its tables and figures are numbered."""
    numbers = count(1)

    def numbered(caption: str) -> str:
        return f"{place}.{next(numbers)} {caption}"

    n = f" Examples: {finding.examples:,}." if finding.examples else ""
    rows = [
        (one.claim, _answer(one), one.here, one.paper or DASH, one.rule) for one in finding.verdicts
    ]
    parts = [
        element("p", finding.asks),
        element("h3", "How it was measured"),
        element("p", finding.method + n),
        element("h3", "Verdicts"),
        element("div", table(numbered("Verdicts and their rules"), _VERDICTS, rows), kind="claims"),
    ]
    if finding.charts or finding.tables:
        parts.append(element("h3", "Numbers"))
    for number, (chart, drawn) in enumerate(zip(finding.charts, charts, strict=True), 1):
        parts += _chart(chart, drawn["svg"], f"a{place}c{number}", numbered)
    parts += [_table(one, numbered(one.caption)) for one in finding.tables]
    if finding.notes:
        notes = (element("li", note) for note in finding.notes)
        parts += [element("h3", "Notes"), element("ul", *notes, kind="notes")]
    return joined(parts)


def _table(made: Table, caption: str, *, folded: bool = False) -> Markup:
    """Return a table, folded away where it is long."""
    rows = [[cell_text(cell) for cell in row] for row in made.rows]
    shown = table(caption, made.head, rows, numbers=number_columns(made))
    if folded or len(rows) >= _FOLDED:
        return details(f"{caption} ({len(rows):,} rows)", shown)
    return shown


def _chart(chart: Chart, svg: bytes, name: str, numbered: Callable[[str], str]) -> list[Markup]:
    """Return a chart and, folded away, a table with its numbers."""
    lines = ", ".join(series.name for series in chart.series)
    words = f"{_KINDS[chart.kind]}: {chart.title}. {chart.y_label} by {chart.x_label}, of {lines}."
    caption = numbered(chart.title)
    ends = any(series.low and series.high for series in chart.series)
    if ends and chart.kind in _INTERVALS:
        caption = f"{caption.rstrip('.')}. {_INTERVALS[chart.kind]}"
    shown = inlined(svg, name, f"{words} The numbers are in the table that follows.")
    numbers = _table(_numbers(chart), numbered(f"Numbers of: {chart.title}"), folded=True)
    return [figure(shown, caption), numbers]


def _numbers(chart: Chart) -> Table:
    """Return a chart's values as a table: a row per place, columns per series."""
    head: list[str] = [chart.x_label or "place"]
    columns: list[tuple[Cell, ...]] = [chart.x]
    for series in chart.series:
        for ending, values in _columns(series):
            head.append(f"{series.name}{ending}")
            columns.append(values)
    return Table(chart.title, tuple(head), tuple(zip(*columns, strict=True)))


def _columns(series: Series) -> list[tuple[str, tuple[float | None, ...]]]:
    ends = [(" low", series.low), (" high", series.high)]
    return [("", series.y), *((name, values) for name, values in ends if values)]


def _redo(facts: Mapping[str, Any]) -> Markup:
    """Return what was run."""
    told = [(name, value) for name, value in flat(facts) if name != "title"]
    if not told:
        return missing("Not known.")
    pairs = (joined((element("dt", name), element("dd", value))) for name, value in told)
    return element("dl", *pairs)
