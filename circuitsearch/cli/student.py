"""The commands around one student: distil a plan, evaluate a checkpoint, answer a question."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .shell import ConfigPath, Json, Overrides, Quiet, command, emit, people, quiet_libraries

__all__ = ["answer_command", "distill_command", "evaluate_command"]


@command
def distill_command(
    search: ConfigPath,
    plan: Annotated[str, typer.Option(help='E.g. "M0 C2 S3 C3".')],
    output: Annotated[Path, typer.Option(help="Folder for the student.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Default: those of the search.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Default: that of the search.")] = None,
    override: Overrides = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Distil one plan of your own with a search's teacher, pages and trainer."""
    from circuitsearch.core.plan import Plan

    from .search import open_pipeline

    chosen = Plan.parse(plan)
    pipeline = open_pipeline(search, override, quiet)
    config = pipeline.work.config
    chosen = chosen.fitted(pipeline.teacher.shape.decoder)
    taken = steps or config.distill.steps
    used = config.seed if seed is None else seed
    made = pipeline.trainer.measured(
        chosen, "user", seed=used, steps=taken, split="select", phase="full"
    )
    from circuitsearch.students.checkpoint import save_student

    model = pipeline.trainer.student(chosen, used, taken)
    save_student(model, pipeline.teacher, output)
    _say(made.to_json() | {"checkpoint": str(output)}, json)


@command
def evaluate_command(
    search: ConfigPath,
    student: Annotated[str, typer.Argument(help="A student's folder, or `teacher`.")] = "teacher",
    split: Annotated[str, typer.Option(help="`select` or `final`.")] = "final",
    override: Overrides = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a student checkpoint on a search's pages: loss, ANLS with interval, costs."""
    from circuitsearch.core.errors import ConfigError, choice_problem

    from .search import open_pipeline

    splits = ("select", "final")
    if split not in splits:
        raise ConfigError(choice_problem("--split", split, splits))
    pipeline = open_pipeline(search, override, quiet)
    from circuitsearch import stages

    made = stages.evaluate(pipeline.trainer, student, split)
    _say(made.to_json(), json)


@command
def answer_command(
    student: Annotated[Path, typer.Argument(help="A student's or teacher's folder, or `shipped`.")],
    image: Annotated[Path, typer.Argument(help="The page, any image file.")],
    question: Annotated[str, typer.Argument(help="The question.")],
    json: Json = False,
) -> None:
    """Answer a question about a page; the answer is all that is printed."""
    quiet_libraries()
    from circuitsearch.answer import answer_question

    answer = answer_question(str(student), image, question)
    if json:
        emit({"student": str(student), "question": question, "answer": answer})
    else:
        typer.echo(answer)


def _say(data: dict[str, Any], json: bool) -> None:
    if json:
        emit(data)
        return
    console = people()
    for name in ("plan", "loss", "quality", "quality_low", "quality_high", "exact", "checkpoint"):
        if data.get(name) is not None:
            console.print(f"{name:14} {data[name]}", markup=False)
