"""Rows of a result table: what measurements say about named students, side by side.

A row is one student at one phase, measured with one seed or with several. Quality and cost stand
together, and so does what it took to *find* the student, in numbers that a rerun reproduces:
training steps and forward passes, never seconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.cost import Accounting, Cost, Scope, ScopeCost
from circuitsearch.core.difference import Difference
from circuitsearch.core.errors import (
    CircuitSearchError,
    DataError,
    integer_problems,
    raise_together,
)
from circuitsearch.core.files import record_fields
from circuitsearch.core.measurement import Measurement
from circuitsearch.core.plan import Plan

__all__ = ["ResultRow", "SearchCost", "by_plan", "plan_glyphs", "result_rows"]


@dataclass(frozen=True)
class SearchCost:
    """What it took to find a student.

    Attributes:
        trainings: pairs (number of trainings, optimiser steps of each).
        passes: forward passes spent on scoring and on evaluating plans.
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


def by_plan(measurements: Iterable[Measurement]) -> dict[str, list[Measurement]]:
    """Group measurements of one plan and phase (several seeds), in order of first appearance.

    The names are `trial 1`, `trial 2`, ... and `teacher` for the teacher: ready for `result_rows`.
    """
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for one in measurements:
        groups.setdefault((one.plan_hash, one.phase), []).append(one)
    named: dict[str, list[Measurement]] = {}
    trial = 0
    for (_, phase), group in groups.items():
        if phase != "teacher":
            trial += 1
        named["teacher" if phase == "teacher" else f"trial {trial}"] = group
    return named


def plan_glyphs(plan: Plan, layers: int) -> str:
    """Draw a plan: one group of three per layer, `S C M` kept, lower case in part, `.` skipped.

    >>> plan_glyphs(Plan.parse("M0 C2 S3[0-8] C3"), 4)
    '..M ... .C. sC.'
    """
    groups = []
    for layer in range(layers):
        letters = []
        for kind in Kind:
            keep = plan.keep(SubLayer.at(layer, kind))
            letter = kind.value if keep is None or keep.whole else kind.value.lower()
            letters.append("." if keep is None else letter)
        groups.append("".join(letters))
    return " ".join(groups)


def result_rows(
    measurements: Mapping[str, Measurement | Sequence[Measurement]],
    *,
    accounting: Accounting = "paper",
    scope: Scope = "decoder",
    search: Mapping[str, SearchCost] | None = None,
    differences: Mapping[str, Difference] | None = None,
    difference_to: str | None = None,
    notes: Mapping[str, Sequence[str]] | None = None,
) -> tuple[ResultRow, ...]:
    """Turn named measurements into the rows of a table, in the order given.

    Args:
        measurements: what each row is made of: one measurement, or one per seed of the same plan
            and phase. Exactly one row is the teacher's (phase `teacher`); shares refer to it.
        accounting: accounting of parameters and MACs, the budget's.
        scope: scope of parameters and MACs.
        search: what finding each row took, by row name.
        differences: each row's ANLS minus that of the row `difference_to`, by row name.
        difference_to: name of the row that the others are compared with.
        notes: what a reader must know, by row name.

    Raises:
        DataError: no teacher or two, an empty or mixed group, a repeated seed, a cost that is
            absent or malformed; all faults together.
    """
    groups = {
        name: [one] if isinstance(one, Measurement) else list(one)
        for name, one in measurements.items()
    }
    problems = [fault for name, group in groups.items() for fault in _group_problems(name, group)]
    teachers = [n for n, group in groups.items() if group and group[0].phase == "teacher"]
    if len(teachers) != 1:
        problems.append(f"{len(teachers)} rows have phase 'teacher', exactly one must")
    problems += [
        f"{what} of {name!r}: no such row"
        for what, given in (("search cost", search), ("difference", differences), ("note", notes))
        for name in given or ()
        if name not in groups
    ]
    costs = {}
    for name, group in groups.items():
        try:
            costs[name] = _spent(group[0], accounting, scope) if group else ScopeCost(0, 0)
        except (CircuitSearchError, AttributeError) as error:
            problems.append(f"{name}: {error}")
    raise_together(problems, DataError, "Result table")

    teacher = groups[teachers[0]][0]
    layers = 1 + max((one.layer for one in Plan.parse(teacher.plan).sublayers), default=-1)
    whole = costs[teachers[0]]
    ranks = _ranks({name: group for name, group in groups.items() if name != teachers[0]}, costs)
    return tuple(
        ResultRow(
            name=name,
            rank=ranks.get(name),
            plan=str(Plan.parse(group[0].plan)),
            glyphs=plan_glyphs(Plan.parse(group[0].plan), layers),
            accounting=accounting,
            scope=scope,
            parameters=costs[name].parameters,
            parameters_share=costs[name].parameters / max(whole.parameters, 1),
            macs=costs[name].macs,
            macs_share=costs[name].macs / max(whole.macs, 1),
            search_cost=(search or {}).get(name),
            difference=(differences or {}).get(name),
            difference_to=difference_to if name in (differences or {}) else None,
            notes=tuple((notes or {}).get(name, ())),
            **_summary(group),
        )
        for name, group in groups.items()
    )


