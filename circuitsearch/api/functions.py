"""What the commands around single plans, models and studies do, from Python: a function each."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from circuitsearch.core.answers import AnlsRule, read_answers
from circuitsearch.core.cost import Accounting, Cost, Generation
from circuitsearch.core.cost import cost as cost_of
from circuitsearch.core.difference import DRAWS, Difference
from circuitsearch.core.plan import Plan
from circuitsearch.core.shapes import KNOWN_SHAPES, TeacherShape, known_shape

if TYPE_CHECKING:
    from transformers import VisionEncoderDecoderModel

    from circuitsearch.search.storage.view import StudyView
    from circuitsearch.teacher.loading import Teacher

__all__ = [
    "answer_question",
    "compare",
    "cost",
    "export",
    "load_student",
    "load_teacher",
    "open_study",
    "shape_of",
]


def open_study(
    where: str | Path, study: str | None = None, phase: str | None = None
) -> AbstractContextManager[StudyView]:
    """Open a study to read it while any number of workers go on (use it in a `with`).

    Args:
        where: Output folder of a search, SQLite file or database URL.
        study: Name, where the database holds several.
        phase: A further phase, e.g. `full`; default the search itself.

    Returns:
        Gives a `StudyView`: `status()`, `best()`, `trials()`, `measurements()`.

    Raises:
        ConfigError: If there is no such study or phase, or several and none is named.
        StorageError: If there is no such database, or it cannot be read.
    """
    from circuitsearch.studies import view_study

    return view_study(str(where), study, phase)


def cost(
    plan: str | Plan | None = None,
    teacher: str | Path = "shipped",
    *,
    accounting: Accounting = "paper",
    prompt: int = Generation.prompt,
    passes: int = Generation.passes,
) -> Cost:
    """Count parameters and multiply-adds of a plan, from shapes alone.

    Args:
        plan: E.g. `M0 C2 S3 C3`; default everything.
        teacher: `donut-base` (neither weights nor torch needed), `shipped`, a checkpoint folder or
            a Hugging Face name.
        accounting: `paper` (no key-value cache) or `cached` (what deployment pays).
        prompt: Prompt tokens that multiply-adds are counted for.
        passes: Decoder passes that multiply-adds are counted for, one per token of the answer.

    Returns:
        Exact integers per sub-layer, for the fixed parts and per scope.

    Raises:
        ConfigError: If the teacher cannot be used or a setting is not allowed.
        PlanError: If the plan is malformed or does not fit the decoder.

    Source: the accounting `paper` is that of Donut-MINT's Table 1, arXiv 2509.26235.
    """
    shape = shape_of(str(teacher))
    whole = Plan.full(shape.decoder.layers)
    chosen = whole if plan is None else Plan.parse(plan) if isinstance(plan, str) else plan
    return cost_of(chosen, shape, accounting, Generation(prompt=prompt, passes=passes))


def shape_of(teacher: str) -> TeacherShape:
    """Return a teacher's shape; known names need neither weights nor torch.

    Raises:
        ConfigError: If the teacher cannot be used.
    """
    if teacher in KNOWN_SHAPES:
        return known_shape(teacher)
    return load_teacher(teacher).shape


def load_teacher(teacher: str | Path = "shipped", device: str = "cpu") -> Teacher:
    """Load a trained document model with all that it takes to ask it and to take it apart.

    Args:
        teacher: `shipped`, a checkpoint folder (a student's too) or a Hugging Face name.
        device: torch device, e.g. `cpu` or `cuda`.

    Returns:
        The frozen model with processor, prompt, residual-stream view, shape and fingerprint;
        `pixel_values(images)` gives [P, 3, height, width], `encode(pixels)` gives [P, N, E].

    Raises:
        ConfigError: If it is missing, incomplete or no document model that can be searched.
    """
    # a student that is loaded as a teacher needs its classes registered with the Auto classes
    import circuitsearch.students  # noqa: F401
    from circuitsearch.teacher import loading

    return loading.load_teacher(str(teacher), device)


def load_student(folder: str | Path) -> VisionEncoderDecoderModel:
    """Load a student as a Hugging Face model in evaluation mode; nothing is downloaded.

    Args:
        folder: What `run`, `distill` or `save_student` wrote.

    Returns:
        The model, on the CPU in float32; `generate` works as for any Donut.

    Raises:
        ConfigError: If the folder is missing or holds no student.
        DataError: If its weights are damaged or do not belong to its config.
    """
    from circuitsearch.students.saving import checkpoint

    return checkpoint.load_student(folder)


def answer_question(checkpoint: str | Path, image: str | Path, question: str) -> str:
    """Answer a question about a page image.

    Args:
        checkpoint: A student's or teacher's folder, `shipped`, or a Hugging Face name.
        image: Image file of the page.
        question: The question.

    Returns:
        The answer, by greedy decoding.

    Raises:
        ConfigError: If the checkpoint cannot be used.
        DataError: If the image cannot be read or the question is empty or too long.
    """
    from circuitsearch import answer

    return answer.answer_question(str(checkpoint), Path(image), question)


def compare(
    first: str | Path,
    second: str | Path,
    *,
    strict: bool = False,
    seed: int = 0,
    draws: int = DRAWS,
) -> dict[str, Difference]:
    """Compare two predictions files on the same questions.

    Args:
        first: Predictions of one student (`evaluate --predictions`); several seeds one after the
            other are one side.
        second: Predictions of another.
        strict: Whether ANLS is read as in its paper: a similarity of one half scores 0.
        seed: Seed of the bootstrap.
        draws: Draws of the bootstrap.

    Returns:
        First minus second, in [-1, 1] with a 95 % interval over documents: `all`, then per family.

    Raises:
        DataError: If a file is malformed, or the two differ in questions or gold answers.
    """
    from circuitsearch.teacher.comparison import compare_answers

    sides = read_answers(first), read_answers(second)
    rule: AnlsRule = "strict" if strict else "rrc"
    return compare_answers(*sides, rule=rule, seed=seed, draws=draws)


def export(student: str | Path, output: str | Path, *, opset: int | None = None) -> Path:
    """Write a student as ONNX files that answer with onnxruntime and tokenizers alone.

    Args:
        student: A student's or teacher's folder, or `shipped`.
        output: Folder for the files; an older export in it is replaced.
        opset: ONNX opset, 18 to 23; default 20.

    Returns:
        The folder.

    Raises:
        ConfigError: If onnx is not installed, the opset is unknown, or the checkpoint asks for
            something that plain greedy decoding does not do.
        StorageError: If the folder cannot be written.
    """
    from circuitsearch.students.export.files import OPSET, export_onnx

    return export_onnx(load_teacher(student), output, opset=OPSET if opset is None else opset)
