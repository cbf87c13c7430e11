"""The commands around one student: distil a plan, evaluate a checkpoint, answer a question."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .shell import ConfigPath, Json, Overrides, Quiet, command, emit, people

if TYPE_CHECKING:
    from circuitsearch.core.measurement import Measurement
    from circuitsearch.pipeline import Pipeline

__all__ = ["answer_command", "distill_command", "evaluate_command"]

_TOLD = (
    "plan",
    "loss",
    "perplexity",
    "anls",
    "quality",
    "quality_low",
    "quality_high",
    "exact",
    "nted",
    "field_f1",
    "questions",
    "checkpoint",
    "predictions",
    "submission",
)
"""What is told to people, in order; `--json` has everything."""


@command
def distill_command(
    search: ConfigPath,
    plan: Annotated[str, typer.Option(help='E.g. "M0 C2 S3 C3".')],
    output: Annotated[Path, typer.Option(help="Folder for the student.")],
    steps: Annotated[int | None, typer.Option(min=1, help="Default: those of the search.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Default: that of the search.")] = None,
    stock: Annotated[
        bool, typer.Option("--stock", help="A stock model, where the plan allows it.")
    ] = False,
    override: Overrides = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Distil one plan of your own with a search's teacher, pages and trainer."""
    from circuitsearch.core.plan import Plan
    from circuitsearch.processes import here

    from .search import open_pipeline

    def distilled() -> Measurement:
        chosen = Plan.parse(plan)
        pipeline = open_pipeline(search, override, quiet, beside=True)
        # refuses before any page is read
        chosen.fitted(here().main_first(lambda: pipeline.teacher).shape.decoder)
        from circuitsearch import stages

        return stages.distill_plan(
            here().main_first(lambda: pipeline.trainer),
            chosen,
            output,
            search=search,
            steps=steps,
            seed=seed,
            stock=stock,
            overrides=override or (),
        )

    made = here().together(distilled)
    if here().is_main:
        _say(made.to_json() | {"checkpoint": str(output)}, json)


@command
def evaluate_command(
    search: ConfigPath,
    student: Annotated[str, typer.Argument(help="A student's folder, or `teacher`.")] = "teacher",
    split: Annotated[str, typer.Option(help="`select` or `final`.")] = "final",
    strict: Annotated[
        bool, typer.Option("--strict", help="ANLS as in its paper: one half scores 0.")
    ] = False,
    predictions: Annotated[
        Path | None, typer.Option(help="Write answers and scores per question (JSON lines).")
    ] = None,
    submission: Annotated[
        Path | None, typer.Option(help="Write the competition's file (RRC, DocVQA).")
    ] = None,
    questions: Annotated[
        Path | None, typer.Option(help="Answer this DocVQA file (e.g. test) for --submission.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Root of its image paths; default its folder.")
    ] = None,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Measure speed and memory in ONNX Runtime, too.")
    ] = False,
    override: Overrides = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure a student checkpoint on a search's pages: loss, ANLS with interval, costs."""
    from circuitsearch.core.errors import ConfigError, choice_problem, raise_together

    from .search import open_pipeline

    splits = ("select", "final")
    problems = [] if split in splits else [choice_problem("--split", split, splits)]
    if questions is not None and (submission is None or predictions is not None or strict or onnx):
        problems.append(
            "--questions: its answers are not known, so nothing is scored; give it with "
            "--submission, without --predictions, --strict and --onnx"
        )
    if images is not None and questions is None:
        problems.append("--images: belongs to --questions")
    raise_together(problems, ConfigError, "evaluate")
    pipeline = open_pipeline(search, override, quiet, beside=True)
    if questions is not None and submission is not None:
        _answer_file(pipeline, student, questions, images, submission, json)
    else:
        _evaluate(pipeline, student, split, strict, predictions, submission, onnx, json)


def _answer_file(
    pipeline: Pipeline, student: str, questions: Path, images: Path | None, out: Path, json: bool
) -> None:
    from circuitsearch import stages
    from circuitsearch.api import load_teacher
    from circuitsearch.teacher.documents.submission import write_submission

    work = pipeline.work
    device = work.processes.device(work.config.device)
    model = pipeline.teacher if student == "teacher" else load_teacher(student, device)
    answers, asked = stages.answer_file(work.say, model, questions, images)
    write_submission(out, answers, asked)
    _say({"questions": len(answers), "submission": str(out)}, json)


def _evaluate(
    pipeline: Pipeline,
    student: str,
    split: str,
    strict: bool,
    predictions: Path | None,
    submission: Path | None,
    onnx: bool,
    json: bool,
) -> None:
    from circuitsearch import stages
    from circuitsearch.api import load_teacher
    from circuitsearch.core.answers import write_answers
    from circuitsearch.teacher.documents.submission import submission_ids, write_submission

    asked = [question.id for page in pipeline.pages[split] for question in page.questions]
    if submission is not None:
        submission_ids(asked)  # refuses data that are not the competition's before asking
    written: dict[str, Any] = {}
    if onnx:  # first, because it may be refused
        exported = pipeline.work.config.teacher if student == "teacher" else student
        written["onnx"] = stages.measure_onnx(pipeline.work, load_teacher(exported))
    made, answers = stages.evaluate(pipeline.trainer, student, split, "strict" if strict else None)
    if predictions is not None:
        write_answers(predictions, answers)
        written["predictions"] = str(predictions)
    if submission is not None:
        write_submission(submission, {row.question: row.answer for row in answers.rows}, asked)
        written["submission"] = str(submission)
    _say(made.to_json() | {"anls": answers.rule} | written, json)


@command
def answer_command(
    student: Annotated[Path, typer.Argument(help="A student's or teacher's folder, or `shipped`.")],
    image: Annotated[Path, typer.Argument(help="The page, any image file.")],
    question: Annotated[str, typer.Argument(help="The question.")],
    json: Json = False,
) -> None:
    """Answer a question about a page; the answer is all that is printed."""
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
    for name, value in {**{name: data.get(name) for name in _TOLD}, **_spent(data)}.items():
        if value is not None:
            console.print(f"{name:14} {value}", markup=False)


def _spent(data: dict[str, Any]) -> dict[str, str]:
    """Return quality by family, costs and speed of a measurement in words, by name."""
    from circuitsearch.core.amounts import shown

    families = ", ".join(f"{name} {value:.3f}" for name, value in data.get("families", {}).items())
    told = {"families": families} if families else {}
    for accounting, cost in data.get("cost", {}).items():
        one = cost["scopes"]["decoder"]
        told[f"decoder {accounting}"] = f"{one['parameters']:,} parameters, {one['macs']:,} MACs"
    if data.get("speed"):
        speed = data["speed"]
        told["latency"] = _times(speed)
        sizes = [shown("memory", speed[name]) for name in ("decoder_memory", "total_memory")]
        told["peak memory"] = "decoder {}, in all {}, on {}".format(*sizes, speed["where"])
    if data.get("onnx"):
        speed = data["onnx"]
        size = "unknown" if speed["memory"] is None else shown("memory", speed["memory"])
        told["ONNX latency"] = _times(speed)
        told["ONNX memory"] = f"process grows by {size}, on {speed['where']}"
    return told


def _times(speed: dict[str, Any]) -> str:
    """Return latencies in words."""
    from circuitsearch.core.amounts import shown

    times = [shown("latency", speed[name]) for name in ("first_token", "per_token", "encoding")]
    return "first token {}, each further {}, encoder {}".format(*times)
