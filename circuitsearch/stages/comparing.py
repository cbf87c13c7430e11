"""The final comparison: every student that was named, distilled alike and asked the final pages.

    teacher                as it is
    T1, T2 ...             the best plans by loss without training (Donut-MINT's brute force)
    D1, D2 ...             the best by short distillation, among the best by loss without training
    one row per baseline   what published methods propose (`students.baselines`)
    best                   what the search found

A baseline that proposes several students has one row, and a note with the ANLS of all of them: the
paper's own choice among hand-made plans, the median of random ones. The others of such a group are
distilled with the first seed only.

A training that fails (`TrainingError`) ends no comparison: its row tells the mean of the other
seeds and says so, and a row without any training is left out, with a note at `best`. Only the
trainings of `best` itself have to succeed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from circuitsearch.core.answers import Answers
from circuitsearch.core.errors import TrainingError
from circuitsearch.core.measurement import Measurement, merit
from circuitsearch.core.plan import Plan
from circuitsearch.search.study import Study
from circuitsearch.show.rows import ResultRow, SearchCost, result_rows
from circuitsearch.students.baselines import BASELINES, Proposal
from circuitsearch.teacher.comparison import OVERALL, compare_answers
from circuitsearch.workspace import Workspace

from .ranking import Ranking
from .searching import best_of
from .speeds import admission
from .training import Build, StudentTrainer

__all__ = ["compare"]

BEST = "best"


@dataclass
class _Entry:
    """One row before it is measured.

    Attributes:
        plan: the student.
        source: who proposed it.
        cost: what finding it took.
        build: how it is made, where its plan does not say everything.
        notes: what a reader must know.
    """

    plan: Plan
    source: str
    cost: SearchCost
    build: Build | None = None
    notes: list[str] = field(default_factory=list)


def compare(
    work: Workspace,
    trainer: StudentTrainer,
    *,
    untrained: Ranking,
    baselines: Sequence[tuple[str, Proposal]],
    study: Study,
    chosen: Study,
    passes: int,
) -> tuple[ResultRow, ...]:
    """Measure teacher, baselines and the search's best on the final pages, all seeds.

    Args:
        work: the search.
        trainer: the shared trainer.
        untrained: plans by loss without training.
        baselines: what published methods propose, by the method's name.
        study: the search's study.
        chosen: the phase whose best plan is handed over; the study itself without promotion.
        passes: spent by the search before its first training.

    Returns:
        The teacher's row, then the students', best first.
    """
    lost: list[str] = []  # rows without a student
    entries = _exhaustive(work, trainer, untrained, study, lost)
    for name, (method, group) in _groups(baselines).items():
        with _noting(name, lost):
            drawn = BASELINES[method].kind == "draws"
            entries[name] = _baseline(work, trainer, group, drawn=drawn)
    runs = {"teacher": [trainer.answered_teacher()]}
    for name, entry in entries.items():
        with _noting(name, lost):
            runs[name] = _runs(work, trainer, entry)
    entries = {name: entry for name, entry in entries.items() if name in runs}
    best = _best(work, study, chosen, passes)
    best.notes += [f"a row is left out: {one}" for one in lost]
    entries[BEST] = best
    runs[BEST] = [_run(work, trainer, best, seed) for seed in work.config.final.seeds]
    answers = {name: [said for _, said in group] for name, group in runs.items()}
    rows = result_rows(
        {name: [made for made, _ in group] for name, group in runs.items()},
        search={name: entry.cost for name, entry in entries.items()},
        differences={
            name: compare_answers(said, answers[BEST], rule=trainer.rule)[OVERALL]
            for name, said in answers.items()
            if name != BEST
        },
        difference_to=BEST,
        notes={name: entry.notes for name, entry in entries.items() if entry.notes},
    )
    return tuple(sorted(rows, key=lambda row: row.rank or 0))  # the teacher first, it has no rank


def _run(
    work: Workspace, trainer: StudentTrainer, entry: _Entry, seed: int
) -> tuple[Measurement, Answers]:
    """Distil a student with one seed and ask it the final pages."""
    steps = work.config.final_steps
    return trainer.answered(
        entry.plan,
        entry.source,
        seed=seed,
        steps=steps,
        split="final",
        phase="full",
        build=entry.build,
    )


def _runs(
    work: Workspace, trainer: StudentTrainer, entry: _Entry
) -> list[tuple[Measurement, Answers]]:
    """Distil and ask a student with every seed, and note which training failed.

    Raises:
        TrainingError: All of them did.
    """
    made, failed = [], list[str]()
    for seed in work.config.final.seeds:
        with _noting(f"seed {seed}", failed):
            made.append(_run(work, trainer, entry, seed))
    if not made:
        raise TrainingError("; ".join(failed))
    entry.notes += _without(failed)
    return made


@contextmanager
def _noting(who: str, failed: list[str]) -> Iterator[None]:
    """Let a training inside the block fail, and note whose it was and why."""
    try:
        yield
    except TrainingError as error:
        failed.append(f"{who}: {error}")


def _without(failed: Sequence[str]) -> list[str]:
    return [f"a training failed and does not count: {one}" for one in failed]


def _exhaustive(
    work: Workspace, trainer: StudentTrainer, untrained: Ranking, study: Study, lost: list[str]
) -> dict[str, _Entry]:
    """Return the best plans of the exhaustive ranking, and those of short distillation.

    Where none of the latter could be trained, `lost` is told why.
    """
    settings, steps = work.config.exhaustive, work.config.distill.steps
    first = _within(work, trainer, study, untrained, max(settings.top, settings.short))
    passes = len(untrained) * trainer.questions("select")
    found = {
        f"T{place + 1}": _Entry(plan, "exhaustive", SearchCost(passes=passes))
        for place, plan in enumerate(first[: settings.top])
    }
    if settings.short:
        tried, failed = [], list[str]()
        for plan in first[: settings.short]:
            with _noting(str(plan), failed):
                tried.append(trainer(plan, "exhaustive"))
        if not tried:
            lost += [f"D1, short distillation: {one}" for one in failed]
        cost = SearchCost(((len(tried) + len(failed), steps),), passes)
        tried.sort(key=merit)
        for place, made in enumerate(tried[: settings.top]):
            plan, source = Plan.parse(made.plan), "exhaustive, short distillation"
            found[f"D{place + 1}"] = _Entry(plan, source, cost, notes=_without(failed))
    return found


def _within(
    work: Workspace, trainer: StudentTrainer, study: Study, ranked: Ranking, count: int
) -> list[Plan]:
    """Return the first plans of a ranking that are within the measured limits, too."""
    admit = admission(work, trainer.teacher, study.space)
    if admit is None:
        return [plan for plan, _ in ranked[:count]]
    found: list[Plan] = []
    for plan, _ in ranked:
        if len(found) == count:
            break
        found += study.admitted([plan], admit, work.config.search.lease_seconds)
    return found


def _groups(
    baselines: Sequence[tuple[str, Proposal]],
) -> dict[str, tuple[str, list[Proposal]]]:
    """Return method and proposals by row: one method may have plans of several kinds."""
    groups: dict[str, tuple[str, list[Proposal]]] = {}
    for method, one in baselines:
        name = one.label.split(" ")[0] or method
        groups.setdefault(name, (method, []))[1].append(one)
    return groups


def _baseline(
    work: Workspace, trainer: StudentTrainer, group: Sequence[Proposal], *, drawn: bool
) -> _Entry:
    """Return the row of a group of proposals, which may be random draws."""
    entries = [
        _Entry(
            one.plan,
            "baseline",
            SearchCost(passes=one.passes),
            Build(one.neurons, one.masks),
            list(one.notes),
        )
        for one in group
    ]
    if len(entries) == 1:
        return entries[0]
    seed = work.config.final.seeds[0]
    made, failed = dict[int, float](), list[str]()
    for place, entry in enumerate(entries):
        with _noting(str(entry.plan), failed):
            made[place] = _run(work, trainer, entry, seed)[0].quality or 0.0
    if not made:
        raise TrainingError("; ".join(failed))
    order = sorted(made, key=lambda place: (-made[place], place))
    shown = entries[order[len(order) // 2] if drawn else 0]
    middle = "the median" if len(order) % 2 else "the lower median"
    told = ", ".join(f"{group[place].plan} {made[place]:.3f}" for place in order)
    shown.notes.append(
        f"{len(group)} plans, shown is {middle if drawn else 'the first by the paper'}; "
        f"ANLS of all with seed {seed}: {told}"
    )
    shown.notes += _without(failed)
    return shown


def _best(work: Workspace, study: Study, chosen: Study, passes: int) -> _Entry:
    """Return what the search hands over, and what finding it took (final trainings left out)."""
    config = work.config
    plan = best_of(chosen)
    source = next(t.source for t in study.trials() if t.plan_hash == plan.hash)
    spent = [(_trained(study), config.distill.steps)]
    if chosen is not study and config.final.steps is not None:
        spent.append((_trained(chosen), config.final.steps))
    if config.elastic.steps:
        # in steps of a student: its own may have other numbers of questions
        questions = config.elastic.steps * config.elastic.batch
        spent.append((1, math.ceil(questions / config.distill.batch)))
    return _Entry(plan, source, SearchCost(tuple(spent), passes))


def _trained(study: Study) -> int:
    """Return the trainings of a study, those that failed included."""
    status = study.status()
    return status.measured + status.failed
