"""What a report tells beside the files that a search leaves anyway: `report.json`.

It holds the command that redoes the search, the environment that it ran in, its settings, and a few
questions with the answers of the teacher and of the best student. Page images stand in it as PNG.
With it `report.html` can be made again, from the folder alone.

Which questions are shown is not a matter of taste: questions are grouped by who answered them
exactly right (both, the teacher alone, the student alone, neither), each group is put in an order
drawn from the questions' names, and the groups give one in turn. How many questions each group has
is told beside them.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from circuitsearch.core.answers import Answer, Answers
from circuitsearch.core.errors import (
    DataError,
    integer_problems,
    number_problems,
    raise_together,
)
from circuitsearch.core.files import plain, read_json, record_fields, seed_from, write_json

__all__ = ["GROUPS", "RECORD_FILE", "Asked", "Record", "Said", "choose", "outcomes"]

RECORD_FILE = "report.json"
"""Name of the file in a search's folder."""
GROUPS = ("both", "teacher alone", "student alone", "neither")
"""Who answered a question exactly right."""

_FORMAT = 1  # raised when the meaning of a field changes
_PNG = b"\x89PNG\r\n\x1a\n"
_MOST = 2**20  # bytes of one image: a report is there to be mailed around


@dataclass(frozen=True)
class Said:
    """One answer.

    Attributes:
        answer: what was said.
        anls: its ANLS in [0, 1].
        exact: whether it is exactly right.
    """

    answer: str
    anls: float
    exact: bool

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        answer: Any = self.answer
        exact: Any = self.exact
        problems = number_problems("anls", self.anls, 0.0, 1.0)
        problems += [] if isinstance(answer, str) else [f"answer: got {answer!r}, allowed is text"]
        problems += [] if isinstance(exact, bool) else [f"exact: got {exact!r}, allowed is a truth"]
        raise_together(problems, DataError, "An answer of the report")

    @classmethod
    def of(cls, answer: Answer) -> Said:
        """Return what of a kept answer the report shows."""
        return cls(answer.answer, answer.anls, answer.exact)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question with two answers.

    Attributes:
        question: the question as it was asked.
        page: name of the page.
        golds: the accepted answers.
        teacher: the teacher's answer.
        student: the best student's answer.
        image: the page as PNG; None where it is not shown.
    """

    question: str
    page: str
    golds: tuple[str, ...]
    teacher: Said
    student: Said
    image: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse what is no text or no image, all together."""
        golds: Any = self.golds
        texts = {"question": self.question, "page": self.page}
        problems = [
            f"{name}: got {value!r}, allowed is text"
            for name, value in texts.items()
            if not isinstance(value, str)
        ]
        if not isinstance(golds, list | tuple) or not all(isinstance(one, str) for one in golds):
            problems.append(f"golds: got {golds!r}, allowed is a list of texts")
        if self.image is not None and not self.image.startswith(_PNG):
            problems.append("image: it is no PNG")
        if self.image is not None and len(self.image) > _MOST:
            problems.append(f"image: {len(self.image):,} bytes, allowed are {_MOST:,}")
        raise_together(problems, DataError, "A question of the report")
        object.__setattr__(self, "golds", tuple(golds))

    def to_json(self) -> dict[str, Any]:
        """Return the question as a JSON object; `from_json` reads it back equal."""
        image = None if self.image is None else base64.b64encode(self.image).decode("ascii")
        return {**asdict(self), "golds": list(self.golds), "image": image}

    @classmethod
    def from_json(cls, data: Any) -> Asked:
        """Read what `to_json` wrote.

        Raises:
            DataError: a field is missing or unknown, or the image cannot be decoded.
        """
        values = record_fields(cls, data)
        for name in ("teacher", "student"):
            values[name] = Said(**record_fields(Said, values[name]))
        if values.get("image") is not None:
            try:
                values["image"] = base64.b64decode(values["image"], validate=True)
            except (binascii.Error, TypeError, ValueError) as error:
                raise DataError(f"A question of the report: image: not base64 ({error})") from error
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class Record:
    """What `report.json` holds.

    Attributes:
        command: the exact command that redoes the search.
        environment: versions, machine, device and threads, by name.
        settings: the resolved configuration as JSON, without what could hold a password.
        student: what the shown student is called, e.g. `best, seed 0`.
        outcomes: number of questions per group of `GROUPS`.
        asked: the questions that are shown.
    """

    command: str
    environment: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    student: str = ""
    outcomes: Mapping[str, int] = field(default_factory=dict)
    asked: tuple[Asked, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is no text, no object or no count, all together."""
        problems = [
            f"{name}: got {value!r}, allowed is {what}"
            for name, value, kind, what in (
                ("command", self.command, str, "text"),
                ("student", self.student, str, "text"),
                ("environment", self.environment, Mapping, "a JSON object"),
                ("settings", self.settings, Mapping, "a JSON object"),
                ("outcomes", self.outcomes, Mapping, "a JSON object"),
            )
            if not isinstance(value, kind)
        ]
        raise_together(problems, DataError, "Record of a report")
        for name, number in self.outcomes.items():
            problems += integer_problems(f"outcomes: {name}", number)
        raise_together(problems, DataError, "Record of a report")

    def write(self, folder: str | os.PathLike[str]) -> Path:
        """Write `report.json` into a folder, atomically, and return its path.

        Raises:
            DataError: the settings are not plain JSON.
            StorageError: the file cannot be written.
        """
        path = Path(folder) / RECORD_FILE
        values = {**vars(self), "asked": [one.to_json() for one in self.asked], "format": _FORMAT}
        write_json(path, plain({name: _object(value) for name, value in values.items()}))
        return path

    @classmethod
    def read(cls, folder: str | os.PathLike[str]) -> Record | None:
        """Read `report.json` of a folder; None when there is none.

        Raises:
            DataError: the file is malformed.
        """
        path = Path(folder) / RECORD_FILE
        if not path.exists():
            return None
        data = read_json(path)
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise DataError(
                f"{str(path)!r} is no record of format {_FORMAT}; `circuitsearch run` writes it "
                "again"
            )
        values = record_fields(cls, {key: one for key, one in data.items() if key != "format"})
        asked = values.get("asked", [])
        if not isinstance(asked, list):
            raise DataError(f"{str(path)!r}: asked: got {asked!r}, allowed is a list")
        return cls(**{**values, "asked": tuple(Asked.from_json(one) for one in asked)})


def outcomes(teacher: Answers, student: Answers) -> dict[str, list[tuple[Answer, Answer]]]:
    """Group the questions of two runs by who answered them exactly right.

    Raises:
        DataError: the two were not asked the same questions.
    """
    said = {row.question: row for row in student.rows}
    if sorted(said) != sorted(row.question for row in teacher.rows):
        raise DataError("Answers side by side: the two models were asked different questions")
    groups: dict[str, list[tuple[Answer, Answer]]] = {name: [] for name in GROUPS}
    for row in teacher.rows:
        other = said[row.question]
        place = (0 if other.exact else 1) if row.exact else (2 if other.exact else 3)
        groups[GROUPS[place]].append((row, other))
    return groups


def choose(
    groups: Mapping[str, list[tuple[Answer, Answer]]], amount: int
) -> list[tuple[Answer, Answer]]:
    """Return the questions to show: each group in turn, in an order drawn from their names.

    A question about a page that is shown already waits until its group has no other.

    Args:
        groups: as `outcomes` returns them.
        amount: how many to return; fewer when there are fewer.
    """
    waiting = [
        sorted(groups[name], key=lambda pair: seed_from("report", pair[0].question))
        for name in GROUPS
    ]
    chosen: list[tuple[Answer, Answer]] = []
    while len(chosen) < amount and any(waiting):
        for group in waiting:
            if group and len(chosen) < amount:
                pages = {one.page for one, _ in chosen}
                fresh = (place for place, (one, _) in enumerate(group) if one.page not in pages)
                chosen.append(group.pop(next(fresh, 0)))
    return chosen


def _object(value: Any) -> Any:
    """Return a mapping as a dictionary, which is what JSON is written from."""
    return dict(value) if isinstance(value, Mapping) else value
