"""Regret of every sampler on plans that were really distilled.

    python tests/benchmarks/samplers/regret.py tests/benchmarks/prediction/18.yaml
        --truth results/discovery/distilled-18.json --out results/search/samplers-18

`tests/benchmarks/prediction/distilled.py` makes the truth: plans with their distilled quality. A
sampler is run on it as on a study, 20 seeds, without any training; plans whose quality is not on
record count as taken, so an incomplete table is a smaller space. Regret is the best quality of the
table minus the best found so far, in ANLS points (hundredths). Priors: `circuit` (effects of the
teacher's components and the elastic teacher's ranking) and `misleading` (both shuffled, by seed).
Samplers that use neither are run once. `elastic order` is the ranking without any learning.
Writes OUT.json and OUT.md.

`--distil` asks the trainer for plans that are proposed and not on record (OUT.json keeps them), so
that informed samplers search the whole space; `random` still draws from the table, which should be
a random sample then. `--asked OTHER.json` adds what an earlier run with `--distil` asked for to the
table, so that every sampler can be run on all that is known: the plans that informed samplers like
are over-represented there, and random draws meet them more often than in the whole space.
`--against OTHER.json` measures regret from the best of another table.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from circuitsearch.configfile import load_config
from circuitsearch.core.files import content_hash, read_json, seed_from, write_json, write_text
from circuitsearch.core.plan import Plan
from circuitsearch.pipeline import Pipeline
from circuitsearch.progress import reporter
from circuitsearch.search.samplers import REGISTRY, History, Prior
from circuitsearch.search.space import Bits, Space
from circuitsearch.search.worths import unit_worths
from circuitsearch.workspace import Workspace

SHOWN = (1, 3, 5, 10, 20, 30)
INFORMED = ("elastic", "circuit", "tpe", "nsga2", "prior")


def main() -> None:
    """Simulate and tabulate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("search", type=Path)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--distil", action="store_true")
    parser.add_argument("--asked", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--evaluations", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--samplers", nargs="*", default=[*REGISTRY, "elastic order"])
    options = parser.parse_args()
    pipeline = Pipeline(Workspace(load_config(options.search), reporter(quiet=False)))
    space = pipeline.space
    table_of = read_json(options.truth)
    rows = table_of["plans"] + (read_json(options.asked)["asked"] if options.asked else [])
    truth = Truth(space, rows)
    if options.distil:
        truth.ask(pipeline, table_of["objective"], options.out.with_suffix(".json"))
    effects = {e.component: e.effect or 0.0 for e in pipeline.scores.components}
    prior = Prior(unit_worths(space, effects), tuple(pipeline.predicted))
    runs = [(name, "circuit") for name in options.samplers]
    if not options.distil:  # a misled sampler would have to distil most of the space
        runs += [(n, "misleading") for n in (*INFORMED, "elastic order") if n in options.samplers]
    size = options.evaluations, options.seeds
    found = {
        f"{name}, {kind}": curves(space, name, kind, prior, truth, size) for name, kind in runs
    }
    against = read_json(options.against)["plans"] if options.against else []
    best = max((row["quality"] for row in against), default=max(truth.known.values()))
    result = {
        "search": pipeline.work.config.name,
        "feasible": space.count(),
        "plans": len(rows),
        "best": best,
        "best of": options.against.stem if options.against else "the table",
        "seeds": options.seeds,
        "asked": truth.asked,
        "regret": {name: [(100 * (best - c)).tolist() for c in one] for name, one in found.items()},
    }
    write_json(options.out.with_suffix(".json"), result)
    write_text(options.out.with_suffix(".md"), table(result))


