"""`circuitsearch teacher`: train the small Donut from scratch and test a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .shell import Json, Quiet, command, emit, on_interrupt, people

__all__ = ["app"]

app = typer.Typer(help="Train and test teachers.", no_args_is_help=True)


@app.command("train")
@command
def train(
    output: Annotated[Path, typer.Argument(help="Folder for the checkpoint.")],
    results: Annotated[Path, typer.Option(help="Folder for recipe, log and table.")] = Path(
        "results/teacher"
    ),
    steps: Annotated[
        int | None, typer.Option(help="Optimizer steps; default: the shipped recipe.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights and pages.")] = 0,
    pages: Annotated[int, typer.Option(help="Fresh pages of the final test.")] = 400,
    quiet: Quiet = False,
) -> None:
    """Train the small Donut from random weights on rendered pages (about an hour on 2 cores).

    Run again, it resumes from the last saved state.
    """
    from circuitsearch.progress import reporter
    from circuitsearch.teacher.training import TeacherRecipe
    from circuitsearch.teacher_study import study_teacher

    default = TeacherRecipe(seed=seed)
    recipe = default if steps is None else TeacherRecipe(seed=seed, steps=steps)
    on_interrupt(f"circuitsearch teacher train {output}")
    report = study_teacher(recipe, output, results, pages=pages, say=reporter(quiet=quiet))
    _show(report)


@app.command("test")
@command
def test(
    teacher: Annotated[str, typer.Argument(help="`shipped`, a folder or a name.")] = "shipped",
    pages: Annotated[int, typer.Option(help="Pages rendered with a fresh seed.")] = 400,
    seed: Annotated[str, typer.Option(help="Seed of the pages.")] = "test",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Answer questions on freshly rendered pages by greedy generation and show the ANLS."""
    from circuitsearch.progress import reporter
    from circuitsearch.teacher.loading import load_teacher
    from circuitsearch.teacher_study import test_teacher

    report = test_teacher(load_teacher(teacher), pages, seed, reporter(quiet=quiet))
    if json:
        emit(report)
    else:
        _show(report)


def _show(report: dict[str, Any]) -> None:
    from circuitsearch.teacher_study import markdown

    people().print(markdown(report), markup=False)
