r"""Answers of one model to one split, question by question, and the file that holds them.

A *predictions file* is JSON lines in ASCII: a header that says who answered what and how, then one
line per question. Questions, gold answers and answers are foreign text; they stand in JSON strings
with every unusual character escaped, so that nothing in them can end a line. Several runs (the
same plan trained with several seeds) may follow each other in one file, each under its header:
`cat seed0.jsonl seed1.jsonl > both.jsonl` makes such a file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from circuitsearch.core.errors import (
    DataError,
    choice_problem,
    integer_problems,
    number_problems,
    raise_together,
)
from circuitsearch.core.files import record_fields, write_text

__all__ = [
    "ANLS_RULES",
    "AnlsRule",
    "Answer",
    "Answers",
    "read_answers",
    "read_header",
    "write_answers",
]

AnlsRule = Literal["rrc", "strict"]
ANLS_RULES: tuple[AnlsRule, ...] = get_args(AnlsRule)
"""What a similarity of exactly one half scores: itself (the competition's script), or 0 (the
paper)."""

_FORMAT = "circuitsearch predictions 1"
_SHOWN = 20  # faults listed in one message; the rest is counted
_TEXTS = ("question", "page", "document", "family", "answer")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One question as a model answered it.

    Attributes:
        question: id of the question, unique within the split.
        page: id of the page asked about.
        document: the page's document; intervals draw documents.
        family: task family, "" when the source names none.
        answer: what the model said.
        golds: the accepted answers.
        anls: ANLS of the answer in [0, 1], the best over the gold answers.
        exact: whether it equals a gold answer, case and white space aside.
        loss: cross-entropy of the first gold answer, in nats per token.
        tokens: tokens of that answer, closing tags included.
    """

    question: str
    page: str
    document: str
    family: str
    answer: str
    golds: tuple[str, ...]
    anls: float
    exact: bool
    loss: float
    tokens: int

    def __post_init__(self) -> None:
        """Bring JSON's list into a tuple; refuse impossible values, all together."""
        problems = [
            f"{name}: got {getattr(self, name)!r}, allowed is a text"
            for name in _TEXTS
            if not isinstance(getattr(self, name), str)
        ]
        golds: Any = self.golds
        exact: Any = self.exact
        if isinstance(golds, list | tuple) and golds and all(isinstance(g, str) for g in golds):
            object.__setattr__(self, "golds", tuple(golds))
        else:
            problems.append(f"golds: got {golds!r}, allowed is a list of one text or more")
        if not isinstance(exact, bool):
            problems.append(f"exact: got {exact!r}, allowed are true and false")
        problems += number_problems("anls", self.anls, 0.0, 1.0)
        problems += number_problems("loss", self.loss)
        problems += integer_problems("tokens", self.tokens, 1)
        raise_together(problems, DataError, f"Answer to question {self.question!r}")


@dataclass(frozen=True, kw_only=True)
class Answers:
    """All answers of one model to the questions of one split.

    Attributes:
        teacher: fingerprint of the teacher.
        pages: key of the pages' features: content of the pages, preprocessing, teacher.
        plan: canonical text of the model's plan.
        plan_hash: hash of that text.
        weights: hash of the decoder's weights.
        split: `select` or `final`.
        seed: seed of the training.
        steps: steps of the training; 0 for the teacher.
        decoding: how the answers were generated, e.g. `{"method": "greedy", "max_length": 128}`.
        rule: which reading of ANLS the rows carry.
        rows: one per question.
    """

    teacher: str
    pages: str
    plan: str
    plan_hash: str
    weights: str
    split: str
    seed: int
    steps: int
    decoding: Mapping[str, Any]
    rule: AnlsRule = "rrc"
    rows: tuple[Answer, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        """Refuse impossible values and questions that occur twice, all together."""
        problems = [
            f"{name}: got {getattr(self, name)!r}, allowed is a text"
            for name in ("teacher", "pages", "plan", "plan_hash", "weights", "split")
            if not isinstance(getattr(self, name), str)
        ]
        problems += integer_problems("seed", self.seed) + integer_problems("steps", self.steps)
        decoding: Any = self.decoding
        if not isinstance(decoding, Mapping):
            problems.append(f"decoding: got {decoding!r}, allowed is a JSON object")
        if self.rule not in ANLS_RULES:
            problems.append(choice_problem("rule", self.rule, ANLS_RULES))
        problems += _repeated(row.question for row in self.rows)
        raise_together(problems[:_SHOWN], DataError, f"Answers of plan {self.plan!r}")

    def header(self) -> dict[str, Any]:
        """Return everything but the rows, as JSON."""
        named = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "rows"}
        return {**named, "decoding": dict(self.decoding)}


