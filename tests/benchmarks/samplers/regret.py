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
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from circuitsearch.configfile import load_config
from circuitsearch.core.files import read_json, seed_from, write_json, write_text
from circuitsearch.core.plan import Plan
from circuitsearch.pipeline import Pipeline
from circuitsearch.progress import reporter
from circuitsearch.search.samplers import REGISTRY, History, Prior
from circuitsearch.search.space import Bits, Space
from circuitsearch.search.worths import unit_worths
from circuitsearch.workspace import Workspace

SEEDS, EVALUATIONS, SHOWN = 20, 30, (1, 3, 5, 10, 20, 30)
INFORMED = ("elastic", "circuit", "tpe", "nsga2", "prior")


def main() -> None:
    """Simulate and tabulate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("search", type=Path)
    parser.add_argument("--truth", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    pipeline = Pipeline(Workspace(load_config(options.search), reporter(quiet=False)))
    space = pipeline.space
    truth = {
        space.bits(Plan.parse(row["plan"])): float(row["quality"])
        for row in read_json(options.truth)["plans"]
    }
    effects = {e.component: e.effect or 0.0 for e in pipeline.scores.components}
    prior = Prior(unit_worths(space, effects), tuple(pipeline.elastic_ranking))
    runs = [(name, "circuit") for name in (*REGISTRY, "elastic order")]
    runs += [(name, "misleading") for name in (*INFORMED, "elastic order")]
    rows = {f"{name}, {kind}": curves(space, name, kind, prior, truth) for name, kind in runs}
    result = {
        "search": pipeline.work.config.name,
        "feasible": space.count(),
        "plans": len(truth),
        "best": max(truth.values()),
        "seeds": SEEDS,
        "regret": {name: [list(map(float, c)) for c in values] for name, values in rows.items()},
    }
    write_json(options.out.with_suffix(".json"), result)
    write_text(options.out.with_suffix(".md"), table(result))


def curves(
    space: Space, name: str, kind: str, prior: Prior, truth: Mapping[Bits, float]
) -> list[np.ndarray]:
    """Return one regret curve per seed, [evaluations] in ANLS points."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = []
    for seed in range(SEEDS):
        known = prior if kind == "circuit" else misleading(prior, seed)
        found.append(curve(space, name, known, truth, seed))
    return found


def curve(
    space: Space, name: str, prior: Prior, truth: Mapping[Bits, float], seed: int
) -> np.ndarray:
    """Return the regret after each evaluation of one run."""
    unknown = {space.bits(plan) for plan in space.enumerate()} - truth.keys()
    order = [space.bits(plan) for plan, _ in sorted(prior.ranking, key=lambda row: row[1])]
    order = [bits for bits in order if bits in truth]
    sampler = None if name == "elastic order" else REGISTRY[name](space, prior, seed, "single")
    tried: list[Bits] = []
    for place in range(min(EVALUATIONS, len(truth))):
        if sampler is None:
            tried.append(order[place])
            continue
        values = np.array([truth[bits] for bits in tried])
        plans = np.array(tried, dtype=float).reshape(len(tried), len(space.units))
        tried.append(sampler.propose(History(plans, values, frozenset(unknown | set(tried)))))
    best = np.maximum.accumulate([truth[bits] for bits in tried])
    return 100.0 * (max(truth.values()) - best)


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
    shown = [count for count in SHOWN if count <= result["plans"]]
    lines = [
        f"# Regret of samplers on distilled students: {result['search']}",
        "",
        f"{result['plans']} of {result['feasible']} feasible plans were distilled; the best "
        f"of them reaches ANLS {result['best']:.3f}. Regret in ANLS points (hundredths) after "
        f"so many trainings, mean over {result['seeds']} seeds (standard deviation at 10), and "
        "the share of seeds within one point after 20.",
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
