"""The plans of a finished table of `budgets.py`, trained for longer: nothing is searched again.

    OMP_NUM_THREADS=1 python tests/benchmarks/students/longer.py --work FOLDER --budget 18
        --steps 1200 --out results/students/budgets --also "promoted=S0[0,5] C0[4] C3[1]"

Every row of OUT.json's table of `--of` steps under that budget keeps its plan, its choice of
neurons and its zeros, which the methods are asked for again; rows of several plans (random draws,
the paper's siblings) go on with the one that the table shows. `best` is the plan that the search
found by short trainings; what it chooses by longer ones goes in with `--also`.

All rows are trained with the first seed, then those within `--near` of the best with the others:
that of a row without a spread is one training. Trainings are kept in the folder `--work`, so a
stopped run goes on where it was, and another one with more rows or seeds trains what is missing.
With `--rows best taylor` these rows are made and the other ones of the longer table stay as they
are; `best` must be among them, because differences are taken by question.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from budgets import BUDGETS, drawn, search_at, text
from filelock import FileLock

from circuitsearch.core.answers import Answers
from circuitsearch.core.files import read_json, write_json, write_text
from circuitsearch.core.measurement import Measurement
from circuitsearch.core.plan import Plan
from circuitsearch.pipeline import Pipeline
from circuitsearch.progress import reporter
from circuitsearch.show.rows import ResultRow, result_rows
from circuitsearch.stages.training import Build
from circuitsearch.students.baselines import BASELINES
from circuitsearch.teacher.comparison import OVERALL, compare_answers
from circuitsearch.workspace import Workspace

BEST = "best"
_SEVERAL = ("mint", "random")
"""Methods that propose several plans; no plan of theirs needs more than its text."""


def main() -> None:
    """Train, measure, add the table and draw all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="what can be resumed")
    parser.add_argument("--budget", choices=BUDGETS, required=True)
    parser.add_argument("--of", type=int, default=300, help="steps of the table that is continued")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--near", type=float, default=0.15, help="ANLS to the best of one seed")
    parser.add_argument(
        "--once", nargs="*", default=[], help="rows that the first seed is enough for"
    )
    parser.add_argument("--rows", nargs="*", help="rows of the table to go on with; default: all")
    parser.add_argument("--also", nargs="*", default=[], metavar="NAME=PLAN")
    parser.add_argument("--out", type=Path, required=True, help="without suffix")
    options = parser.parse_args()
    file = options.out.with_suffix(".json")
    known = read_json(file)[f"{options.budget} %, {options.of} steps"]
    rows = {one.name: one for one in map(ResultRow.from_json, known) if one.phase != "teacher"}
    if options.rows and BEST not in options.rows:
        parser.error(f"--rows: {BEST!r} must be among them")
    rows = {name: row for name, row in rows.items() if name in (options.rows or rows)}
    methods = ", ".join(methods_in(rows.values()))
    config = search_at(options.budget, options.work, f"baselines=[{methods}]")
    line = Pipeline(Workspace(config, reporter(quiet=False)))
    lock = line.work.claim()
    made = _longer(line, rows, dict(one.split("=", 1) for one in options.also), options)
    lock.release()
    with FileLock(file.with_suffix(".lock")):  # several budgets may be trained side by side
        found, name = read_json(file), f"{options.budget} %, {options.steps} steps"
        others = [ResultRow.from_json(row) for row in found.get(name, ())] if options.rows else []
        found[name] = [row.to_json() for row in joined(made, others)]
        write_json(file, found)
    tables = {name: [ResultRow.from_json(row) for row in rows] for name, rows in found.items()}
    write_text(options.out.with_suffix(".md"), text(tables))
    drawn(tables).savefig(options.out.with_suffix(".svg"), metadata={"Date": None})


def _longer(
    line: Pipeline,
    rows: Mapping[str, ResultRow],
    also: Mapping[str, str],
    options: argparse.Namespace,
) -> tuple[ResultRow, ...]:
    """Return the rows of the longer table, best first behind the teacher."""
    plans = {name: Plan.parse(row.plan) for name, row in rows.items()}
    plans |= {name: Plan.parse(plan) for name, plan in also.items()}
    builds = {name: build_of(line, name, plan) for name, plan in plans.items()}
    runs: dict[str, list[tuple[Measurement, Answers]]] = {
        "teacher": [line.trainer.answered_teacher()]
    }

    def train(name: str, seed: int) -> None:
        about = {"seed": seed, "steps": options.steps, "split": "final", "phase": "full"}
        source = rows[name].source if name in rows else "search"
        done = line.trainer.answered(plans[name], source, build=builds[name], **about)  # type: ignore[arg-type]
        runs.setdefault(name, []).append(done)

    first, *others = options.seeds
    for name in plans:
        train(name, first)
    reached = {name: runs[name][0][0].quality or 0.0 for name in plans}
    for seed in others:
        for name in plans:
            near = reached[name] > max(reached.values()) - options.near
            if name == BEST or (near and name not in options.once):
                train(name, seed)
    answers = {name: [said for _, said in group] for name, group in runs.items()}
    found = result_rows(
        {name: [one for one, _ in group] for name, group in runs.items()},
        search={name: row.search_cost for name, row in rows.items() if row.search_cost},
        differences={
            name: compare_answers(said, answers[BEST])[OVERALL]
            for name, said in answers.items()
            if name != BEST
        },
        difference_to=BEST,
        notes={name: _notes(row, options.of) for name, row in rows.items()},
    )
    return tuple(sorted(found, key=lambda row: row.rank or 0))


def joined(made: Sequence[ResultRow], others: Sequence[ResultRow]) -> list[ResultRow]:
    """Return rows with those others whose names they lack, ranked anew, the teacher first."""
    names = {row.name for row in made}
    rows = [*made, *(row for row in others if row.name not in names)]
    teacher = [row for row in rows if row.phase == "teacher"]
    students = [row for row in rows if row.phase != "teacher"]
    students.sort(key=lambda row: (-(row.quality or 0.0), row.loss, row.macs, row.name))
    return [*teacher, *(replace(row, rank=place) for place, row in enumerate(students, start=1))]


def methods_in(rows: Iterable[ResultRow]) -> list[str]:
    """Return the methods that have to be asked again how their students are made."""
    return [row.name for row in rows if row.name in BASELINES and row.name not in _SEVERAL]


def build_of(line: Pipeline, name: str, plan: Plan) -> Build:
    """Return how a row's student is made, where its plan does not say everything."""
    proposed = [one for method, one in line.baselines if method == name]
    for one in proposed:
        if one.plan.hash == plan.hash:
            return Build(one.neurons, one.masks)
    if proposed:
        told = ", ".join(str(one.plan) for one in proposed)
        raise SystemExit(f"{name}: the table has {plan}, proposed is {told}; make it again")
    return Build()


def _notes(row: ResultRow, steps: int) -> list[str]:
    """Return a row's notes, without the ANLS of plans that were not trained for longer."""
    return [
        f"{note.split('; ANLS of all')[0]} (after {steps} steps)"
        if "; ANLS of all" in note
        else note
        for note in row.notes
    ]


if __name__ == "__main__":
    main()
