"""Result tables for readers: GitHub Markdown for files, a rich table for the terminal.

Both show the same cells. Interval and spread are different things and are written differently:
`0.612 [0.580, 0.644]` is a mean with its 95 % interval over documents, `± 0.012` behind it is the
standard deviation over training seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from circuitsearch.core.difference import Difference
from circuitsearch.core.errors import DataError
from circuitsearch.core.scores import ComponentScore, Scores
from circuitsearch.show.rows import ResultRow
from circuitsearch.show.text import DASH, count, escape_markdown, one_line, signed

__all__ = [
    "blank_table",
    "markdown_table",
    "print_paths",
    "print_rows",
    "print_scores",
    "result_cells",
    "show_table",
    "table_notes",
]

_COLUMNS = (
    "Rank",
    "Student",
    "Plan",
    "Kept",
    "ANLS [95 % interval]",
    "Difference",
    "Exact",
    "Parameters",
    "MACs",
    "Other MACs",  # of the other accounting, whose name its heading gives
    "Search cost",
    "Source",
)
# Left out on narrow terminals.
_DETAILS = frozenset(("Plan", "Other MACs", "Search cost", "Source"))
_WIDE = 148  # terminal columns that every column of the table needs,
_WIDER = 18  # and that a column of differences needs beside them
_CODE = frozenset(("Plan", "Kept"))
# Made of numbers alone: right-aligned, and nothing in them needs escaping.
_NUMBERS = frozenset(
    (
        "Rank",
        "ANLS [95 % interval]",
        "Difference",
        "Exact",
        "Parameters",
        "MACs",
        "Other MACs",
        "Search cost",
    )
)


def markdown_table(rows: Sequence[ResultRow]) -> str:
    """Return the rows as a GitHub Markdown table, one line per row, with a final newline.

    Raises:
        DataError: the rows count under different accountings or scopes.
    """
    _check_same_unit(rows)
    columns = _columns(rows)
    lines = [
        f"| {' | '.join(_heading(name, rows) for name in columns)} |",
        "|" + "|".join(" ---: " if name in _NUMBERS else " --- " for name in columns) + "|",
    ]
    for row in rows:
        cells = [
            _code(cell)
            if name in _CODE
            else one_line(cell)
            if name in _NUMBERS
            else escape_markdown(cell)
            for name, cell in zip(_COLUMNS, _cells(row), strict=True)
            if name in columns
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def result_cells(rows: Sequence[ResultRow]) -> tuple[list[str], list[list[str]], list[int]]:
    """Return the table's headings, its cells as unescaped text, and which columns are numbers.

    Raises:
        DataError: the rows count under different accountings or scopes.
    """
    _check_same_unit(rows)
    columns = _columns(rows)
    cells = [
        [cell for name, cell in zip(_COLUMNS, _cells(row), strict=True) if name in columns]
        for row in rows
    ]
    numbers = [place for place, name in enumerate(columns) if name in _NUMBERS]
    return [_heading(name, rows) for name in columns], cells, numbers


def print_rows(rows: Sequence[ResultRow], console: Console) -> None:
    """Print the rows as a table; the best student is bold.

    Raises:
        DataError: the rows count under different accountings or scopes.
    """
    _check_same_unit(rows)
    cells = [dict(zip(_COLUMNS, _cells(row), strict=True)) for row in rows]
    columns = _columns(rows)
    longest = (
        max(len(one_line(row[name])) for row in (*cells, {name: _heading(name, rows)}))
        for name in columns
    )
    stacked = console.is_terminal and sum(width + 2 for width in longest) > console.width
    narrow = stacked and console.width < _WIDE + _WIDER * ("Difference" in columns)
    names = [name for name in columns if not (narrow and name in _DETAILS)]
    table = blank_table()
    for name in names:
        heading = {"Rank": "#"}.get(name, name.replace(" [", "\n[")) if stacked else name
        heading = _heading(name, rows) if name == "Other MACs" else heading
        # Numbers and pictures of plans are unreadable when folded; names and plans may be.
        folds = name in ("Student", "Plan", "Source")
        table.add_column(
            heading, justify="right" if name in _NUMBERS else "left", no_wrap=not folds
        )
    for row, texts in zip(rows, cells, strict=True):
        shown = [texts[name] if stacked else one_line(texts[name]) for name in names]
        _add(table, shown, "bold" if row.rank == 1 else None)
    show_table(table, console)
    for note in table_notes(rows):
        console.print(Text(note, style="dim"), soft_wrap=not console.is_terminal)


def print_scores(scores: Scores, console: Console) -> None:
    """Print scores and effects of all components, the largest effect first."""

    def size(entry: ComponentScore) -> float:
        judged = entry.score if entry.effect is None else entry.effect
        return -1.0 if judged is None else abs(judged)

    table = blank_table()
    table.add_column("Component")
    for name in ("Effect", "Sd", "Score", "Sd"):
        table.add_column(name, justify="right")
    for entry in sorted(scores.components, key=lambda one: (-size(one), one.component)):
        pairs = ((entry.effect, entry.effect_sd), (entry.score, entry.score_sd))
        cells = [text for value, sd in pairs for text in (_signed(value), _plain(sd))]
        _add(table, [entry.component, *cells])
    show_table(table, console)
    about = (
        f"Rise of {scores.metric} when a component is removed ({scores.ablation} ablation), over "
        f"{scores.examples:,} examples; {scores.base_metric:.4g} with everything in place. Effects "
        f"are measured, scores estimated ({scores.method}), {scores.passes:,} passes."
    )
    told = [f"{name} {value:.3g}" for name, value in sorted(scores.calibration.items())]
    for note in (about, f"Agreement: {', '.join(told)}." if told else ""):
        if note:
            console.print(Text(one_line(note), style="dim"), soft_wrap=not console.is_terminal)


def print_paths(paths: Mapping[str, Any], console: Console) -> None:
    """Print a table of paths, the most effective first.

    Args:
        paths: JSON form of discovery's path table: `target`, `examples`, `keywords` and a list
            `paths` of objects with `through`, `effectiveness`, `effectiveness_sd`, `overlap` and
            `loss`.
        console: where to print.

    Raises:
        DataError: a field is missing.
    """
    table = blank_table()
    table.add_column("Path")
    for name in ("Cosine", "Sd", "Overlap", "Loss"):
        table.add_column(name, justify="right")
    try:
        order = sorted(paths["paths"], key=lambda one: (-one["effectiveness"], len(one["through"])))
        for one in order:
            values = [one[key] for key in ("effectiveness", "effectiveness_sd", "overlap", "loss")]
            _add(table, [" ".join(one["through"]) or "residual", *map(_plain, values)])
        note = (
            f"Agreement of each path's query with the clean query of {paths['target']}, over "
            f"{paths['examples']:,} examples and {paths['keywords']:,} keyword tokens."
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"Table of paths: missing or malformed field: {error}") from error
    show_table(table, console)
    console.print(Text(one_line(note), style="dim"), soft_wrap=not console.is_terminal)


def _columns(rows: Sequence[ResultRow]) -> tuple[str, ...]:
    """Return the columns of a table: only those that some row fills."""
    absent = set()
    if all(row.difference is None for row in rows):
        absent.add("Difference")
    if all(_other(row) is None for row in rows):
        absent.add("Other MACs")
    return tuple(name for name in _COLUMNS if name not in absent)


def _heading(name: str, rows: Sequence[ResultRow]) -> str:
    """Return what stands above a column."""
    if name != "Other MACs":
        return name
    return next(f"MACs ({found})" for found in map(_other, rows) if found is not None)


def _other(row: ResultRow) -> str | None:
    """Return the accounting beside the row's own under which its MACs are known, if any."""
    return next((name for name in row.macs_in if name != row.accounting), None)


