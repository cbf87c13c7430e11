"""Distil random plans of a search's budget: the truth that predictors are judged by.

    python tests/benchmarks/prediction/distilled.py tests/benchmarks/prediction/31.yaml
        --out results/discovery/distilled-31.json --plans 100

Draws feasible plans at random (seeded; all of them when there are no more), distils each with the
search's shared trainer and measures it on the pages to choose on. OUT holds one row per plan with
its text, quality (ANLS) and loss; rows that are there are not made again, as long as teacher, pages
and training are the same. Of a space that is too large to list, plans are random feasible fills.
`--compositions 2C2M 2S2C1M` takes plans of these compositions only, `--of OTHER.json` the plans of
another table, in its order, `--seed 1` distils with another training seed (a table of its own).
"""

from __future__ import annotations

import argparse
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np

from circuitsearch.configfile import load_config
from circuitsearch.core.errors import StorageError
from circuitsearch.core.files import content_hash, read_json, seed_from, write_json
from circuitsearch.core.plan import Plan
from circuitsearch.pipeline import Pipeline
from circuitsearch.progress import reporter
from circuitsearch.search.samplers import History, RandomSampler
from circuitsearch.search.space import Bits, Space
from circuitsearch.workspace import Workspace

LISTED = 20_000


def main() -> None:
    """Distil and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("search", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plans", type=int, default=100)
    parser.add_argument("--compositions", nargs="*", default=[])
    parser.add_argument("--of", type=Path)
    parser.add_argument("--seed", type=int, help="of the trainings; default the search's")
    options = parser.parse_args()
    config = load_config(options.search)
    seed = config.seed if options.seed is None else options.seed
    work = Workspace(config, reporter(quiet=False))
    lock = work.claim()  # held until the process ends
    work.write_config()
    pipeline = Pipeline(work)
    if options.of is not None:
        plans = [Plan.parse(row["plan"]) for row in read_json(options.of)["plans"]]
        chosen = plans[: options.plans]
    elif pipeline.space.count() > LISTED:
        chosen = _filled(pipeline.space, options.plans, config.seed)
    else:
        wanted = [_composition(text) for text in options.compositions]
        plans = [p for p in pipeline.space.enumerate() if not wanted or _kinds(p) in wanted]
        drawn = random.Random(seed_from("distilled plans", config.seed))
        chosen = plans if len(plans) <= options.plans else drawn.sample(plans, options.plans)
    steps = config.distill.steps
    objective = content_hash([pipeline.trainer.objective(steps), seed])
    rows = _known(options.out, objective)
    for plan in chosen:
        if str(plan) in rows:
            continue
        about = {"seed": seed, "steps": steps, "split": "select", "phase": "short"}
        made = pipeline.trainer.measured(plan, "random", **about)
        rows[str(plan)] = {"plan": str(plan), "quality": made.quality, "loss": made.loss}
        write_json(
            options.out,
            {
                "objective": objective,
                "feasible": pipeline.space.count(),
                "plans": list(rows.values()),
            },
        )
    lock.release()


def _filled(space: Space, count: int, seed: int) -> list[Plan]:
    """Return different random feasible plans that fill the budget."""
    sampler = RandomSampler(space, seed=seed)
    found: list[Bits] = []
    for _ in range(count):
        plans = np.array(found, dtype=float).reshape(len(found), len(space.units))
        found.append(sampler.propose(History(plans, np.zeros(len(found)), frozenset(found))))
    return [space.plan(bits) for bits in found]


def _composition(text: str) -> Counter[str]:
    """Read `2S2C1M`."""
    return Counter({kind: int(count) for count, kind in re.findall(r"(\d+)([SCM])", text)})


def _kinds(plan: Plan) -> Counter[str]:
    return Counter(sublayer.name[0] for sublayer in plan.sublayers)


def _known(path: Path, objective: str) -> dict[str, dict[str, object]]:
    """Read the rows that are there."""
    if not path.exists():
        return {}
    stored = read_json(path)
    if stored["objective"] != objective:
        raise StorageError(
            f"{path}: made with another teacher, other pages or another training "
            f"({stored['objective']}, now {objective}); give another --out"
        )
    return {row["plan"]: row for row in stored["plans"]}


if __name__ == "__main__":
    main()
