"""Answering one question about one page with a checkpoint, teacher or student."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

# loading a student needs its classes registered with the Auto classes
import circuitsearch.students  # noqa: F401
from circuitsearch.core.errors import DataError
from circuitsearch.teacher.answering import generate_answers
from circuitsearch.teacher.documents.images import open_image
from circuitsearch.teacher.loading import Teacher, load_teacher

__all__ = ["answer_question", "check_question", "read_page"]


def answer_question(checkpoint: str, image: Path, question: str) -> str:
    """Answer a question about a page image.

    Args:
        checkpoint: A student's or teacher's folder, `shipped`, or a Hugging Face name.
        image: Image file of the page.
        question: The question.

    Raises:
        ConfigError: If the checkpoint cannot be used.
        DataError: If the image cannot be read or the question is empty or too long.
    """
    _check_asked(question)
    page = read_page(image)
    model = load_teacher(checkpoint)
    check_question(model, question)
    pixels = model.pixel_values([page])
    return generate_answers(model.model, model.tokens, pixels, [0], [question])[0]


def read_page(image: Path) -> Image.Image:
    """Read an image file as a search reads it: upright RGB, transparent parts white.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        data = image.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{image}: no such file") from None
    except OSError as error:
        raise DataError(f"{image}: it cannot be read ({error})") from error
    try:
        return open_image(data)
    except Exception as error:  # decoders answer a broken file with almost any exception
        raise DataError(f"{image}: not an image that can be read ({error})") from error


def check_question(model: Teacher, question: str) -> None:
    """Refuse a question that is empty, or leaves a model no room for an answer.

    Raises:
        DataError: If it is.
    """
    _check_asked(question)
    length = len(model.tokens.prompt_ids(question))
    if length >= model.max_length:
        raise DataError(
            f"question: the prompt takes {length} tokens, the model has room for "
            f"{model.max_length} with the answer; shorten it"
        )


def _check_asked(question: str) -> None:
    if not question.strip():
        raise DataError("question: it is empty; ask something")