def blank_table() -> Table:
    """Return an empty table in the house style."""
    return Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True)


def _add(table: Table, cells: Sequence[str], style: str | None = None) -> None:
    """Add a row; Text objects, not strings, because a name in brackets is no markup."""
    lines = (map(one_line, cell.split("\n")) for cell in cells)
    table.add_row(*(Text("\n".join(cell)) for cell in lines), style=style)


def show_table(table: Table, console: Console) -> None:
    """Print a table; in a file or a pipe, which have no width, it is as wide as it needs to be."""
    width = console.width
    console.width = width if console.is_terminal else max(width, 1000)
    try:
        console.print(table, soft_wrap=False)
    finally:
        console.width = width


def table_notes(rows: Sequence[ResultRow]) -> list[str]:
    """Return what a reader must know to read the table: units, intervals, examples, training."""
    if not rows:
        return []
    first = rows[0]
    notes = [
        f"Parameters and MACs: {first.scope}, accounting {first.accounting}; in brackets the share "
        "of the teacher."
        + "".join(f" MACs ({other}): the other accounting." for other in [_other(first)] if other),
        "ANLS is a mean from 0 to 1 with its 95 % bootstrap interval, clustered by document.",
    ]
    if any(len(row.seeds) > 1 for row in rows):
        notes.append(
            "± is the standard deviation over seeds (n in brackets); the interval beside it is the "
            "mean of the seeds' intervals."
        )
    compared = next((row.difference_to for row in rows if row.difference is not None), None)
    if compared is not None:
        notes.append(
            f"Difference: ANLS minus that of {one_line(compared)} on the same questions, seeds "
            "averaged, with its 95 % interval of a paired bootstrap over documents."
        )
    notes.append("Kept: S C M per layer, lower case in part, a dot where skipped.")
    groups: dict[str, list[str]] = {}
    for row in rows:
        how = f"{row.phase}, {row.steps:,} steps, {row.examples:,} examples"
        groups.setdefault(how, []).append(one_line(row.name))
    told = [f"{', '.join(names)}: {how}" for how, names in groups.items()]
    notes.append(f"Measured: {'; '.join(told)}.")
    notes += [one_line(f"{row.name}: {note}.") for row in rows for note in row.notes]
    return notes