def _group_problems(name: str, group: Sequence[Measurement]) -> list[str]:
    """Describe why measurements do not belong into one row."""
    if not group:
        return [f"{name}: there is no measurement"]
    problems = []
    for field in ("plan_hash", "phase", "examples", "steps"):
        values = sorted({str(getattr(one, field)) for one in group})
        if len(values) > 1:
            problems.append(f"{name}: measurements differ in {field}: {', '.join(values)}")
    problems += [
        f"{name}: {field} is known for some seeds only"
        for field in ("quality", "exact")
        if len({getattr(one, field) is None for one in group}) > 1
    ]
    seeds = [one.seed for one in group]
    repeated = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if repeated:
        problems.append(f"{name}: seed {repeated[0]} was measured more than once")
    return problems


def _spent(one: Measurement, accounting: Accounting, scope: Scope) -> ScopeCost:
    """Return the cost that a measurement records under an accounting and a scope."""
    if accounting not in one.cost:
        raise DataError(f"the measurement has no cost under the accounting {accounting!r}")
    spent = Cost.from_json(one.cost[accounting])
    if scope not in spent.scopes:
        raise DataError(f"the cost has no scope {scope!r}")
    return spent.scopes[scope]


def _summary(group: Sequence[Measurement]) -> dict[str, Any]:
    """Return mean and spread over the seeds of one row."""
    values: dict[str, Any] = {
        "phase": group[0].phase,
        "examples": group[0].examples,
        "steps": group[0].steps,
        "seeds": tuple(sorted(one.seed for one in group)),
        "source": ", ".join(dict.fromkeys(one.source for one in group)),
    }
    for field in ("quality", "exact", "loss"):
        values[field], values[f"{field}_sd"] = _mean_sd([getattr(one, field) for one in group])
    for field in ("quality_low", "quality_high"):
        values[field], _ = _mean_sd([getattr(one, field) for one in group])
    return values


def _mean_sd(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Return mean and sample standard deviation; None where a value or a second one is missing."""
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return None, None
    # fmean and stdev are exact to rounding, so the order of the seeds does not matter.
    return statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None


def _ranks(
    groups: Mapping[str, Sequence[Measurement]], costs: Mapping[str, ScopeCost]
) -> dict[str, int]:
    """Rank students: best quality first, unknown last; then lower loss, fewer MACs, name."""

    def key(name: str) -> tuple[float, float, int, str]:
        summary = _summary(groups[name])
        quality = -1.0 if summary["quality"] is None else summary["quality"]
        return (-quality, summary["loss"], costs[name].macs, name)

    return {name: place for place, name in enumerate(sorted(groups, key=key), start=1)}