def _repeated(questions: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    problems = []
    for name in questions:
        if name in seen:
            problems.append(f"question {name!r} is answered twice; give one line per question")
        seen.add(name)
    return problems


def write_answers(path: str | os.PathLike[str], runs: Answers | Sequence[Answers]) -> None:
    """Write a predictions file, atomically.

    Raises:
        DataError: a header holds something that is not plain JSON.
        StorageError: the file cannot be written.
    """
    lines = []
    for run in [runs] if isinstance(runs, Answers) else runs:
        lines.append(_line({"format": _FORMAT, **run.header()}))
        lines += [_line(asdict(row)) for row in run.rows]
    write_text(path, "".join(f"{line}\n" for line in lines))


def _line(data: dict[str, Any]) -> str:
    try:
        return json.dumps(data, ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"Predictions: not plain JSON ({error})") from error


def read_answers(path: str | os.PathLike[str]) -> tuple[Answers, ...]:
    """Read a predictions file: one `Answers` per header in it.

    Raises:
        DataError: the file is missing or a line is malformed; all bad lines together.
    """
    problems: list[str] = []
    headers: list[dict[str, Any]] = []
    rows: list[list[Answer]] = []
    for number, data in _lines(path, problems):
        try:
            if "format" in data:
                rows.append([])
                headers.append(_header(data))
            elif not rows:
                raise DataError("the header is missing; the first line must have 'format'")
            else:
                rows[-1].append(Answer(**record_fields(Answer, data)))
        except DataError as error:
            problems.append(f"line {number}: {error}")
    runs = []
    if not problems:
        for header, own in zip(headers, rows, strict=True):
            try:
                runs.append(Answers(**header, rows=tuple(own)))
            except DataError as error:
                problems.append(str(error))
    if not headers and not problems:
        problems.append("it is empty; give a file that `circuitsearch evaluate` wrote")
    if len(problems) > _SHOWN:
        problems[_SHOWN:] = [f"and {len(problems) - _SHOWN} more"]
    raise_together(problems, DataError, f"Predictions {os.fspath(path)!r}")
    return tuple(runs)


def read_header(path: str | os.PathLike[str]) -> Answers:
    """Read the first header of a predictions file; the rows are left out.

    Raises:
        DataError: the file is missing or does not begin with a header.
    """
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"Predictions {os.fspath(path)!r}: no header ({error})") from error
    if not isinstance(first, dict):
        raise DataError(f"Predictions {os.fspath(path)!r}: the first line is no header")
    return Answers(**_header(first))


def _header(data: dict[str, Any]) -> dict[str, Any]:
    """Return a header's fields, names checked."""
    if data.get("format") != _FORMAT:
        raise DataError(f"format: got {data.get('format')!r}, allowed is {_FORMAT!r}")
    values = record_fields(Answers, {k: v for k, v in data.items() if k != "format"})
    if "rows" in values:
        raise DataError("unknown field 'rows'; every question has a line of its own")
    Answers(**values)  # refuses impossible values
    return values


def _lines(
    path: str | os.PathLike[str], problems: list[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the JSON objects of a file with their line numbers; the rest becomes problems."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a JSON number")

    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        problems.append(f"cannot be read ({error.strerror or error})")
        return
    except UnicodeDecodeError as error:
        problems.append(f"cannot be read: it is not UTF-8 text ({error})")
        return
    # not `splitlines`: it would cut at characters that are legal inside JSON strings
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            data = json.loads(line, parse_constant=refuse)
        except (ValueError, RecursionError) as error:
            problems.append(f"line {number}: not JSON ({error})")
            continue
        if isinstance(data, dict):
            yield number, data
        else:
            problems.append(f"line {number}: a {type(data).__name__}, allowed is a JSON object")
