"""What students reach from different beginnings, by steps.

They begin with the teacher's weights, with these and removed parts at their means, or with the
elastic teacher's weights.

    OMP_NUM_THREADS=1 python tests/benchmarks/students/starts.py --work FOLDER --budget 31
        --plans "S0 C0 S1 S2 C3" --steps 300 1200 3000 --seeds 0 1 2 --out results/students/starts

Every student is distilled by the search's own trainer (`budgets.yaml`) and answers the search's
fresh pages; `best` among the plans is what the search finds under that budget. The elastic teacher
costs as much as `elastic steps x elastic batch` questions, which a fair comparison adds to the
first student that begins with it, and a search that ranks by it has paid anyway.

Rows that OUT.json has are not made again. OUT.md shows all budgets that it holds: quality as a
share of the teacher's, mean and standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from budgets import BUDGETS, search_at
from scipy.stats import t

from circuitsearch.core.cost import cost
from circuitsearch.core.files import read_json, write_json, write_text
from circuitsearch.core.plan import Plan
from circuitsearch.pipeline import Pipeline
from circuitsearch.progress import reporter
from circuitsearch.stages.searching import best_of
from circuitsearch.workspace import Workspace

STARTS = {
    "teacher": "distill.start=teacher",
    "means": "distill.compensate=true",
    "elastic": "distill.start=elastic",
}


def main() -> None:
    """Distil, measure, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="what can be resumed")
    parser.add_argument("--budget", choices=BUDGETS, required=True)
    parser.add_argument("--plans", nargs="+", required=True)
    parser.add_argument("--steps", type=int, nargs="+", default=[300, 1200, 3000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=[*STARTS])
    parser.add_argument("--out", type=Path, required=True, help="without suffix")
    options = parser.parse_args()
    file = options.out.with_suffix(".json")
    found: dict[str, Any] = read_json(file) if file.exists() else {}
    lines = {
        start: Pipeline(
            Workspace(
                search_at(options.budget, options.work, STARTS[start]),
                reporter(quiet=False),
            )
        )
        for start in options.starts
    }
    first = next(iter(lines.values()))
    lock = first.work.claim()  # held until the process ends
    entry = found.setdefault(first.work.config.name, _facts(first))
    for text in options.plans:
        plan = best_of(first.chosen) if text == "best" else Plan.parse(text)
        for steps in options.steps:
            for start, line in lines.items():
                for seed in options.seeds:
                    name = f"{plan}, {start}, {steps}, {seed}"
                    if name not in entry["rows"]:
                        entry["rows"][name] = _row(line, plan, start, steps, seed)
                        write_json(file, found)
    write_text(options.out.with_suffix(".md"), table(found))
    lock.release()


def _facts(line: Pipeline) -> dict[str, Any]:
    """Return what all rows of a search share."""
    config = line.work.config
    made, _ = line.trainer.answered_teacher()
    return {
        "teacher": made.quality,
        "questions": made.examples,
        "train pages": len(line.pages["train"]),
        "elastic": {"steps": config.elastic.steps, "batch": config.elastic.batch},
        "batch": config.distill.batch,
        "rows": {},
    }


def _row(line: Pipeline, plan: Plan, start: str, steps: int, seed: int) -> dict[str, Any]:
    about = {"seed": seed, "steps": steps, "split": "final", "phase": "full"}
    made = line.trainer.measured(plan, "benchmark", **about)  # type: ignore[arg-type]
    whole = Plan.full(line.teacher.shape.decoder.layers)
    used, all_ = (cost(one, line.teacher.shape, "paper").scopes["decoder"] for one in (plan, whole))
    return {
        "plan": str(plan),
        "start": start,
        "steps": steps,
        "seed": seed,
        "quality": made.quality,
        "loss": made.loss,
        "parameters": used.parameters / all_.parameters,
        "macs": used.macs / all_.macs,
    }


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the result as Markdown."""
    lines = [
        "# What students begin with",
        "",
        "Made by `tests/benchmarks/students/starts.py`. ANLS on fresh pages and its share of the "
        "teacher's, mean and standard deviation over seeds; in brackets the 95 % interval of the "
        "mean over seeds (Student's t). Students begin with the weights of the "
        "*teacher*, with these and removed parts at their *means* (`distill.compensate`), or with "
        "those of the *elastic* teacher. *Questions*: those trained on, and with the elastic "
        "teacher's own where students begin with it.",
    ]
    for name, entry in sorted(found.items()):
        groups: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
        for row in entry["rows"].values():
            groups.setdefault((row["plan"], row["start"], row["steps"]), []).append(row)
        lines += [
            "",
            f"## {name}",
            "",
            f"Teacher {entry['teacher']:.3f} on {entry['questions']} questions; "
            f"{entry['train pages']} pages to distil on.",
            "",
            "| plan | parameters | MACs | starts from | steps | questions | ANLS | of teacher |",
            "|---|---:|---:|---|---:|---:|---:|---:|",
            *(_line(key, rows, entry) for key, rows in sorted(groups.items())),
        ]
    return "\n".join(lines) + "\n"


def _line(
    key: tuple[str, str, int], rows: Sequence[Mapping[str, Any]], entry: Mapping[str, Any]
) -> str:
    plan, start, steps = key
    values = [row["quality"] for row in rows]
    spread = interval = ""
    if len(values) > 1:
        deviation = statistics.stdev(values)
        half = t.ppf(0.975, len(values) - 1) * deviation / math.sqrt(len(values))
        mean = statistics.fmean(values)
        spread = f" ± {deviation:.3f}"
        interval = " [{:.1f}, {:.1f}]".format(
            *(100 * (mean + sign * half) / entry["teacher"] for sign in (-1, 1))
        )
    mean, teacher, first = statistics.fmean(values), entry["teacher"], rows[0]
    asked = f"{steps * entry['batch']:,}"
    if start == "elastic":
        shared = entry["elastic"]["steps"] * entry["elastic"]["batch"]
        asked += f" (+ {shared:,})"
    return (
        f"| `{plan}` | {100 * first['parameters']:.2f} % | {100 * first['macs']:.1f} % | {start} | "
        f"{steps:,} | {asked} | {mean:.3f}{spread} (n = {len(values)}) | "
        f"{100 * mean / teacher:.1f} %{interval} |"
    )


if __name__ == "__main__":
    main()