def _cells(row: ResultRow) -> tuple[str, ...]:
    """Return the cells of one row, unescaped, in the order of the columns.

    A line break is where a narrow terminal may break a cell; elsewhere it is a space.
    """
    return (
        DASH if row.rank is None else str(row.rank),
        one_line(row.name),
        row.plan or "(empty)",
        row.glyphs,
        _quality(row),
        _difference(row.difference),
        _mean(row.exact, row.exact_sd),
        f"{count(row.parameters)}\n({100 * row.parameters_share:.4g} %)",
        f"{count(row.macs)}\n({100 * row.macs_share:.4g} %)",
        DASH if (other := _other(row)) is None else count(row.macs_in[other]),
        DASH if row.search_cost is None else str(row.search_cost).replace(" + ", "\n+ "),
        one_line(row.source),
    )


def _quality(row: ResultRow) -> str:
    """Write ANLS, its interval and, over seeds, its spread."""
    text = _mean(row.quality, None)
    if row.quality_low is not None and row.quality_high is not None:
        text += f"\n[{row.quality_low:.3f}, {row.quality_high:.3f}]"
    if row.quality_sd is not None:
        text += f"\n± {row.quality_sd:.3f} ({len(row.seeds)})"
    return text


def _difference(found: Difference | None) -> str:
    """Write a paired difference and its interval."""
    if found is None:
        return DASH
    text = f"{found.mean:+.3f}"
    if found.low is not None and found.high is not None:
        text += f"\n[{found.low:+.3f}, {found.high:+.3f}]"
    return text.replace("-", "\N{MINUS SIGN}")


def _mean(value: float | None, spread: float | None) -> str:
    """Write a mean with three decimals and its spread, if any."""
    if value is None:
        return DASH
    return f"{value:.3f}" if spread is None else f"{value:.3f}\n± {spread:.3f}"


def _signed(value: float | None) -> str:
    """Write a number with its sign, or a dash."""
    return DASH if value is None else signed(value)


def _plain(value: float | None) -> str:
    """Write a number in three significant digits, or a dash."""
    return DASH if value is None else f"{value:.3g}"


def _code(text: str) -> str:
    """Return text as a Markdown code span inside a table cell."""
    plain = one_line(text).replace("`", "'").replace("|", "\\|")
    return f"`{plain}`" if plain else DASH


def _check_same_unit(rows: Sequence[ResultRow]) -> None:
    """Refuse rows whose costs cannot be compared."""
    units = sorted({f"{row.scope} ({row.accounting})" for row in rows})
    if len(units) > 1:
        raise DataError(f"Result table: rows count different things: {', '.join(units)}")
