"""DocVQA's own annotation files (Mathew et al., arXiv 2007.00398; RRC challenge 17, task 1).

One JSON object per split: `dataset_name`, `dataset_split`, `dataset_version` and `data`, a list of
records with `questionId`, `question`, `image` (a path below the image folder), `docId`,
`answers`, `data_split`, and in some releases `ucsf_document_id`, `ucsf_document_page_no` and
`question_types`. The 50,000 questions of the full set share 12,767 page images, so records are
grouped by image: an encoder reads a page once, however many questions it has.

The document of a page is `ucsf_document_id` where a record has it, else `docId`: DocVQA's `docId`
numbers page images (it exceeds the 6,071 source documents), and a split by it would put pages of
one document on both sides.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from circuitsearch.core.errors import DataError
from circuitsearch.core.files import read_json

from .images import FileImage, digest, image_problem
from .intake import (
    FaultPolicy,
    Intake,
    LoadedPages,
    take_answers,
    take_family,
    take_id,
    take_text,
)
from .records import Question

__all__ = ["LoadedPages", "load_docvqa"]


def load_docvqa(
    json_path: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    *,
    faults: FaultPolicy = "error",
    verify: bool = True,
    answered: bool = True,
) -> LoadedPages:
    """Load a file in DocVQA's format.

    Args:
        json_path: The annotation file.
        images: Folder that image paths are relative to; by default the annotation file's.
        faults: "error" refuses a file with a bad row, "skip" leaves bad rows out and lists them.
        verify: Whether to read every image once and check that it decodes. Without it a broken
            image shows only when its page is drawn; a missing one is found all the same.
        answered: Whether every row must have answers. Without, questions may have none, as those of
            the test split do: they can be answered, but neither trained on nor scored.

    Returns:
        One page per image, its id the image path, with all its questions.

    Raises:
        DataError: If the file is not in this format, has no answers (test split), or has bad rows
            that are not to be skipped; every bad row is named by its index and question id.
        ConfigError: If `faults` is another word.
    """
    path = Path(json_path)
    intake = Intake(str(path), faults)
    rows = _rows(path, answered=answered)
    folder = _ImageFolder(path.parent if images is None else Path(images), verify=verify)
    for index, row in enumerate(rows):
        _take_row(index, row, folder, intake, answered=answered)
    return intake.finish()


def _rows(path: Path, *, answered: bool) -> list[Any]:
    """Return the records of a file whose top level is right and that has answers, if it must."""
    content = read_json(path)
    form = "DocVQA's format is an object with the list of records under 'data'"
    if not isinstance(content, dict):
        raise DataError(f"{str(path)!r}: the top level is a {type(content).__name__}; {form}")
    rows = content.get("data")
    if not isinstance(rows, list):
        found = ", ".join(map(repr, content)) or "none"
        state = f"a {type(rows).__name__}" if "data" in content else "missing"
        raise DataError(f"{str(path)!r}: 'data' is {state} (keys found: {found}); {form}")
    if not rows:
        raise DataError(f"{str(path)!r}: 'data' is an empty list: give a file with questions")
    if not answered:
        return rows
    records = [row for row in rows if isinstance(row, dict)]
    unanswered = not any(row.get("answers") for row in records)
    keyless = not any("answers" in row for row in records)
    if records and unanswered and (keyless or _is_test(content) or all(map(_is_test, records))):
        raise DataError(
            f"{str(path)!r}: none of its {len(rows)} rows, from row 0 on, has 'answers'. Those of "
            "DocVQA's test split are not published: give the train or val file instead"
        )
    return rows


def _is_test(record: Mapping[str, Any]) -> bool:
    named = record.get("dataset_split", record.get("data_split"))
    return isinstance(named, str) and named.strip().lower() == "test"


def _take_row(
    index: int, row: Any, folder: _ImageFolder, intake: Intake, *, answered: bool
) -> None:
    if not isinstance(row, dict):
        problem = f"it is a {type(row).__name__}: give an object with 'questionId', 'question' ..."
        intake.reject(index, "", [problem])
        return
    problems: list[str] = []
    identity = take_id(row, "questionId", problems)
    text = take_text(row, "question", problems)
    answers: tuple[str, ...] = ()
    if answered or row.get("answers"):
        answers = take_answers(row, "answers", problems)
    family = take_family(row, "question_types", problems)
    document = take_id(row, "docId", problems)
    if row.get("ucsf_document_id") is not None:
        document = take_id(row, "ucsf_document_id", problems)
    image = take_text(row, "image", problems)
    found = folder.find(image) if image else ""
    if isinstance(found, str):
        problems += [found] if found else []
    if identity:
        problems += intake.claim(identity, index)
    page = str(PurePosixPath(image))
    if image and document and isinstance(found, FileImage):
        problems += intake.place(page, document, index)
    if problems or isinstance(found, str):
        intake.reject(index, f"questionId {identity or row.get('questionId')!r}", problems)
    else:
        intake.accept(index, page, found, Question(identity, text, answers, family))


class _ImageFolder:
    """Finds page images below one folder and remembers what it found."""

    def __init__(self, root: Path, *, verify: bool) -> None:
        if not root.is_dir():
            raise DataError(
                f"Image folder {str(root)!r} does not exist: pass `images=` the folder "
                "that the image paths are relative to"
            )
        self._root = root.absolute()
        self._verify = verify
        self._found: dict[str, FileImage | str] = {}

    def find(self, image: str) -> FileImage | str:
        """Return the image file, or what is wrong with it."""
        if image not in self._found:
            self._found[image] = self._escape(image) or self._open(image)
        return self._found[image]

    def _escape(self, image: str) -> str:
        """Refuse a path that could leave the folder; the file is written by others."""
        windows = PureWindowsPath(image)
        if image.startswith("/") or windows.drive or windows.root:
            fault = "is absolute"
        elif ".." in windows.parts:
            fault = "leads out of the folder by '..'"
        elif "\\" in image or not image.isprintable():
            fault = "has a backslash or a control character"
        else:
            return ""
        return (
            f"'image' {image!r} {fault}: give a path below {str(self._root)!r}, parts joined by '/'"
        )

    def _open(self, image: str) -> FileImage | str:
        path = self._root / image
        if not os.path.isfile(path):  # unlike Path.is_file, False also for an overlong name
            return (
                f"'image' {image!r} is no file below {str(self._root)!r}: add it or mend the path"
            )
        if not self._verify:
            return FileImage(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            return f"'image' {image!r} cannot be read ({error.strerror}): allow reading it"
        problem = image_problem(data)
        if problem is not None:
            return f"'image' {image!r} cannot be decoded ({problem}): replace the file"
        return FileImage(path, digest(data))
