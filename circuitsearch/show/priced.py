"""What a search will take, for people: `circuitsearch validate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from circuitsearch.core.text import one_line

__all__ = ["duration", "print_priced"]

_SCOPES = ("decoder", "total")
_DOUBTFUL = 0.1
"""ANLS of a teacher that has not learnt to answer such questions."""


def duration(seconds: float) -> str:
    """Return a time for people: `45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def print_priced(facts: Mapping[str, Any], console: Console) -> None:
    """Print what `validate` found out, as its JSON has it."""
    table = Table(show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _lines(facts).items():
        table.add_row(Text(name), Text(one_line(value)))
    console.print(table)
    _print_costs(facts, console)
    if "time" in facts:
        _print_time(facts["time"], console)


def _lines(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the facts of one line each."""
    counts = ((name, facts["pages"][name], facts["questions"][name]) for name in facts["pages"])
    return {
        "search": str(facts["search"]),
        "teacher": f"{facts['teacher']} ({facts['fingerprint']})",
        "pages": ", ".join(
            f"{name} {pages:,} ({asked:,} questions)" for name, pages, asked in counts
        ),
        "budget": ", ".join(f"{name} <= {_number(one)}" for name, one in facts["budget"].items()),
        "plans within budget": f"{facts['plans within budget']:,}",
        "trainings, at most": ", ".join(
            f"{name} {one['trainings']} x {one['steps']:,} steps"
            for name, one in facts["trainings by stage"].items()
        ),
        "encoder passes": f"{facts['encoder passes']:,}",
        "features on disk": f"{facts['features on disk, bytes'] / 1e6:,.1f} MB",
    }


def _number(value: int | str) -> str:
    return f"{value:,}" if isinstance(value, int) else value


def _print_costs(facts: Mapping[str, Any], console: Console) -> None:
    table = Table("", "plan", title_justify="left")
    for scope in _SCOPES:
        for what in ("parameters", "MACs"):
            table.add_column(Text(f"{what}, {scope}", overflow="fold"), justify="right")
    for name, one in facts["costs"].items():
        paper = one["paper"]
        cells = [_count(paper[scope][what]) for scope in _SCOPES for what in ("parameters", "macs")]
        table.add_row(name, Text(one["plan"]), *cells)
    console.print(table)


def _count(number: int) -> str:
    for size, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)


def _print_time(found: Mapping[str, Any], console: Console) -> None:
    parts = ", ".join(f"{name} {duration(one)}" for name, one in found["by part"].items())
    made = found["measured"]
    steps = ", ".join(
        f"{name} {one['seconds']:.3g} s (n = {one['n']})"
        for name, one in made.items()
        if isinstance(one, dict)
    )
    paces = {
        "scored": "seconds per page scored",
        "of the circuit": "seconds per page of the circuit",
    }
    scored = ", ".join(f"{made[name]:.3g} s a page {words}" for words, name in paces.items())
    pages = (
        f"{made['seconds per page']:.3g} s a page, {made['seconds per question']:.3g} s a question"
    )
    for line in (
        f"time, about {duration(found['seconds'])}: {parts}; not counted: {found['not counted']}",
        f"measured on {found['machine']}: {steps}; {pages} (n = {made['pages']} pages); {scored}",
    ):
        console.print(line, markup=False)
    known = found["teacher"]
    if known["anls"] is not None and known["anls"] < _DOUBTFUL:
        console.print(
            f"the teacher answers {known['questions']} of these questions with ANLS "
            f"{known['anls']:.3f}: students learn from it, so choose a teacher of such pages",
            style="yellow",
            markup=False,
        )
