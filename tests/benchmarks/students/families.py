"""Does the order of students change on harder questions?

    OMP_NUM_THREADS=1 python tests/benchmarks/students/families.py --work FOLDER
        --budgets 31 18 12 7 --steps 1200 --out results/students/families

Reads the answers that `longer.py` kept for its tables (same `--work`; what is not there is trained)
and scores them by family of question: *literal* and *case* copy a value that the question names,
*keyword* finds a value by its form alone, *reading* writes the whole page. Below each table stand
the rank correlations of the families' orders with the order over all questions.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from budgets import BUDGETS, search_at
from longer import build_of, methods_in
from scipy.stats import spearmanr

from circuitsearch.core.files import read_json, write_json, write_text
from circuitsearch.core.plan import Plan
from circuitsearch.pipeline import Pipeline
from circuitsearch.progress import reporter
from circuitsearch.show.rows import ResultRow
from circuitsearch.teacher.comparison import OVERALL, compare_answers
from circuitsearch.workspace import Workspace

Table = Mapping[str, Mapping[str, float]]
"""ANLS by row and family; `OVERALL` is that of all questions."""


def main() -> None:
    """Score kept answers by family and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="where longer.py kept its answers")
    parser.add_argument("--budgets", nargs="+", choices=BUDGETS, default=[*BUDGETS])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--tables", type=Path, default=Path("results/students/budgets.json"))
    parser.add_argument("--out", type=Path, required=True, help="without suffix")
    options = parser.parse_args()
    tables = read_json(options.tables)
    file = options.out.with_suffix(".json")
    found: dict[str, Any] = read_json(file) if file.exists() else {}
    for budget in options.budgets:
        name = f"{budget} %, {options.steps} steps"
        rows = [ResultRow.from_json(row) for row in tables[name]]
        found[name] = scored(budget, options.work, rows)
        write_json(file, found)
    write_text(options.out.with_suffix(".md"), text(found))


def scored(budget: str, work: Path, rows: list[ResultRow]) -> Table:
    """Return ANLS by row and family, rows in the order of the table."""
    config = search_at(budget, work, f"baselines=[{', '.join(methods_in(rows))}]")
    line = Pipeline(Workspace(config, reporter(quiet=False)))
    lock = line.work.claim()
    teacher = line.trainer.answered_teacher()[1]
    found = {}
    for row in rows:
        plan = Plan.parse(row.plan)
        about = {"steps": row.steps, "split": "final", "phase": row.phase}
        build = build_of(line, row.name, plan)
        runs = [teacher]
        if row.phase != "teacher":
            runs = [
                line.trainer.answered(plan, row.source, build=build, seed=seed, **about)[1]  # type: ignore[arg-type]
                for seed in row.seeds
            ]
        compared = compare_answers(runs, [teacher])
        found[row.name] = {family: one.first for family, one in compared.items()}
    lock.release()
    return found


def text(found: Mapping[str, Table]) -> str:
    """Return all tables as Markdown."""
    lines = [
        "# Students by family of question",
        "",
        "Made by `tests/benchmarks/students/families.py` from the answers behind the longer tables "
        "of [`budgets.md`](budgets.md). ANLS on 400 fresh pages. *Order*: Spearman correlation of "
        "a family's order of the students with that over all questions.",
    ]
    for name, table in found.items():
        families = [family for family in next(iter(table.values())) if family != OVERALL]
        lines += [
            "",
            f"## {name}",
            "",
            f"| student | all | {' | '.join(families)} |",
            "|---|" + "---:|" * (1 + len(families)),
        ]
        for row, scores in table.items():
            told = " | ".join(f"{scores[family]:.3f}" for family in (OVERALL, *families))
            lines.append(f"| {row} | {told} |")
        students = [scores for row, scores in table.items() if row != "teacher"]
        every = [scores[OVERALL] for scores in students]
        orders = [
            spearmanr(every, [scores[family] for scores in students]).statistic
            for family in families
        ]
        lines.append(f"| *order* | | {' | '.join(f'{order:.2f}' for order in orders)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
