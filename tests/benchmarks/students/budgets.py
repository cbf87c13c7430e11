"""Quality against budget: the search and published baselines, distilled alike, in one table.

    OMP_NUM_THREADS=1 python tests/benchmarks/students/budgets.py --work FOLDER
        --budgets 45 31 18 12 7 --steps 300 --out results/students/budgets

Every budget is a search of its own (`budgets.yaml`): it distils ten plans for 300 steps, forty
where heads and widths are chosen, and its best stands beside the baselines on fresh pages, each
distilled with three seeds for `--steps`. With `--promote 4` the search chooses among its best four
plans by trainings of `--steps` themselves.
Tables that OUT.json has are not made again; OUT.md and OUT.svg show all that it holds.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from circuitsearch.config import SearchConfig
from circuitsearch.configfile import load_config
from circuitsearch.core.files import read_json, write_json, write_text
from circuitsearch.pipeline import Pipeline
from circuitsearch.progress import reporter
from circuitsearch.show.rows import ResultRow
from circuitsearch.workspace import Workspace

_PARTS = [
    "space.attention=counts",
    "space.widths=[32, 64, 128, 192, 256, 384]",
    "search.trainings=40",
]
BUDGETS: dict[str, list[str]] = {
    "45": ["budget=[{quantity: parameters, limit: 45%}]"],
    # the paper's coarse pair
    "31": ["budget=[{quantity: parameters, limit: 31.25%}, {quantity: macs, limit: 50%}]"],
    # so little is left that parts of sub-layers count
    "18": ["budget=[{quantity: parameters, limit: 18.75%}]", *_PARTS],
    "12": ["budget=[{quantity: parameters, limit: 12.5%}]", *_PARTS],
    "7": ["budget=[{quantity: parameters, limit: 7.04%}]", *_PARTS],
}
_ZEROS = " (zeros, all MACs)"
BASELINES = (
    "mint",
    "magnitude",
    "wanda",
    "finercut",
    "shortgpt",
    "minitron",
    "taylor",
    "evopress",
    "puzzle",
    "random",
    "magnitude-unstructured",
    "wanda-unstructured",
)


def search_at(budget: str, work: Path, *overrides: str) -> SearchConfig:
    """Return the search under a row of `BUDGETS`, in a folder of its own, with a shared cache."""
    own = [f"name=budgets-{budget}", f"output={work / budget}", f"cache={work / 'cache'}"]
    own += BUDGETS[budget]
    return load_config(Path(__file__).with_name("budgets.yaml"), [*own, *overrides])


def main() -> None:
    """Search, distil, write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="what can be resumed")
    parser.add_argument("--budgets", nargs="+", choices=BUDGETS, default=[*BUDGETS])
    parser.add_argument("--steps", type=int, default=300, help="of the final distillations")
    parser.add_argument("--promote", type=int, default=0, help="plans distilled for --steps")
    parser.add_argument("--baselines", nargs="*", default=BASELINES)
    parser.add_argument("--out", type=Path, required=True, help="without suffix")
    options = parser.parse_args()
    file = options.out.with_suffix(".json")
    found: dict[str, Any] = read_json(file) if file.exists() else {}
    for budget in options.budgets:
        name = f"{budget} %, {options.steps} steps"
        if name not in found:
            given = [
                f"final.steps={options.steps}",
                f"search.promote={options.promote}",
                f"baselines=[{', '.join(options.baselines)}]",
            ]
            found[name] = _made(search_at(budget, options.work, *given))
            write_json(file, found)
    tables = {name: [ResultRow.from_json(row) for row in rows] for name, rows in found.items()}
    write_text(options.out.with_suffix(".md"), text(tables))
    drawn(tables).savefig(options.out.with_suffix(".svg"), metadata={"Date": None})


def _made(config: SearchConfig) -> list[dict[str, Any]]:
    """Run a search up to its final comparison and return the rows."""
    line = Pipeline(Workspace(config, reporter(quiet=False)))
    lock = line.work.claim()
    rows = [row.to_json() for row in line.rows]
    lock.release()
    return rows


