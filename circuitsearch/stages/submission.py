"""Answering a file of questions without known answers, as a competition hands them out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from circuitsearch.progress import Reporter
from circuitsearch.teacher.answering import generate_answers
from circuitsearch.teacher.documents.docvqa import load_docvqa
from circuitsearch.teacher.documents.records import Page
from circuitsearch.teacher.documents.submission import submission_ids
from circuitsearch.teacher.loading import Teacher

__all__ = ["answer_file"]

_PAGES = 4  # encoded together; a page of Donut's size takes 30 MB as pixels


def answer_file(
    say: Reporter, model: Teacher, path: Path, images: Path | None
) -> tuple[dict[str, str], list[str]]:
    """Answer every question of a file in DocVQA's format; answers in it are not read.

    A question whose prompt leaves no room for an answer gets "": it must still be handed in.

    Args:
        say: Where progress goes.
        model: Who answers: a teacher, or a student loaded as one (a stock one, too).
        path: The file.
        images: Folder of the page images; default the file's.

    Returns:
        Question id -> answer, and the ids that the file asks for.

    Raises:
        ConfigError: If question ids are no whole numbers.
        DataError: If the file is malformed.
    """
    with say.stage(f"reading {path}"):
        pages = load_docvqa(path, images, answered=False).pages
    wanted = [question.id for page in pages for question in page.questions]
    submission_ids(wanted)
    answers: dict[str, str] = {}
    with say.stage(f"answering the questions of {path}") as tell:
        for first in range(0, len(pages), _PAGES):
            answers |= _answered(model, pages[first : first + _PAGES])
            tell(min(first + _PAGES, len(pages)), len(pages))
    return answers, wanted


def _answered(model: Teacher, pages: Sequence[Page]) -> dict[str, str]:
    """Return the answers to all questions about some pages."""
    tokens = model.tokens
    asked = [
        (place, question)
        for place, page in enumerate(pages)
        for question in page.questions
        if len(tokens.prompt_ids(question.text)) < tokens.max_length
    ]
    answers = {question.id: "" for page in pages for question in page.questions}
    if asked:
        pixels = model.pixel_values([page.image() for page in pages])
        said = generate_answers(
            model.model,
            tokens,
            pixels,
            [place for place, _ in asked],
            [question.text for _, question in asked],
        )
        answers |= {question.id: text for (_, question), text in zip(asked, said, strict=True)}
    return answers
