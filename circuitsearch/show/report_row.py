"""The records of a result table: one line, and what finding its student took."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from circuitsearch.core.cost import Accounting, Scope
from circuitsearch.core.difference import Difference
from circuitsearch.core.errors import DataError, integer_problems, raise_together
from circuitsearch.core.files import record_fields

__all__ = ["ResultRow", "SearchCost"]


@dataclass(frozen=True)
class SearchCost:
    """What it took to find a student.

    Attributes:
        trainings: pairs (number of trainings, optimiser steps of each, as long as a student's).
        passes: forward and backward runs of a decoder on one question, spent on scoring and on
            evaluating plans.
    """

    trainings: tuple[tuple[int, int], ...] = ()
    passes: int = 0

    def __post_init__(self) -> None:
        """Bring JSON's lists into tuples; refuse negative counts, all together."""
        pairs = tuple((amount, steps) for amount, steps in self.trainings)
        object.__setattr__(self, "trainings", pairs)
        problems = integer_problems("passes", self.passes)
        for amount, steps in pairs:
            problems += integer_problems("trainings", amount) + integer_problems("steps", steps)
        raise_together(problems, DataError, "Search cost")

    @property
    def steps(self) -> int:
        """Optimiser steps of all trainings together."""
        return sum(amount * steps for amount, steps in self.trainings)

    def __str__(self) -> str:
        """Return e.g. "64 x 300 steps + 12,288 passes"; "0" when nothing was spent."""
        parts = [f"{amount:,} x {steps:,} steps" for amount, steps in self.trainings if amount]
        if self.passes:
            parts.append(f"{self.passes:,} passes")
        return " + ".join(parts) or "0"


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One line of a result table.

    Attributes:
        name: what the row is called: `teacher`, `T1`, `best`, ...
        rank: place among the students of the table by quality, then loss; None for the teacher.
        plan: canonical text of the plan.
        glyphs: the plan as a picture, see `plan_glyphs`.
        phase: phase of the measurements.
        source: who proposed the plan; several names are joined by commas.
        quality: mean ANLS in [0, 1] over the seeds; None when no answers were generated.
        quality_low: lower end of the 95 % interval; over several seeds, the mean of their ends.
        quality_high: upper end of the same interval.
        quality_sd: sample standard deviation over seeds; None for a single seed.
        exact: share of exactly right answers, mean over seeds.
        exact_sd: its standard deviation over seeds.
        loss: mean answer loss in nats, mean over seeds.
        loss_sd: its standard deviation over seeds.
        seeds: the training seeds, ascending.
        examples: number of examples behind each measurement.
        steps: optimiser steps of each training.
        accounting: who counts parameters and MACs: `paper` or `cached`.
        scope: what they are counted for.
        parameters: parameters of the student.
        parameters_share: parameters as a share of the teacher's.
        macs: multiply-adds of the student.
        macs_share: multiply-adds as a share of the teacher's.
        macs_in: multiply-adds of the same scope by accounting, `accounting` included; empty in
            results of versions that kept one accounting alone.
        search_cost: what finding it took; None when unknown.
        difference: this row's ANLS minus that of another row, paired by question; None where that
            was not computed, and in the other row itself.
        difference_to: name of that other row.
        notes: what a reader must know about the row.
    """

    name: str
    rank: int | None
    plan: str
    glyphs: str
    phase: str
    source: str
    quality: float | None = None
    quality_low: float | None = None
    quality_high: float | None = None
    quality_sd: float | None = None
    exact: float | None = None
    exact_sd: float | None = None
    loss: float
    loss_sd: float | None = None
    seeds: tuple[int, ...]
    examples: int
    steps: int
    accounting: Accounting
    scope: Scope
    parameters: int
    parameters_share: float
    macs: int
    macs_share: float
    macs_in: Mapping[str, int] = field(default_factory=dict)
    search_cost: SearchCost | None = None
    difference: Difference | None = None
    difference_to: str | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the row as a JSON object; `from_json` reads it back equal."""
        return {**asdict(self), "seeds": list(self.seeds), "notes": list(self.notes)}

    @classmethod
    def from_json(cls, data: Any) -> ResultRow:
        """Read what `to_json` wrote.

        Raises:
            DataError: a field is missing or unknown.
        """
        values = record_fields(cls, data)
        values["seeds"] = tuple(values["seeds"])
        values["notes"] = tuple(values.get("notes", ()))
        if values.get("search_cost") is not None:
            values["search_cost"] = SearchCost(**record_fields(SearchCost, values["search_cost"]))
        if values.get("difference") is not None:
            values["difference"] = Difference.from_json(values["difference"])
        return cls(**values)
