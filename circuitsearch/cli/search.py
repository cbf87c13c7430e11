"""The commands that take a search file: the whole job, or the job up to one stage.

Every stage keeps its result, so the commands share work: `score` followed by `run` scores once.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from circuitsearch.core.text import drop_passwords

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

if TYPE_CHECKING:
    from circuitsearch.pipeline import Pipeline

__all__ = [
    "enumerate_command",
    "graph_command",
    "open_pipeline",
    "paths_command",
    "resume_command",
    "run_command",
    "score_command",
    "search_command",
    "validate_command",
]


_claims: list[Any] = []  # locks, held as long as the process lives


def open_pipeline(
    path: Path,
    overrides: list[str] | None,
    quiet: bool,
    *,
    claim: bool = True,
    beside: bool = False,
) -> Pipeline:
    """Return the pipeline of a search file, its folder claimed; nothing has run yet.

    `beside` is `Workspace.write_config`'s.
    """
    from circuitsearch.api import Search

    search = Search(path, overrides or (), quiet=quiet)
    if claim:
        _claims.append(search.work.claim())
    search.work.write_config(beside=beside)
    on_interrupt(drop_passwords(shlex.join(["circuitsearch", *sys.argv[1:]])))
    return search.pipeline


@command
def run_command(
    search: ConfigPath, override: Overrides = None, json: Json = False, quiet: Quiet = False
) -> None:
    """Run a search from teacher to result table; run again, it goes on where it stopped."""
    _finish(open_pipeline(search, override, quiet), json)


@command
def resume_command(
    where: Annotated[
        str, typer.Argument(metavar="WHERE", help="Output folder of a search, or SEARCH.yaml.")
    ],
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Go on with a search that was stopped."""
    from circuitsearch.core.errors import ConfigError
    from circuitsearch.studies import search_file
    from circuitsearch.workspace import CONFIG_FILE

    path = search_file(where)
    if path is None:
        raise ConfigError(
            f"{where}: no {CONFIG_FILE} there; give a search file or the output folder of a search"
        )
    _finish(open_pipeline(path, None, quiet), json)


def _finish(pipeline: Pipeline, json: bool) -> None:
    result = pipeline.run()
    if json:
        emit(result)
        return
    from circuitsearch import stages
    from circuitsearch.show.report import print_rows

    console = people()
    print_rows(pipeline.rows, console)
    folder = pipeline.work.folder
    for name, path in stages.outputs(pipeline.work).items():
        console.print(f"{name:14} {path}", markup=False)
    page, question = folder / "page.png", pipeline.pages["final"][0].questions[0].text
    shown = page if page.exists() else "IMAGE"
    words = ["circuitsearch", "answer", str(folder / "student"), str(shown), question]
    console.print(f"try it         {shlex.join(words)}", markup=False)


@command
def validate_command(
    search: ConfigPath,
    override: Overrides = None,
    measure: Annotated[
        bool, typer.Option(help="Estimate the time by a short measurement on this machine.")
    ] = True,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check and price a search without running it: plans, costs, trainings, disk, time."""
    from circuitsearch.api import Search

    facts = Search(search, override or (), quiet=quiet).validate(measure=measure)
    if json:
        emit(facts)
        return
    from circuitsearch.show.priced import print_priced

    print_priced(facts, people())


@command
def score_command(
    search: ConfigPath, override: Overrides = None, json: Json = False, quiet: Quiet = False
) -> None:
    """Score all components and measure their exact effects."""
    scores = open_pipeline(search, override, quiet).scores
    if json:
        emit(scores.to_json())
        return
    from circuitsearch.show.tables import print_scores

    print_scores(scores, people())


@command
def paths_command(
    search: ConfigPath, override: Overrides = None, json: Json = False, quiet: Quiet = False
) -> None:
    """Show the residual / sub-layer paths from the keyword to the last cross-attention's query."""
    table = open_pipeline(search, override, quiet).paths
    if json:
        emit(table.to_json())
        return
    from circuitsearch.show.tables import print_paths

    print_paths(table.to_json(), people())


@command
def graph_command(
    search: ConfigPath, override: Overrides = None, json: Json = False, quiet: Quiet = False
) -> None:
    """Write the circuit graph: node-link JSON, GraphML and one self-contained page."""
    pipeline = open_pipeline(search, override, quiet)
    circuit = pipeline.circuit
    if json:
        emit(circuit)
    else:
        people().print(f"circuit graph: {pipeline.work.folder / 'circuit.html'}", markup=False)


@command
def enumerate_command(
    search: ConfigPath,
    override: Overrides = None,
    top: Annotated[int, typer.Option(min=1, help="Plans to show.")] = 10,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Rank feasible plans by their losses: on the teacher, on the elastic one, and by both."""
    from circuitsearch.search.knapsack import best_within

    pipeline = open_pipeline(search, override, quiet)
    ranked = {
        "untrained": pipeline.untrained,
        "elastic": pipeline.elastic_ranking,
        "predicted": pipeline.predicted,
    }
    shown = {
        name: [{"plan": str(plan), "loss": loss} for plan, loss in rows[:top]]
        for name, rows in ranked.items()
        if rows
    }
    within = pipeline.space.count()
    curve = best_within(pipeline.predicted, pipeline.space)
    if json:
        told = [{"percent": part, "plan": str(plan), "loss": loss} for part, plan, loss in curve]
        counts = {name: len(rows) for name, rows in ranked.items() if rows}
        emit({"plans": within, "ranked": counts, **shown, "curve": told})
        return
    console = people()
    for name, rows in shown.items():
        met = len(ranked[name])
        sample = "" if met == within else f", a sample of {within:,}"
        console.print(f"{name} loss, best {len(rows)} of {met:,} plans{sample}")
        for row in rows:
            console.print(f"  {row['loss']:.4f}  {row['plan']}", markup=False)
    if curve:
        console.print("predicted loss, best plan within a share of the budget")
    for part, plan, loss in curve:
        console.print(f"  {part:3} %  {loss:.4f}  {plan}", markup=False)


@command
def search_command(
    search: ConfigPath, override: Overrides = None, json: Json = False, quiet: Quiet = False
) -> None:
    """Run the warm-started search without the final comparison."""
    pipeline = open_pipeline(search, override, quiet)
    _tell({"trials": [m.to_json() for m in pipeline.study.measurements()]}, json)


def _tell(data: dict[str, Any], json: bool) -> None:
    if json:
        emit(data)
        return
    import yaml

    people().print(yaml.safe_dump(data, sort_keys=False, allow_unicode=True).rstrip(), markup=False)