def text(tables: Mapping[str, Sequence[ResultRow]]) -> str:
    """Return all tables as Markdown, best first."""
    lines = [
        "# Quality against budget",
        "",
        "Made by `tests/benchmarks/students/budgets.py` and, beyond 300 steps, `longer.py` on the "
        "shipped teacher. *ANLS*: mean and standard deviation over three training seeds (one seed "
        "where none stands), 95 % interval over documents; *to best*: paired by question, 95 % "
        "interval over documents. Budgets are shares of the decoder's parameters, MACs stand "
        "beside them (`paper` accounting); at 31 % MACs are bounded too, by one half.",
    ]
    for name, rows in sorted(tables.items(), key=_place):
        teacher = next(row for row in rows if row.phase == "teacher")
        students = sorted((row for row in rows if row is not teacher), key=lambda row: row.rank)
        lines += [
            "",
            f"## {name}",
            "",
            f"Teacher {teacher.quality:.3f} on {teacher.examples} questions.",
            "",
            "| student | plan | parameters | MACs | ANLS | of teacher | to best |",
            "|---|---|---:|---:|---:|---:|---:|",
            *(_line(row, teacher) for row in students),
        ]
        notes = [(row.name, note) for row in students for note in row.notes]
        lines += [""] * bool(notes) + [f"* {who}: {note}" for who, note in notes]
    return "\n".join(lines) + "\n"


def _place(entry: tuple[str, Any]) -> tuple[int, int]:
    budget, steps = entry[0].split(" %, ")
    return int(steps.split()[0]), -int(budget)


def _line(row: ResultRow, teacher: ResultRow) -> str:
    spread = "" if row.quality_sd is None else f" ± {row.quality_sd:.3f}"
    to_best = ""
    if row.difference is not None:
        one = row.difference
        to_best = f"{one.mean:+.3f} [{one.low:+.3f}, {one.high:+.3f}]"
    return (
        f"| {row.name} | `{row.plan}` | {100 * row.parameters_share:.1f} % | "
        f"{100 * row.macs_share:.1f} % | {row.quality:.3f}{spread} "
        f"[{row.quality_low:.3f}, {row.quality_high:.3f}] | "
        f"{100 * row.quality / teacher.quality:.1f} % | {to_best} |"
    )


def drawn(tables: Mapping[str, Sequence[ResultRow]]) -> Figure:
    """Return a panel per number of steps: share of the teacher's ANLS against parameters.

    Rows of zeros keep all parameters and MACs; they are dotted, at the share of the other rows.
    """
    panels = {
        steps: _points(tables, steps) for steps in sorted({_place(e)[0] for e in tables.items()})
    }
    names = sorted({name for lines in panels.values() for name in lines})
    figure = Figure(figsize=(5.5 * len(panels) + 2, 4.5), layout="constrained")
    drawings = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
    shown: dict[str, Any] = {}
    for axes, (steps, lines) in zip(drawings, panels.items(), strict=True):
        for name, points in sorted(lines.items()):
            style: dict[str, Any] = {"color": colormaps["tab20"](names.index(name) % 20)}
            if name == "best":
                style = {"color": "black", "linewidth": 2.5}
            if _ZEROS in name:
                style["linestyle"] = ":"
            shown[name] = axes.plot(*zip(*sorted(points), strict=True), marker="o", **style)[0]
        axes.set(title=f"{steps:,} steps", xlabel="parameters of the decoder, %")
        axes.axhline(100, color="grey", linewidth=0.8)
    drawings[0].set_ylabel("ANLS, % of the teacher's")
    ordered = dict(sorted(shown.items()))
    figure.legend(ordered.values(), ordered, loc="outside right upper", fontsize=7)
    return figure


def _points(
    tables: Mapping[str, Sequence[ResultRow]], steps: int
) -> dict[str, list[tuple[float, float]]]:
    """Return (share of parameters, share of the teacher's ANLS) by name, of one training length."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for table in (rows for name, rows in tables.items() if _place((name, rows))[0] == steps):
        named = {row.name: row for row in table}
        teacher = named.pop("teacher")
        for row in named.values():
            # zeros are stored and multiplied like other weights, so they have no place of their own
            zeros = row.parameters_share == 1
            share = named["best"].parameters_share if zeros else row.parameters_share
            points = lines.setdefault(row.name + _ZEROS * zeros, [])
            points.append((100 * share, 100 * row.quality / teacher.quality))
    return lines


if __name__ == "__main__":
    main()
