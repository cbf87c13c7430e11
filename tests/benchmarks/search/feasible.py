"""Random budgets and scores: is anything infeasible ever proposed, is the program exact?

    python tests/benchmarks/search/feasible.py --pairs 10000 --out results/search/feasible.json

Each pair draws a small decoder, choices for its sub-layers (whole, counts of heads, free heads,
widths, replacements), up to three limits between the smallest legal student and the teacher, and
worths of both signs. The integer program is compared with brute force over all feasible plans, and
every sampler proposes a plan with and without results behind it; each proposal is judged by the
plan's own cost and rules, not by the space that made it. About a quarter of an hour on one core.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import optuna

from circuitsearch.core.budget import ACCOUNTINGS, SCOPES, Budget, LimitSpec
from circuitsearch.core.files import seed_from, write_json
from circuitsearch.search.knapsack import solve, tie_broken
from circuitsearch.search.samplers import REGISTRY, History, Prior, SpaceExhaustedError
from circuitsearch.search.space import Bits, Space
from circuitsearch.search.units import Choices
from tests.search_fixtures import teacher_shape

LISTED = 4000
"""Spaces with more feasible plans are not compared with brute force."""


def main() -> None:
    """Draw, propose, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    counted: Counter[str] = Counter()
    for pair in range(options.pairs):
        rng = np.random.default_rng(seed_from("feasible", pair))
        space = _space(rng)
        worths = rng.choice([-1, 1], len(space.units)) * rng.gamma(0.6, size=len(space.units))
        counted["pairs"] += 1
        _judge_program(space, worths, counted)
        _judge_samplers(space, worths, pair, rng, counted)
        if pair % 100 == 99:
            write_json(options.out, dict(sorted(counted.items())))
            print(dict(counted), flush=True)


def _space(rng: np.random.Generator) -> Space:
    """Return a random decoder's plans under a random budget."""
    layers = int(rng.integers(1, 4))
    shape = teacher_shape(layers)
    attention = str(rng.choice(["whole", "counts", "heads"]))
    widths = sorted(rng.choice(np.arange(1, shape.decoder.ffn), 2, replace=False).tolist())
    names = [name for name in ("mean", "linear", "alone", "token") if rng.random() < 0.3]
    choices = Choices(attention, tuple(widths) if rng.random() < 0.5 else (), tuple(names))  # type: ignore[arg-type]
    kinds = {
        (
            str(rng.choice(["parameters", "macs"])),
            str(rng.choice(SCOPES)),
            str(rng.choice(ACCOUNTINGS)),
        )
        for _ in range(rng.integers(0, 4))
    }
    specs = [LimitSpec(q, "100%", s, a) for q, s, a in sorted(kinds)]  # type: ignore[arg-type]
    whole = Space(shape, Budget.resolve(specs, shape), choices)
    _, least = whole.smallest()
    limits = []
    for spec, limit in zip(specs, whole.budget.limits, strict=True):
        low = least[spec.name]
        value = low + int((limit.maximum - low) * rng.random())
        limits.append(LimitSpec(spec.quantity, value, spec.scope, spec.accounting))
    return Space(shape, Budget.resolve(limits, shape), choices)


def _judge_program(space: Space, worths: np.ndarray, counted: Counter[str]) -> None:
    """Compare the integer program with brute force where every plan can be listed."""
    best = solve(worths.tolist(), space)
    counted["programs"] += 1
    _judge(space, best, "program", counted)
    if space.count() > LISTED:
        return
    broken = tie_broken(worths.tolist())
    plans = [space.bits(plan) for plan in space.enumerate()]
    brute = max(plans, key=lambda bits: float(np.dot(broken, bits)), default=None)
    counted["programs compared with brute force"] += 1
    counted["programs unlike brute force"] += best != brute


def _judge_samplers(
    space: Space, worths: np.ndarray, pair: int, rng: np.random.Generator, counted: Counter[str]
) -> None:
    """Let every sampler propose twice: with nothing known, and behind what it proposed."""
    first = list(itertools.islice(space.enumerate(), 200))
    ranking = tuple((plan, -float(np.dot(worths, space.bits(plan)))) for plan in first)
    prior = Prior(dict(zip(space.names, worths.tolist(), strict=True)), ranking)
    for name, factory in REGISTRY.items():
        sampler = factory(space, prior, pair, "single")
        tried: list[Bits] = []
        for _ in range(2):
            plans = np.array(tried, float).reshape(len(tried), len(space.units))
            try:
                bits = sampler.propose(History(plans, rng.random(len(tried)), frozenset(tried)))
            except SpaceExhaustedError:
                counted["proposals refused: every plan tried"] += 1
                counted["refused too early"] += len(tried) < space.count()
                break
            counted[f"proposals of {name}"] += 1
            counted["proposed again"] += bits in tried
            _judge(space, bits, name, counted)
            tried.append(bits)


def _judge(space: Space, bits: Bits | None, who: str, counted: Counter[str]) -> None:
    """Count a proposal that its own cost or the rules refuse."""
    if bits is None:
        counted[f"nothing proposed by {who}"] += 1
        return
    plan = space.plan(bits)
    fits = space.budget.admits(plan, space.shape)
    reads = space.reads_page(plan)
    counted["infeasible proposals"] += not (fits and reads and space.obeys_rules(bits))


if __name__ == "__main__":
    main()
