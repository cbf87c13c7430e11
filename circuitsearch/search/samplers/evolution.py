"""Evolution by swaps that respect the budget, after EvoPress (arXiv 2410.14649).

A child of a good plan gives up a few units and takes others for what they cost; the room that is
left is filled. EvoPress switches levels of compression between blocks at a constant total, keeps
the best plan and selects over fidelities; here a child is one trial, parents are drawn among the
best measured plans, and the fidelities are the study's phases.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from circuitsearch.search.knapsack import take
from circuitsearch.search.space import Bits, Space

from .base import FeasibleSampler
from .baselines import random_plan
from .history import Array, History

__all__ = ["EvolutionSampler", "swapped"]

_FIRST = 4  # random plans before there are parents
_PARENTS = 4  # best plans that children are made of


class EvolutionSampler(FeasibleSampler):
    """Children of the best plans by swaps; random feasible plans at first."""

    def candidates(
        self, history: History, rng: np.random.Generator, space: Space
    ) -> Iterator[Bits | None]:
        """Yield children with one to three swaps, ever more as they turn out to be known."""
        best = np.argsort(-history.values, kind="stable")[:_PARENTS]
        grown = 0
        while True:
            if len(history.values) < _FIRST:
                yield random_plan(space, rng)
                continue
            parent = history.plans[best[rng.integers(len(best))]].astype(int)
            swaps = 1 + int(rng.integers(3)) + grown // 4
            yield swapped(tuple(parent.tolist()), space, rng, swaps)
            grown += 1

    def worths(self, history: History, rng: np.random.Generator) -> Array:
        """Return the mean bits of the best plans with noise, both signs."""
        units = len(self.space.units)
        if len(history.values) == 0:
            return rng.standard_normal(units)
        best = np.argsort(-history.values, kind="stable")[:_PARENTS]
        worths: Array = history.plans[best].mean(axis=0) - 0.5 + 0.1 * rng.standard_normal(units)
        return worths


def swapped(parent: Bits, space: Space, rng: np.random.Generator, swaps: int) -> Bits | None:
    """Return a feasible child: some kept units dropped, others taken first, the rest filled up.

    Args:
        parent: a plan as bits.
        space: the feasible plans.
        rng: generator of the draws.
        swaps: how many units are dropped, and how many are preferred instead.
    """
    kept = [unit for unit, bit in enumerate(parent) if bit]
    skipped = [unit for unit, bit in enumerate(parent) if not bit]
    dropped = set(rng.permutation(kept)[:swaps].tolist())
    wanted = rng.permutation(skipped)[:swaps].tolist()
    stays = [unit for unit in kept if unit not in dropped]
    rest = rng.permutation([u for u in skipped if u not in wanted]).tolist()
    # a stand-in costs little or nothing: as filling it would always come back
    filling = [unit for unit in [*rest, *sorted(dropped)] if not space.units[unit].alone]
    return take([*wanted, *stays, *filling], space)
