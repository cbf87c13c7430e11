"""Errors that a user can act on: one class per kind of fault, each with the exit code of the CLI.

A message says what is wrong, where, what was got, what is allowed and what to do next. Faults of
one input are collected and raised together (`raise_together`), so that a config or a plan with
three mistakes is mended in one round and not in three; a misspelt word is answered with the
nearest allowed one (`nearest`).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence

__all__ = [
    "CircuitSearchError",
    "ConfigError",
    "DataError",
    "InfeasibleError",
    "PlanError",
    "StoppedError",
    "StorageError",
    "TrainingError",
    "choice_problem",
    "integer_problems",
    "nearest",
    "number_problems",
    "raise_together",
]


class CircuitSearchError(Exception):
    """Root of all errors raised on purpose; a failure at run time when raised itself."""

    exit_code = 1


class ConfigError(CircuitSearchError):
    """A setting, an argument or a limit is wrong."""

    exit_code = 2


class DataError(CircuitSearchError):
    """A file, a page or a record cannot be read or does not have the documented form."""

    exit_code = 2


class PlanError(CircuitSearchError):
    """A plan or a component name is malformed or does not fit the decoder's shape."""

    exit_code = 2


class InfeasibleError(CircuitSearchError):
    """No legal student fits the budget."""

    exit_code = 3


class StorageError(CircuitSearchError):
    """The study's database or a result file cannot be written or is locked."""

    exit_code = 4


class TrainingError(CircuitSearchError):
    """One trial failed (for example a loss that is not finite); the study goes on."""

    exit_code = 1


class StoppedError(CircuitSearchError):
    """The study was asked to stop before it was finished."""

    exit_code = 130


def nearest(name: str, allowed: Iterable[str]) -> str | None:
    """Return the allowed word closest to `name`, or None when nothing is close.

    A word that differs only in case always matches; otherwise the similarity of difflib must
    reach 0.6, its default.
    """
    words = list(allowed)
    for word in words:
        if word.casefold() == name.casefold():
            return word
    close = difflib.get_close_matches(name, words, n=1)
    return close[0] if close else None


def choice_problem(what: str, got: object, allowed: Sequence[str]) -> str:
    """Describe a word that is not among the allowed ones, and name the nearest of them.

    Args:
        what: what the word stands for, e.g. "scope".
        got: the word as written.
        allowed: every allowed word, in the order to show them.
    """
    guess = nearest(str(got), allowed)
    hint = f"; did you mean {guess!r}?" if guess is not None else ""
    return f"{what}: got {got!r}, allowed are {', '.join(allowed)}{hint}"


def integer_problems(what: str, got: object, least: int = 0) -> list[str]:
    """Describe a value that is no integer from `least` on; empty when it is one.

    True and False are refused: Python counts them as integers, a config writer does not.
    """
    if isinstance(got, int) and not isinstance(got, bool) and got >= least:
        return []
    return [f"{what}: got {got!r}, allowed are integers from {least}"]


def number_problems(
    what: str, got: object, low: float = -math.inf, high: float = math.inf
) -> list[str]:
    """Describe a value that is no finite number in [low, high]; empty when it is one."""
    number = isinstance(got, int | float) and not isinstance(got, bool)
    if number and math.isfinite(got) and low <= got <= high:  # type: ignore[arg-type,operator]
        return []
    bounds = "" if math.isinf(low) else f" from {low:g}"
    bounds += "" if math.isinf(high) else f" to {high:g}"
    return [f"{what}: got {got!r}, allowed are finite numbers{bounds}"]


def raise_together(problems: Sequence[str], error: type[CircuitSearchError], heading: str) -> None:
    """Raise one `error` that lists every problem; do nothing when there is none.

    Args:
        problems: one line per fault.
        error: class to raise.
        heading: what was being read, e.g. "Plan 'M0 X9'".
    """
    if not problems:
        return
    if len(problems) == 1:
        raise error(f"{heading}: {problems[0]}")
    lines = "\n".join(f"  - {problem}" for problem in problems)
    raise error(f"{heading}: {len(problems)} problems\n{lines}")
