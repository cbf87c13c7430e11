"""Findings as text: the words and numbers that page, Markdown file and terminal share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from circuitsearch.core.findings import ANSWERS, Finding, Table, Verdict
from circuitsearch.show.tables import blank_table, show_table
from circuitsearch.show.text import DASH, escape_markdown, flat, one_line

__all__ = ["SYMBOLS", "cell_text", "findings_markdown", "number_columns", "print_verdicts", "tally"]

SYMBOLS = {
    "shown": "\N{CHECK MARK}",
    "partly": "\N{CIRCLE WITH LEFT HALF BLACK}",
    "not shown": "\N{MULTIPLICATION X}",
    "open": "?",
    "cannot be asked": DASH,
}
"""A sign per answer of a verdict; it never stands without the word."""


def cell_text(value: str | int | float | None) -> str:
    """Write a cell of a table: whole numbers in full, others in four digits, None as nothing."""
    if value is None or isinstance(value, str):
        return value or ""
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    if "e" in text and 1 <= abs(value) < 1e15:
        text = f"{value:,.0f}"
    return text.replace("-", "\N{MINUS SIGN}")


def number_columns(table: Table) -> list[int]:
    """Return the columns that hold numbers alone."""
    columns = [[row[place] for row in table.rows] for place in range(len(table.head))]
    return [
        place
        for place, cells in enumerate(columns)
        if any(cell is not None for cell in cells)
        and not any(isinstance(cell, str) for cell in cells)
    ]


def tally(findings: Iterable[Finding]) -> str:
    """Return how many claims got which answer, in words."""
    counts = Counter[str](one.answer for finding in findings for one in finding.verdicts)
    told = [f"{counts[answer]} {answer}" for answer in ANSWERS if answer in counts]
    total = f"{counts.total()} claim{'' if counts.total() == 1 else 's'}"
    return f"{total}: {', '.join(told)}." if told else f"{total}."


def print_verdicts(findings: Mapping[str, Finding], console: Console) -> None:
    """Print a table with a line per claim.

    Args:
        findings: by the name of their analysis.
        console: where to print.
    """
    table = blank_table()
    for name in ("Analysis", "Claim", "Verdict", "This teacher"):
        table.add_column(name, no_wrap=name in ("Analysis", "Verdict"))
    for name, finding in findings.items():
        for verdict in finding.verdicts:
            cells = (name, verdict.claim, _answer(verdict), verdict.here)
            table.add_row(*(Text(one_line(cell)) for cell in cells))
    show_table(table, console)
    console.print(Text(tally(findings.values()), style="dim"))


def findings_markdown(findings: Mapping[str, Finding], facts: Mapping[str, Any]) -> str:
    """Return the findings as a Markdown file: claims, what was run, then every analysis.

    Args:
        findings: by the name of their analysis; their charts lie beside the file.
        facts: what they are about; `title` is the heading.
    """
    told = [
        f"- **{escape_markdown(name)}**: {escape_markdown(value)}"
        for name, value in flat(facts)
        if name != "title"
    ]
    parts = [f"# {escape_markdown(str(facts.get('title', 'Findings')))}", tally(findings.values())]
    if findings:
        parts.append(_claims(findings.values()))
    if told:
        parts += ["## What was run", "\n".join(told)]
    for name, finding in findings.items():
        parts += _analysis(name, finding)
    return "\n\n".join(parts) + "\n"


def _answer(verdict: Verdict) -> str:
    return f"{SYMBOLS[verdict.answer]} {verdict.answer}"


def _claims(findings: Iterable[Finding]) -> str:
    """Return the table of all claims."""
    head = ("Claim", "What it says", "Published", "This teacher", "Verdict")
    rows = (
        (one.claim, one.says, one.paper or DASH, one.here, _answer(one))
        for finding in findings
        for one in finding.verdicts
    )
    return _table(head, rows)


def _analysis(name: str, finding: Finding) -> list[str]:
    """Return the paragraphs of one analysis."""
    n = f" {finding.examples:,} examples." if finding.examples else ""
    asked = f"{escape_markdown(finding.asks)} {escape_markdown(finding.method)}{n}"
    parts = [f"## {escape_markdown(finding.title)}", asked]
    told = (f"{one.claim}: {_answer(one)}. Rule: {one.rule}" for one in finding.verdicts)
    parts.append("\n".join(f"- {escape_markdown(words)}" for words in told))
    parts += [
        f"![{escape_markdown(chart.title)}]({name}-{number}.png)"
        for number, chart in enumerate(finding.charts, 1)
    ]
    for table in finding.tables:
        rows = ([cell_text(cell) for cell in row] for row in table.rows)
        parts += [escape_markdown(table.caption), _table(table.head, rows, number_columns(table))]
    if finding.notes:
        parts.append("\n".join(f"- {escape_markdown(note)}" for note in finding.notes))
    return parts


def _table(head: Iterable[str], rows: Iterable[Iterable[str]], numbers: Iterable[int] = ()) -> str:
    """Return a table of GitHub's Markdown."""
    right = frozenset(numbers)
    names = [escape_markdown(name) for name in head]
    rule = "|".join(" ---: " if place in right else " --- " for place in range(len(names)))
    lines = [f"| {' | '.join(names)} |", f"|{rule}|"]
    lines += [f"| {' | '.join(escape_markdown(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)
