"""The file that the Robust Reading Competition takes (RRC challenge 17, task 1: DocVQA).

A JSON list with one object per question of the split, `{"questionId": 49153, "answer": "0.28"}`:
whole numbers and texts, every question exactly once. The server scores what it gets, so a file
with a missing question loses points in silence; `check_submission` finds that before.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from circuitsearch.core.errors import ConfigError, DataError, raise_together
from circuitsearch.core.files import read_json, write_json

__all__ = ["check_submission", "submission_ids", "write_submission"]

_SHOWN = 20  # faults listed in one message; the rest is counted
_DIGITS = 18  # of an id; the competition's have five


def write_submission(
    path: str | os.PathLike[str], answers: Mapping[str, str], questions: Sequence[str]
) -> None:
    """Write the answers to all questions of a split as a submission, atomically.

    Args:
        path: The file to write.
        answers: Question id -> answer.
        questions: The ids of the split's questions.

    Raises:
        ConfigError: If the ids are not whole numbers: then the data are not the competition's.
        DataError: If a question has no answer, an answer no question, or an answer is no text; all
            faults together, and nothing is written.
        StorageError: If the file cannot be written.
    """
    wanted = submission_ids(questions)
    entries = [
        {"questionId": wanted.get(name, name), "answer": answer} for name, answer in answers.items()
    ]
    _refuse(_problems(entries, wanted), f"Submission {os.fspath(path)!r}")
    write_json(path, sorted(entries, key=lambda entry: int(entry["questionId"])))


def check_submission(path: str | os.PathLike[str], questions: Sequence[str]) -> dict[str, str]:
    """Read a submission and check it against the questions of its split.

    Args:
        path: The file.
        questions: The ids of the split's questions.

    Returns:
        Question id (as in `questions`) -> answer.

    Raises:
        ConfigError: If the ids of the split are not whole numbers.
        DataError: If the file is no submission of this split; all faults together.
    """
    wanted = submission_ids(questions)
    entries = read_json(path)
    heading = f"Submission {os.fspath(path)!r}"
    if not isinstance(entries, list):
        raise DataError(f"{heading}: got a {type(entries).__name__}, allowed is a list of objects")
    _refuse(_problems(entries, wanted), heading)
    names = {number: name for name, number in wanted.items()}
    return {names[entry["questionId"]]: entry["answer"] for entry in entries}


def submission_ids(questions: Iterable[str]) -> dict[str, int]:
    """Return the questions' ids as whole numbers, by id.

    Raises:
        ConfigError: If an id is no whole number.
        DataError: If two ids are the same number.
    """
    names = list(questions)
    bad = [n for n in names if not (n.isascii() and n.isdigit() and len(n) <= _DIGITS)]
    if bad:
        raise ConfigError(
            f"Submission: {len(bad)} of {len(names)} question ids are no whole numbers, e.g. "
            f"{bad[0]!r}; the competition knows questions by DocVQA's numbers, so a submission "
            "needs its data (data.source: docvqa)"
        )
    numbers = {name: int(name) for name in names}
    repeated = [str(n) for n, count in Counter(map(int, names)).items() if count > 1]
    _refuse([f"question {n} occurs twice in the split" for n in repeated], "Submission")
    return numbers


def _problems(entries: Sequence[Any], wanted: Mapping[str, int]) -> list[str]:
    """Describe everything that keeps entries from being a submission of the wanted questions."""
    known = set(wanted.values())
    problems: list[str] = []
    seen: Counter[int] = Counter()
    for place, entry in enumerate(entries):
        where = f"entry {place}"
        if not isinstance(entry, dict):
            problems.append(f"{where}: got a {type(entry).__name__}, allowed is an object")
            continue
        odd = sorted(str(key) for key in entry if key not in ("questionId", "answer"))
        if odd:
            problems.append(f"{where}: unknown key {odd[0]!r}; allowed are 'questionId', 'answer'")
        identity, answer = entry.get("questionId"), entry.get("answer")
        if not isinstance(answer, str):
            problems.append(f"{where}: answer is {_shown(answer)}, allowed is a text")
        if not isinstance(identity, int) or isinstance(identity, bool):
            problems.append(f"{where}: questionId is {_shown(identity)}, allowed is a whole number")
            continue
        seen[identity] += 1
        if identity not in known:
            problems.append(f"{where}: question {identity} is not in the split")
    problems += [f"question {n} is answered {c} times" for n, c in seen.items() if c > 1]
    problems += [f"question {n} is not answered" for n in wanted.values() if n not in seen]
    return problems


def _refuse(problems: list[str], heading: str) -> None:
    if len(problems) > _SHOWN:
        problems = [*problems[:_SHOWN], f"and {len(problems) - _SHOWN} more"]
    raise_together(problems, DataError, heading)


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({type(value).__name__})"
