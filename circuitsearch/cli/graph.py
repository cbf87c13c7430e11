"""`circuitsearch graph`: write the circuit graph, or show it in the terminal.

`graph SEARCH.yaml` is `graph write SEARCH.yaml`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from .search import graph_command
from .shell import Json, command, emit, people

__all__ = ["app"]

_DEFAULT = "write"


class _WriteIsDefault(TyperGroup):
    """A group that takes what is none of its commands as arguments of `write`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default command in front where none is named."""
        if args and args[0] not in (*self.commands, "--help"):
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_WriteIsDefault,
    help="Write the circuit graph of SEARCH.yaml (the default), or show one in the terminal.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command(_DEFAULT)(graph_command)


@app.command("show")
@command
def show_command(
    where: Annotated[
        Path, typer.Argument(metavar="WHERE", help="SEARCH.yaml, its output folder, circuit.json.")
    ],
    by: Annotated[str, typer.Option(help="`effect` (measured) or `score` (estimated).")] = "effect",
    json: Json = False,
) -> None:
    """Draw layers x heads with a number per component; nothing is computed."""
    from circuitsearch.core.errors import ConfigError, choice_problem
    from circuitsearch.core.files import read_json
    from circuitsearch.show.grid import NUMBERS, grid_of, print_grid

    chosen = next((one for one in NUMBERS if one == by), None)
    if chosen is None:
        raise ConfigError(choice_problem("--by", by, NUMBERS))
    grid = grid_of(read_json(_circuit_file(where)), chosen)
    if json:
        emit(grid)
    else:
        print_grid(grid, people())


def _circuit_file(where: Path) -> Path:
    """Return the circuit file that a place stands for."""
    from circuitsearch.core.errors import ConfigError

    path, search = where, None
    if where.suffix.lower() in (".yaml", ".yml"):
        from circuitsearch.configfile import load_config

        search = where
        path = load_config(where).output / "circuit.json"
    elif where.is_dir():
        search = where / "search.yaml"
        path = where / "circuit.json"
    if not path.is_file():
        remedy = f"`circuitsearch graph {search}` writes it" if search else "give a circuit.json"
        raise ConfigError(f"{path}: no such file; {remedy}")
    return path
