"""`circuitsearch analyze`: ask the teacher what published analyses of document models claim."""

from __future__ import annotations

from typing import Annotated

import typer

from .search import open_pipeline
from .shell import (
    ConfigPath,
    Json,
    Overrides,
    Quiet,
    command,
    emit,
    on_interrupt,
    people,
)

__all__ = ["analyze_command"]


@command
def analyze_command(
    search: ConfigPath,
    only: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="These analyses and what they read; default all."),
    ] = None,
    override: Overrides = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Run the published analyses on the teacher: a verdict per claim, and one page with them all.

    Run again, it goes on where it stopped.
    """
    from circuitsearch import stages
    from circuitsearch.workspace import CONFIG_FILE

    names = None if only is None else [name.strip() for name in only.split(",")]
    stages.chosen_analyses(names)  # a misspelt name is refused before a model is loaded
    pipeline = open_pipeline(search, override, quiet)
    work = pipeline.work
    rest = "" if only is None else f" --only {','.join(names or ())}"
    on_interrupt(f"circuitsearch analyze {work.folder / CONFIG_FILE}{rest}")
    findings = pipeline.findings(names)
    if json:
        emit({name: finding.to_json() for name, finding in findings.items()})
        return
    from circuitsearch.show.analysis_text import print_verdicts

    console = people()
    print_verdicts(findings, console)
    console.print(f"page           {stages.outputs(work)['analyses']}", markup=False)
