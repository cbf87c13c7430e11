"""Rows of a result table: what measurements say about named students, side by side.

A row is one student at one phase, measured with one seed or with several. Quality and cost stand
together, and so does what it took to *find* the student, in numbers that a rerun reproduces:
training steps and forward passes, never seconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.cost import ACCOUNTINGS, Accounting, Cost, Scope, ScopeCost
from circuitsearch.core.difference import Difference
from circuitsearch.core.errors import CircuitSearchError, DataError, raise_together
from circuitsearch.core.measurement import Measurement
from circuitsearch.core.plan import Plan
from circuitsearch.show.report_row import ResultRow, SearchCost

__all__ = [
    "ResultRow",
    "SearchCost",
    "by_plan",
    "plan_glyphs",
    "recounted",
    "result_rows",
    "trial_rows",
]


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

    whole = costs[teachers[0]]
    layers = _layers(groups[teachers[0]][0].plan)
    ranks = _ranks({name: group for name, group in groups.items() if name != teachers[0]}, costs)
    return tuple(
        replace(
            _row(name, group, accounting, scope, whole, layers),
            rank=ranks.get(name),
            search_cost=(search or {}).get(name),
            difference=(differences or {}).get(name),
            difference_to=difference_to if name in (differences or {}) else None,
            notes=tuple((notes or {}).get(name, ())),
        )
        for name, group in groups.items()
    )


def trial_rows(measurements: Iterable[Measurement], teacher: ResultRow) -> tuple[ResultRow, ...]:
    """Turn a study's measurements into rows without rank, in the teacher's accounting and scope.

    Args:
        measurements: in the order of their trials; a plan's phases are rows of their own.
        teacher: the teacher's row of the final comparison; shares refer to it.

    Raises:
        DataError: a measurement lacks the cost that the teacher's row has.
    """
    whole = ScopeCost(teacher.parameters, teacher.macs)
    layers = _layers(teacher.plan)
    try:
        return tuple(
            _row(name, group, teacher.accounting, teacher.scope, whole, layers)
            for name, group in by_plan(measurements).items()
            if group[0].phase != "teacher"
        )
    except (CircuitSearchError, AttributeError) as error:
        raise DataError(f"Trials of a search: {error}") from error


def recounted(row: ResultRow, teacher: ResultRow, accounting: Accounting) -> ResultRow | None:
    """Return a row with its MACs under another accounting; None when it does not know them.

    Args:
        row: the row.
        teacher: the teacher's row, of which MACs are a share.
        accounting: the accounting. Parameters are the same under both.
    """
    if accounting not in row.macs_in or accounting not in teacher.macs_in:
        return None
    macs = row.macs_in[accounting]
    share = macs / max(teacher.macs_in[accounting], 1)
    return replace(row, accounting=accounting, macs=macs, macs_share=share)


def _row(
    name: str,
    group: Sequence[Measurement],
    accounting: Accounting,
    scope: Scope,
    whole: ScopeCost,
    layers: int,
) -> ResultRow:
    """Return the row of one plan, without what only a comparison knows."""
    plan, spent = Plan.parse(group[0].plan), _spent(group[0], accounting, scope)
    return ResultRow(
        name=name,
        rank=None,
        plan=str(plan),
        glyphs=plan_glyphs(plan, layers),
        accounting=accounting,
        scope=scope,
        parameters=spent.parameters,
        parameters_share=spent.parameters / max(whole.parameters, 1),
        macs=spent.macs,
        macs_share=spent.macs / max(whole.macs, 1),
        macs_in={one: _spent(group[0], one, scope).macs for one in _counted(group[0], scope)},
        **_summary(group),
    )


def _layers(teacher: str) -> int:
    """Return the number of layers of a teacher by its plan, which keeps everything."""
    return 1 + max((one.layer for one in Plan.parse(teacher).sublayers), default=-1)


def _counted(one: Measurement, scope: Scope) -> list[Accounting]:
    """Return the accountings under which a measurement knows the cost of a scope."""
    return [
        name
        for name in ACCOUNTINGS
        if name in one.cost and scope in Cost.from_json(one.cost[name]).scopes
    ]


def _group_problems(name: str, group: Sequence[Measurement]) -> list[str]:
    """Describe why measurements do not belong into one row."""
    if not group:
        return [f"{name}: there is no measurement"]
    problems = []
    for entry in ("plan_hash", "phase", "examples", "steps"):
        values = sorted({str(getattr(one, entry)) for one in group})
        if len(values) > 1:
            problems.append(f"{name}: measurements differ in {entry}: {', '.join(values)}")
    problems += [
        f"{name}: {entry} is known for some seeds only"
        for entry in ("quality", "exact")
        if len({getattr(one, entry) is None for one in group}) > 1
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
    for name in ("quality", "exact", "loss"):
        values[name], values[f"{name}_sd"] = _mean_sd([getattr(one, name) for one in group])
    for name in ("quality_low", "quality_high"):
        values[name], _ = _mean_sd([getattr(one, name) for one in group])
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
