"""The circuit in the terminal: a row per sub-layer, a column per head, one number in each cell.

Numbers are scores or effects in the metric's unit, positive where the component helps. The sign is
a character as well as a colour, so nothing is lost without colours. Where a row of numbers would
not fit the terminal, every cell is a sign and a bar: eighths of the largest number of its table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from circuitsearch.core.components import Kind
from circuitsearch.core.errors import DataError
from circuitsearch.core.text import one_line

from .circuit import Circuit, read_circuit

__all__ = ["NUMBERS", "Number", "grid_of", "print_grid"]

Number = Literal["effect", "score"]
NUMBERS: tuple[Number, ...] = ("effect", "score")
_BARS = " ▁▂▃▄▅▆▇█"
_FAINT = 0.1  # of the largest number; smaller ones are drawn faint
_KINDS = (Kind.SELF, Kind.CROSS, Kind.FEED)


def grid_of(data: Any, by: Number = "effect") -> dict[str, Any]:
    """Return the numbers of a circuit file by sub-layer and head.

    Args:
        data: Node-link JSON of a circuit graph.
        by: Which number.

    Returns:
        {"by", "about", "sublayers": {"S0": {"value": float | None, "heads": [float | None, ...]}}};
        sub-layers in execution order, heads by index.

    Raises:
        DataError: It is no circuit graph, or holds no such number.
    """
    circuit = read_circuit(data)
    rows: dict[str, dict[str, Any]] = {}
    for one in circuit.components:
        if one.sublayer is None:
            continue
        row = rows.setdefault(one.sublayer.name, {"value": None, "heads": []})
        value = one.numbers.get(by)
        if one.head is None:
            row["value"] = value
            continue
        heads = row["heads"]
        heads += [None] * (one.head + 1 - len(heads))
        heads[one.head] = value
    if not any(_numbers(row) for row in rows.values()):
        raise DataError(f"The circuit graph holds no {by} of any component; {_others(circuit)}")
    return {"by": by, "about": dict(circuit.about), "sublayers": rows}


def _others(circuit: Circuit) -> str:
    there = [name for name in NUMBERS if any(name in one.numbers for one in circuit.components)]
    return f"it has --by {' and --by '.join(there)}" if there else "it has no numbers at all"


def _numbers(row: Mapping[str, Any]) -> list[float]:
    return [value for value in (row["value"], *row["heads"]) if value is not None]


def print_grid(grid: Mapping[str, Any], console: Console) -> None:
    """Print what `grid_of` returned: self-attention, cross-attention, feed-forward."""
    rows: Mapping[str, Mapping[str, Any]] = grid["sublayers"]
    heads = max(len(row["heads"]) for row in rows.values())
    top = max(abs(value) for row in rows.values() for value in _numbers(row))
    largest = max(
        (abs(one) for row in rows.values() for one in row["heads"] if one is not None), default=top
    )
    form = f"{{:+.{next((d for d in range(6) if top >= 100 / 10**d), 6)}f}}"
    wide = 6 + (len(form.format(-top)) + 2) * (heads + 1) <= console.width
    table = Table(
        title=Text(_title(grid)),
        title_justify="left",
        title_style="bold",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("")
    table.add_column("whole", justify="right")
    if wide:
        for head in range(heads):
            table.add_column(f"H{head}", justify="right", no_wrap=True)
    else:
        table.add_column(" ".join(f"{head:<2}" for head in range(heads)), no_wrap=True)
    for kind in _KINDS:
        for name, row in rows.items():
            if name.startswith(kind.value):
                cells = [_cell(one, largest, form if wide else "") for one in row["heads"]]
                joined = cells if wide else [Text(" ").join(cells)]
                table.add_row(name, _cell(row["value"], top, form), *joined)
        table.add_section()
    console.print(table)
    legend = "faint: below a tenth of the largest"
    if not wide:
        legend = f"bars of heads are eighths of {largest:.3g}"
    console.print(f"+ helps (removing it raises the metric), - hurts; {legend}", markup=False)


def _title(grid: Mapping[str, Any]) -> str:
    about = grid["about"]
    facts = [f"{name} {about[name]}" for name in ("metric", "ablation") if name in about]
    more = f" ({', '.join(facts)})" if facts else ""
    return one_line(f"{grid['by']} of every component{more}")


def _cell(value: float | None, top: float, form: str) -> Text:
    """Return one number as text, or as sign and bar where `form` is empty."""
    if value is None:
        return Text("" if form else "  ")
    share = abs(value) / top if top else 0.0
    bar = _BARS[min(8, round(8 * share))]
    text = form.format(value) if form else f"{'-' if value < 0 else '+'}{bar}"
    colour = "green" if value >= 0 else "red"
    return Text(text, style=f"dim {colour}" if share < _FAINT else colour)
