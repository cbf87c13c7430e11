"""Two models side by side: paired differences overall and per task family, for people."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.text import Text

from circuitsearch.core.difference import Difference
from circuitsearch.show.tables import blank_table, show_table
from circuitsearch.show.text import DASH, one_line

__all__ = ["print_comparison"]


def print_comparison(
    differences: Mapping[str, Difference], names: tuple[str, str], console: Console
) -> None:
    """Print one row per family of questions, all questions first.

    Args:
        differences: by family, as `teacher.comparison.compare_answers` returns them.
        names: what the two models are called; foreign text.
        console: where to print.
    """
    table = blank_table()
    table.add_column("Questions")
    for name in ("n", "Documents", "A", "B", "A \N{MINUS SIGN} B", "95 % interval", "A wins"):
        table.add_column(name, justify="right")
    for family, found in differences.items():
        cells = [
            one_line(family),
            f"{found.questions:,}",
            f"{found.documents:,}",
            f"{found.first:.3f}",
            f"{found.second:.3f}",
            _signed(found.mean),
            _interval(found),
            DASH if found.wins is None else f"{100 * found.wins:.1f} %",
        ]
        table.add_row(*map(Text, cells))
    show_table(table, console)
    for letter, name in zip("AB", names, strict=True):
        console.print(Text(f"{letter}: {one_line(name)}", style="dim"))
    about = (
        "ANLS from 0 to 1; interval of a paired bootstrap over documents; A wins: share of its "
        "draws in which A's mean is higher."
    )
    console.print(Text(about, style="dim"))


def _interval(found: Difference) -> str:
    """Write an interval; a dash where one document says nothing about how documents differ."""
    if found.low is None or found.high is None:
        return DASH
    return f"[{_signed(found.low)}, {_signed(found.high)}]"


def _signed(value: float) -> str:
    """Write a difference with its sign and three decimals."""
    return "0" if abs(value) < 5e-4 else f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")