class Truth:
    """Quality of distilled plans, and where asked to, a trainer for those that are missing.

    Args:
        space: the search's plans.
        rows: plans with their quality.
    """

    def __init__(self, space: Space, rows: Sequence[Mapping[str, Any]]) -> None:
        """Hold the table."""
        self._space = space
        self.known = {space.bits(Plan.parse(row["plan"])): float(row["quality"]) for row in rows}
        self.table = frozenset(self.known)
        self.asked: list[dict[str, Any]] = []
        self.missing = {space.bits(plan) for plan in space.enumerate()} - self.known.keys()
        self._trainer: Any = None

    def ask(self, pipeline: Pipeline, objective: str, path: Path) -> None:
        """Distil what is missing from now on; go on with what an earlier run distilled."""
        config = pipeline.work.config
        here = content_hash([pipeline.trainer.objective(config.distill.steps), config.seed])
        if here != objective:
            raise SystemExit(f"the table was made with another training ({objective}, now {here})")
        self._trainer, self._path = pipeline.trainer, path
        self.missing = set()
        if path.exists():
            self.asked = read_json(path)["asked"]
            for row in self.asked:
                self.known[self._space.bits(Plan.parse(row["plan"]))] = row["quality"]

    def __call__(self, bits: Bits) -> float:
        """Return the quality of a plan."""
        if bits not in self.known:
            plan = self._space.plan(bits)
            quality = self._trainer(plan, "sampler").quality
            self.known[bits] = quality
            self.asked.append({"plan": str(plan), "quality": quality})
            write_json(self._path, {"asked": self.asked})
        return self.known[bits]


def curves(
    space: Space, name: str, kind: str, prior: Prior, truth: Truth, size: tuple[int, int]
) -> list[np.ndarray]:
    """Return per seed the best quality found so far, [evaluations]."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    evaluations, seeds = size
    found = []
    for seed in range(seeds):
        known = prior if kind == "circuit" else misleading(prior, seed)
        found.append(curve(space, name, known, truth, seed, evaluations))
    return found


def curve(
    space: Space, name: str, prior: Prior, truth: Truth, seed: int, evaluations: int
) -> np.ndarray:
    """Return the best quality after each evaluation of one run."""
    taken = set(truth.missing)
    if name == "random":
        taken = {space.bits(plan) for plan in space.enumerate()} - truth.table
    order = [space.bits(plan) for plan, _ in sorted(prior.ranking, key=lambda row: row[1])]
    order = [bits for bits in order if bits not in taken]
    sampler = None if name == "elastic order" else REGISTRY[name](space, prior, seed, "single")
    tried: list[Bits] = []
    values: list[float] = []
    for place in range(min(evaluations, len(order))):
        plans = np.array(tried, dtype=float).reshape(len(tried), len(space.units))
        history = History(plans, np.array(values), frozenset(taken | set(tried)))
        tried.append(order[place] if sampler is None else sampler.propose(history))
        values.append(truth(tried[-1]))
    return np.maximum.accumulate(values)


def misleading(prior: Prior, seed: int) -> Prior:
    """Return the same numbers given to other units and other plans."""
    rng = np.random.default_rng(seed_from("misleading", seed))
    worths = prior.worths or {}
    values = rng.permutation(list(worths.values())).tolist()
    losses = rng.permutation([loss for _, loss in prior.ranking]).tolist()
    plans = [plan for plan, _ in prior.ranking]
    return Prior(dict(zip(worths, values, strict=True)), tuple(zip(plans, losses, strict=True)))


def table(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    length = min(len(one[0]) for one in result["regret"].values())
    shown = [count for count in SHOWN if count <= length]
    lines = [
        f"# Regret of samplers on distilled students: {result['search']}",
        "",
        f"{result['plans']} of {result['feasible']} feasible plans were distilled"
        + (f", and {len(result['asked'])} more that samplers asked for" if result["asked"] else "")
        + f"; the best of {result['best of']} reaches ANLS {result['best']:.3f}. Regret in ANLS "
        "points (hundredths; negative: better than that) after so many trainings, mean over "
        f"{result['seeds']} seeds (standard deviation at 10), and the share of seeds within one "
        "point after 20.",
        "",
        "| sampler, prior | "
        + " | ".join(f"@{count}" for count in shown)
        + " | sd @10 | hit @20 |",
        "|---|" + "---:|" * (len(shown) + 2),
    ]
    rows = sorted(result["regret"].items(), key=lambda row: np.mean([c[9] for c in row[1]]))
    for name, values in rows:
        array = np.array(values)
        cells = [f"{array[:, count - 1].mean():.2f}" for count in shown]
        hit = (array[:, min(19, array.shape[1] - 1)] <= 1.0).mean()
        cells += [f"{array[:, 9].std():.2f}", f"{hit:.0%}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
