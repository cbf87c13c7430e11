"""Answering a file of questions without known answers, as a competition hands them out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from circuitsearch.progress import Reporter
from circuitsearch.students.saving.checkpoint import load_student
from circuitsearch.teacher.answering import generate_answers
from circuitsearch.teacher.documents.docvqa import load_docvqa
from circuitsearch.teacher.documents.records import Page
from circuitsearch.teacher.documents.submission import submission_ids
from circuitsearch.teacher.loading import Teacher

__all__ = ["answer_file"]

_PAGES = 4  # encoded together; a page of Donut's size takes 30 MB as pixels


def answer_file(
    say: Reporter, teacher: Teacher, student: str, path: Path, images: Path | None
) -> dict[str, str]:
    """Answer every question of a file in DocVQA's format; answers in it are not read.

    A question whose prompt leaves no room for an answer gets "": it must still be handed in.

    Args:
        say: Where progress goes.
        teacher: Gives prompt, tokenizer and image processor.
        student: A student's folder, or `teacher`.
        path: The file.
        images: Folder of the page images; default the file's.

    Returns:
        Question id -> answer.

    Raises:
        ConfigError: If the folder holds no student, or question ids are no whole numbers.
        DataError: If the file is malformed.
    """
    model = teacher.model if student == "teacher" else load_student(student).to(teacher.device)
    with say.stage(f"reading {path}"):
        pages = load_docvqa(path, images, answered=False).pages
    submission_ids([question.id for page in pages for question in page.questions])
    answers: dict[str, str] = {}
    with say.stage(f"answering the questions of {path}") as tell:
        for first in range(0, len(pages), _PAGES):
            answers |= _answered(model, teacher, pages[first : first + _PAGES])
            tell(min(first + _PAGES, len(pages)), len(pages))
    return answers


def _answered(model: Any, teacher: Teacher, pages: Sequence[Page]) -> dict[str, str]:
    """Return the answers to all questions about some pages."""
    tokens = teacher.tokens
    asked = [
        (place, question)
        for place, page in enumerate(pages)
        for question in page.questions
        if len(tokens.prompt_ids(question.text)) < tokens.max_length
    ]
    answers = {question.id: "" for page in pages for question in page.questions}
    if asked:
        pixels = teacher.pixel_values([page.image() for page in pages])
        said = generate_answers(
            model,
            tokens,
            pixels,
            [place for place, _ in asked],
            [question.text for _, question in asked],
        )
        answers |= {question.id: text for (_, question), text in zip(asked, said, strict=True)}
    return answers
