"""How much better one model answers than another, as a record that travels.

The two answered the same questions, so their scores are paired: what both find hard cancels in the
difference, and its interval is narrower than the two single ones suggest.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from circuitsearch.core.errors import DataError, integer_problems, number_problems, raise_together
from circuitsearch.core.files import record_fields

__all__ = ["DRAWS", "Difference"]

DRAWS = 10_000
"""Draws of the bootstrap, by default."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean score of a first model minus that of a second one, on the same questions.

    Attributes:
        first: mean score of the first model, in [0, 1].
        second: mean score of the second model, in [0, 1].
        mean: mean over questions of first minus second, in [-1, 1].
        low: lower end of its 95 % interval; None with fewer than two documents.
        high: upper end of the same interval.
        wins: share of bootstrap draws in which the first model has the higher mean; draws that tie
            count for neither. None with fewer than two documents.
        questions: number of questions.
        documents: number of documents that the questions are about.
    """

    first: float
    second: float
    mean: float
    low: float | None
    high: float | None
    wins: float | None
    questions: int
    documents: int

    def __post_init__(self) -> None:
        """Refuse impossible values, all together."""
        problems = []
        for name, least in (("first", 0.0), ("second", 0.0), ("mean", -1.0)):
            problems += number_problems(name, getattr(self, name), least, 1.0)
        for name, least in (("low", -1.0), ("high", -1.0), ("wins", 0.0)):
            value = getattr(self, name)
            problems += [] if value is None else number_problems(name, value, least, 1.0)
        for name in ("questions", "documents"):
            problems += integer_problems(name, getattr(self, name), 1)
        raise_together(problems, DataError, "Difference of two models")

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object; `from_json` reads it back equal."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any) -> Difference:
        """Read what `to_json` wrote.

        Raises:
            DataError: a field is missing or unknown, or a value is impossible.
        """
        return cls(**record_fields(cls, data))
