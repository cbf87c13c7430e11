"""`circuitsearch cost`: what a plan costs, from shapes alone."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from circuitsearch.api import cost
from circuitsearch.core.cost import ACCOUNTINGS, Cost, Generation
from circuitsearch.core.errors import ConfigError, choice_problem

from .shell import Json, command, emit

__all__ = ["cost_command"]


@command
def cost_command(
    teacher: Annotated[
        str, typer.Option(help="`donut-base`, `shipped`, a checkpoint folder or a name.")
    ] = "shipped",
    plan: Annotated[
        str | None, typer.Option(help='E.g. "M0 C2 S3 C3"; default: everything.')
    ] = None,
    accounting: Annotated[str, typer.Option(help="`paper` or `cached`.")] = "paper",
    prompt: Annotated[
        int, typer.Option(help="Prompt tokens that MACs are counted for.")
    ] = Generation.prompt,
    passes: Annotated[
        int, typer.Option(help="Decoder passes that MACs are counted for.")
    ] = Generation.passes,
    json: Json = False,
) -> None:
    """Show parameters and multiply-adds of a plan per scope and sub-layer."""
    if accounting not in ACCOUNTINGS:
        raise ConfigError(choice_problem("--accounting", accounting, ACCOUNTINGS))
    spent = cost(plan, teacher, accounting=accounting, prompt=prompt, passes=passes)
    if json:
        emit(spent.to_json())
    else:
        _show(spent)


def _show(spent: Cost) -> None:
    table = Table(
        title=f"{spent.plan or '(empty)'}, accounting {spent.accounting}", title_justify="left"
    )
    table.add_column("part")
    table.add_column("parameters", justify="right")
    table.add_column("MACs", justify="right")
    for name, part in [*spent.sublayers.items(), *spent.fixed.items()]:
        table.add_row(name, f"{part.parameters:,}", f"{part.macs:,}")
    table.add_section()
    for name, part in spent.scopes.items():
        table.add_row(name, f"{part.parameters:,}", f"{part.macs:,}", style="bold")
    Console().print(table)
