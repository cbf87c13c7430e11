"""What the loaders of question files share: row checks and the list of faults.

A data set of forty thousand rows has faults of a few kinds in a few rows. A loader therefore
checks every row before it complains, and says for each bad row where it is and what to change
(`Intake`). With `faults="error"` one `DataError` lists them; with `faults="skip"` the good rows
are returned together with a line for every row that was left out. Nothing is dropped silently.

Ids are text: DocVQA's own files hold whole numbers, its Hugging Face copies the same numbers as
text, and both must name the same question.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeGuard, get_args

from circuitsearch.core.errors import (
    ConfigError,
    DataError,
    choice_problem,
    nearest,
)

from .records import Page, PageSource, Question

__all__ = [
    "FaultPolicy",
    "Intake",
    "LoadedPages",
    "take_answers",
    "take_family",
    "take_id",
    "take_text",
]

FaultPolicy = Literal["error", "skip"]

_SHOWN = 20  # faults listed in one message; the rest is counted

# Keys with a meaning of their own: they are never a misspelling of another.
_KNOWN = {"questionId", "question", "question_types", "image", "docId", "answers", "data_split"}


@dataclass(frozen=True)
class LoadedPages:
    """What a loader returns.

    Attributes:
        pages: The pages in the order of their first question.
        skipped: One line per row that was left out; empty unless `faults="skip"`.
    """

    pages: list[Page]
    skipped: tuple[str, ...]


@dataclass
class _Draft:
    """A page whose questions are still being read."""

    document: str
    row: int
    source: PageSource | None = None
    questions: list[Question] = field(default_factory=list)


class Intake:
    """Gathers the questions of one source into pages, and its faults into one report."""

    def __init__(self, name: str, faults: FaultPolicy) -> None:
        """Start with nothing read.

        Args:
            name: What is being read, as the user knows it (a path or a data set's name).
            faults: "error" to refuse the source when a row is bad, "skip" to leave bad rows out.

        Raises:
            ConfigError: If `faults` is another word.
        """
        allowed = get_args(FaultPolicy)
        if faults not in allowed:
            raise ConfigError(choice_problem("faults", str(faults), allowed))
        self._name = name
        self._faults = faults
        self._asked: dict[str, int] = {}
        self._drafts: dict[str, _Draft] = {}
        self._lines: list[str] = []
        self._rows: set[int] = set()
        self._bad: set[int] = set()

    def claim(self, identity: str, row: int) -> list[str]:
        """Register a question's id; return a problem when an earlier row has it."""
        first = self._asked.setdefault(identity, row)
        if first == row:
            return []
        return [f"id {identity!r} is already taken by row {first}: give every question its own id"]

    def place(self, page: str, document: str, row: int) -> list[str]:
        """Register a page's document; return a problem when an earlier row names another."""
        draft = self._drafts.setdefault(page, _Draft(document, row))
        if draft.document == document:
            return []
        return [
            f"page {page!r} belongs to document {document!r} here and to {draft.document!r} in row "
            f"{draft.row}: give all questions of one page the same document"
        ]

    def accept(self, row: int, page: str, source: PageSource, question: Question) -> None:
        """Add a question without fault to a page that has been placed."""
        draft = self._drafts[page]
        draft.source = draft.source or source
        draft.questions.append(question)
        self._rows.add(row)

    def reject(self, row: int, label: str, problems: list[str]) -> None:
        """Note the problems of one row; `label` says which question it holds."""
        where = f"{Path(self._name).name} row {row}" + (f" ({label})" if label else "")
        self._lines.append(f"{where}: {'; '.join(problems)}")
        self._rows.add(row)
        self._bad.add(row)

    def finish(self) -> LoadedPages:
        """Return the pages.

        Raises:
            DataError: If rows are bad and `faults` is "error", or if nothing is left.
        """
        pages = [
            Page(page, draft.document, tuple(draft.questions), draft.source)
            for page, draft in self._drafts.items()
            if draft.source is not None
        ]
        if self._lines and (self._faults == "error" or not pages):
            self._refuse(usable=bool(pages))
        if not pages:
            raise DataError(f"{self._name!r} holds no rows: give a source with questions")
        return LoadedPages(pages, tuple(self._lines))

    def _refuse(self, *, usable: bool) -> None:
        remedy = (
            "Mend them, or set faults to 'skip' to leave them out."
            if usable
            else "None is left to use: mend the source."
        )
        lines = self._lines[:_SHOWN]
        if len(self._lines) > _SHOWN:
            lines.append(f"and {len(self._lines) - _SHOWN} more")
        listed = "\n".join(f"  - {line}" for line in lines)
        raise DataError(
            f"{self._name!r}: {len(self._bad)} of {len(self._rows)} rows (counted from 0) are bad. "
            f"{remedy}\n{listed}"
        )


def take_id(row: Mapping[str, Any], key: str, problems: list[str]) -> str:
    """Return an id as text (a whole number or text); "" and a problem when it is neither."""
    value = _take(row, key, problems)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if _is_text(value):
        text = value.strip()
        # "00417" and 417 are one id: the copies of DocVQA disagree on the type only
        return (text.lstrip("0") or "0") if text.isascii() and text.isdigit() else text
    if value is not None:
        problems.append(
            f"{key!r} is {_shown(value)}: give a whole number or a text that is not blank"
        )
    return ""


def take_text(row: Mapping[str, Any], key: str, problems: list[str]) -> str:
    """Return a text unchanged; "" and a problem when it is blank or no text."""
    value = _take(row, key, problems)
    if _is_text(value):
        return value
    if value is not None:
        problems.append(f"{key!r} is {_shown(value)}: give a text that is not blank")
    return ""


def take_answers(row: Mapping[str, Any], key: str, problems: list[str]) -> tuple[str, ...]:
    """Return the accepted answers, one at least; () and a problem otherwise."""
    value = _take(row, key, problems)
    if value is None:
        return ()
    if not isinstance(value, list | tuple):
        problems.append(f"{key!r} is {_shown(value)}: give a list of texts")
        return ()
    if not value:
        problems.append(f"{key!r} is empty: give at least one accepted answer or remove the row")
        return ()
    bad = [i for i, answer in enumerate(value) if not _is_text(answer)]
    problems += [
        f"{key}[{i}] is {_shown(value[i])}: give a text that is not blank or remove it" for i in bad
    ]
    return () if bad else tuple(value)


def take_family(row: Mapping[str, Any], key: str, problems: list[str]) -> str:
    """Return the question's types, sorted and joined by "+"; "" when the row names none."""
    value = row.get(key)
    if value is None:
        return ""
    types = [value] if isinstance(value, str) else value
    if not isinstance(types, list | tuple) or not all(
        isinstance(kind, str) and (_is_text(kind) or not kind.strip()) for kind in types
    ):
        problems.append(f"{key!r} is {_shown(value)}: give a list of texts or leave the key out")
        return ""
    return "+".join(sorted({kind.strip() for kind in types if kind.strip()}))


def _is_text(value: object) -> TypeGuard[str]:
    """Say whether a value is a text that is not blank and that any file or tokenizer can take.

    JSON can spell half of a surrogate pair by an escape; UTF-8 has no form for it.
    """
    if not isinstance(value, str) or not value.strip():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _take(row: Mapping[str, Any], key: str, problems: list[str]) -> Any:
    """Return the value of a required key; None and a problem when it is missing or null."""
    if key in row and row[key] is not None:
        return row[key]
    state = "null" if key in row else "missing"
    guess = nearest(key, [str(name) for name in row if name not in _KNOWN])
    hint = f" (the row has {guess!r})" if state == "missing" and guess else ""
    problems.append(f"{key!r} is {state}{hint}: add it")
    return None


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({type(value).__name__})"
