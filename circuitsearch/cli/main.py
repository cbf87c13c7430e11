"""The `circuitsearch` command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from circuitsearch import __version__
from circuitsearch.processes import here

from . import graph, student, study, teacher
from .analyze import analyze_command
from .begin import init_command, schema_command
from .compare import compare_command
from .cost import cost_command
from .doctor import doctor_command
from .export import export_command
from .report import report_command
from .search import (
    enumerate_command,
    paths_command,
    resume_command,
    run_command,
    score_command,
    search_command,
    validate_command,
)
from .shell import command, settle_libraries

__all__ = ["app", "main"]

app = typer.Typer(
    name="circuitsearch",
    help="Find a document model's circuit, search the students that fit a budget, distil the best.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_COMMANDS: dict[str, Callable[..., None]] = {
    "init": init_command,
    "run": run_command,
    "validate": validate_command,
    "score": score_command,
    "paths": paths_command,
    "analyze": analyze_command,
    "enumerate": enumerate_command,
    "search": search_command,
    "resume": resume_command,
    "worker": study.worker_command,
    "status": study.status_command,
    "report": report_command,
    "top": study.top_command,
    "show": study.show_command,
    "stop": study.stop_command,
    "distill": student.distill_command,
    "evaluate": student.evaluate_command,
    "compare": compare_command,
    "answer": student.answer_command,
    "export": export_command,
    "cost": cost_command,
    "schema": schema_command,
    "doctor": doctor_command,
}
_ON_SEVERAL_PROCESSES = ("distill",)
for name, function in _COMMANDS.items():
    app.command(name)(function)
app.add_typer(graph.app, name="graph")
app.add_typer(study.app, name="study")
app.add_typer(teacher.app, name="teacher")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
@command
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    settle_libraries()
    if context.invoked_subcommand not in _ON_SEVERAL_PROCESSES:
        here().refuse(f"circuitsearch {context.invoked_subcommand}")


def main() -> None:
    """Entry point of the console script."""
    app()
