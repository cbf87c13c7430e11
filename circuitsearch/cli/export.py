"""The command that writes a student as ONNX files, and asks both whether they agree."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .shell import Json, command, emit, people

if TYPE_CHECKING:
    from collections.abc import Sequence

    from circuitsearch.students.export.check import Compared
    from circuitsearch.teacher.loading import Teacher

__all__ = ["export_command"]

_SEARCHES = (".yaml", ".yml")


@command
def export_command(
    student: Annotated[Path, typer.Argument(help="A student's or teacher's folder, or `shipped`.")],
    output: Annotated[Path, typer.Argument(help="Folder for the ONNX files.")],
    check: Annotated[
        Path | None,
        typer.Option(help="Compare with PyTorch on a search's pages (SEARCH.yaml) or on one page."),
    ] = None,
    question: Annotated[
        list[str] | None, typer.Option(help="With --check PAGE: ask this; may be repeated.")
    ] = None,
    pages: Annotated[int, typer.Option(min=1, help="With --check SEARCH.yaml: so many.")] = 8,
    opset: Annotated[int | None, typer.Option(help="ONNX opset, 18 to 23; default 20.")] = None,
    time: Annotated[
        bool, typer.Option("--time", help="Measure PyTorch and ONNX Runtime on this machine.")
    ] = False,
    json: Json = False,
) -> None:
    """Write a student as ONNX files that answer with onnxruntime and tokenizers alone.

    With --check the exit code is 1 where an answer or a logit differs.
    """
    asked = _questions(check, question, pages)
    # loading a student needs its classes registered with the Auto classes
    import circuitsearch.students  # noqa: F401
    from circuitsearch.answer import check_question
    from circuitsearch.students.export.files import OPSET, export_onnx
    from circuitsearch.teacher.loading import load_teacher

    model = load_teacher(str(student))
    for _, one in [] if asked is None else asked[1]:
        check_question(model, one)
    folder = export_onnx(model, output, opset=OPSET if opset is None else opset)
    rows = [] if asked is None else _compared(model, folder, *asked)
    times = _times(model, folder) if time else {}
    if json:
        emit(_report(folder, rows) | ({"milliseconds": times} if times else {}))
    else:
        _show(folder, rows, times)
    if not all(row.equal for row in rows):
        raise typer.Exit(1)


def _questions(
    check: Path | None, question: list[str] | None, count: int
) -> tuple[Sequence[Any], list[tuple[int, str]]] | None:
    """Return page images and the questions about them, as (page, question)."""
    from circuitsearch.core.errors import ConfigError

    is_search = check is not None and check.suffix.lower() in _SEARCHES
    if question and (check is None or is_search):
        raise ConfigError("--question: it goes with --check PAGE; a search has its own questions")
    if check is None:
        return None
    if is_search:
        from .search import open_pipeline

        pipeline = open_pipeline(check, None, quiet=True, claim=False, beside=True)
        # not the final pages: whoever meets those is counted
        chosen = pipeline.pages["select"][:count]
        asked = [(i, one.text) for i, page in enumerate(chosen) for one in page.questions]
        return [page.image() for page in chosen], asked
    if not question:
        raise ConfigError(f"--check {check}: a page needs --question; or give a SEARCH.yaml")
    from circuitsearch.answer import read_page

    return [read_page(check)], [(0, one) for one in question]


def _compared(
    model: Teacher, folder: Path, images: Sequence[Any], asked: list[tuple[int, str]]
) -> list[Compared]:
    """Ask the checkpoint and the files."""
    from circuitsearch.students.export.check import compare_onnx

    return compare_onnx(model, folder, images, asked)


def _times(model: Teacher, folder: Path) -> dict[str, dict[str, float]]:
    """Return milliseconds of encoder, first token and further tokens, by runtime."""
    from torch import get_num_threads

    from circuitsearch.core.cost import Generation
    from circuitsearch.students.export.timing import onnx_speed
    from circuitsearch.students.speed import measure_encoder, passes_of

    # the paper's generation, or as much of it as the model has room for
    room = min(model.model.config.decoder.max_position_embeddings, model.tokens.max_length)
    whole = Generation()
    prompt = min(whole.prompt, room // 2)
    asked = Generation(prompt, min(whole.passes, room - prompt))
    passes = passes_of(model, asked)
    files = onnx_speed(folder, asked, threads=get_num_threads())
    found = {
        "PyTorch": (measure_encoder(model).time, passes[0], sum(passes[1:]) / len(passes[1:])),
        "ONNX Runtime": (files.encoding, files.first_token, files.per_token),
    }
    names = ("encoder", "first token", "per token")
    return {
        runtime: dict(zip(names, (round(value / 1e6, 3) for value in values), strict=True))
        for runtime, values in found.items()
    }


def _report(folder: Path, rows: Sequence[Compared]) -> dict[str, Any]:
    """Return what was written and compared, as JSON."""
    return {
        "folder": str(folder),
        "files": sorted(path.name for path in folder.iterdir()),
        "checked": [vars(row) | {"equal": row.equal} for row in rows],
    }


def _show(folder: Path, rows: Sequence[Compared], times: dict[str, dict[str, float]]) -> None:
    """Print comparison and times for people."""
    from rich.table import Table
    from rich.text import Text

    console = people()
    if rows:
        from circuitsearch.core.text import one_line
        from circuitsearch.students.export.check import TOLERANCE

        table = Table("question", "PyTorch", "ONNX", "ONNX, batched", "logits differ by", "equal")
        for row in rows:
            words = (row.question, row.torch, row.onnx, row.batched)
            equal = "yes" if row.equal else "NO"
            table.add_row(*(Text(one_line(w)) for w in words), f"{row.difference:.1e}", equal)
        console.print(table)
        good = sum(row.equal for row in rows)
        console.print(f"{good} of {len(rows)} answers equal, logits within {TOLERANCE:g}")
    if times:
        spent = Table("runtime", *(f"{name}, ms" for name in next(iter(times.values()))))
        for runtime, values in times.items():
            spent.add_row(runtime, *(f"{value:.2f}" for value in values.values()))
        console.print(spent)
    console.print(f"ONNX files: {folder}", markup=False)
