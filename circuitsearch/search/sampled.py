"""Rank the best part of a space that is too large to list: a random sample, then a swap search."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from circuitsearch.core.errors import ConfigError, number_problems, raise_together
from circuitsearch.core.files import seed_from
from circuitsearch.core.plan import Plan
from circuitsearch.search.elastic import drawn
from circuitsearch.search.knapsack import greedy
from circuitsearch.search.space import Bits, Space

__all__ = ["sampled"]

_Changes = tuple[tuple[int, int], ...]
"""Units with their new bits."""

_FRONT = 8
"""Best plans whose neighbours a round of the swap search may try."""
_ROUND = 128
"""Neighbours that a round tries."""
_MISSES = 1000
"""Draws in a row that give known plans before the random sample is left smaller."""
_RIDGE = 1.0


def sampled(
    space: Space,
    values: Callable[[Sequence[Plan]], Sequence[float]],
    *,
    sample: int,
    swaps: int,
    seed: int,
) -> list[tuple[Plan, float]]:
    """Rank a part of a space: a random sample, then what swaps find from its best.

    Every round of the search tries 128 plans that were not met before. A ridge regression of all
    values met on the units says what looks best, and the round takes

    * half: the best-looking swaps of the eight best plans so far. A swap keeps one unit more or
      less, exchanges one unit for another, has one sub-layer skipped, replaced or kept whole, or
      replaces a whole beginning;
    * a quarter: greedy knapsacks of the regression's worths with noise, to leave local optima;
    * a quarter: random swaps, because the values need not add up.

    Args:
        space: the plans.
        values: judges plans, smaller is better; called with plans that it has not met.
        sample: random feasible plans (`elastic.drawn`).
        swaps: plans that the swap search may try beside them.
        seed: of the sample and of the neighbours; the same seed and values give the same plans.

    Returns:
        All plans met with their values, best first, no plan twice.

    Raises:
        ConfigError: `sample` is below 1 or `swaps` below 0.
        InfeasibleError: no plan fits the budget.
    """
    problems = number_problems("sample", sample, low=1) + number_problems("swaps", swaps, low=0)
    raise_together(problems, ConfigError, "Ranking a sample of plans")
    space.check()
    known: dict[Bits, float] = {}

    def meet(some: Sequence[Bits]) -> None:
        known.update(zip(some, values([space.plan(bits) for bits in some]), strict=True))

    meet(_random_plans(space, sample, seed))
    last = len(known) + swaps
    for turn in itertools.count():
        tried = _round(space, known, min(_ROUND, last - len(known)), seed_from(seed, turn))
        if not tried:
            break
        meet(tried)
    ranked = sorted(known.items(), key=lambda row: (row[1], row[0]))
    return [(space.plan(bits), value) for bits, value in ranked]


def _random_plans(space: Space, count: int, seed: int) -> list[Bits]:
    """Return different random feasible plans; fewer when draws keep giving known ones."""
    found: dict[Bits, None] = {}
    draw = missed = 0
    while len(found) < count and missed < _MISSES:
        bits = space.bits(drawn(space, seed_from(seed, "sample", draw)))
        draw, missed = draw + 1, missed + 1 if bits in found else 0
        found[bits] = None
    return list(found)


def _round(space: Space, known: Mapping[Bits, float], count: int, seed: int) -> list[Bits]:
    """Return at most `count` feasible plans, not met before (see `sampled`)."""
    if count <= 0:
        return []
    worths = _worths(known)
    chooser = random.Random(seed)
    front = sorted(known, key=lambda bits: (known[bits], bits))[:_FRONT]
    swaps = [
        (known[bits] + sum(worths[unit] * (2 * bit - 1) for unit, bit in changes), place, changes)
        for place, bits in enumerate(front)
        for changes in _changes(space, bits)
    ]
    ordered, shuffled = sorted(swaps), chooser.sample(swaps, len(swaps))
    tried: dict[Bits, None] = {}
    for source, share in (
        (_swapped(space, front, ordered), 0.5),
        (_filled(space, worths, chooser, count), 0.75),
        (_swapped(space, front, shuffled), 1.0),
    ):
        for bits in source:
            if len(tried) >= share * count:
                break
            if bits not in known:
                tried[bits] = None
    return list(tried)


def _swapped(
    space: Space, front: Sequence[Bits], swaps: Sequence[tuple[float, int, _Changes]]
) -> Iterator[Bits]:
    """Yield the feasible plans of swaps (predicted value, place in the front, changes)."""
    for _, place, changes in swaps:
        changed = dict(changes)
        bits = tuple(changed.get(unit, bit) for unit, bit in enumerate(front[place]))
        reads = any(bits[unit] for unit in space.required)
        if reads and space.obeys_rules(bits) and min(space.remaining(bits), default=0) >= 0:
            yield bits


def _filled(
    space: Space, worths: Sequence[float], chooser: random.Random, count: int
) -> Iterator[Bits]:
    """Yield greedy knapsacks of noisy worths; smaller values are better, so worths turn sign."""
    noise = float(np.std(worths))
    for _ in range(count):
        bits = greedy([-worth + chooser.gauss(0.0, noise) for worth in worths], space)
        if bits is not None:
            yield bits


def _worths(known: Mapping[Bits, float]) -> list[float]:
    """Return what keeping each unit adds to the value: ridge regression on all plans met."""
    bits = np.array(list(known), dtype=np.float64)
    values = np.array(list(known.values()))
    bits, values = bits - bits.mean(axis=0), values - values.mean()
    gram = bits.T @ bits + _RIDGE * np.eye(bits.shape[1])
    worths: list[float] = np.linalg.solve(gram, bits.T @ values).tolist()
    return worths


def _changes(space: Space, bits: Bits) -> Iterator[_Changes]:
    """Yield swaps as changed units with their new bits; some lead to no feasible plan."""
    kept = [unit for unit, bit in enumerate(bits) if bit]
    free = [unit for unit, bit in enumerate(bits) if not bit]
    for unit, bit in enumerate(bits):
        yield ((unit, 1 - bit),)
    for out in kept:
        for taken in free:
            yield ((out, 0), (taken, 1))
    for part in space.parts:
        alone = [unit for unit in part.indices if space.units[unit].alone]
        own = [unit for unit in part.indices if not space.units[unit].alone]
        for chosen in ([], own, *([unit] for unit in alone)):
            new = ((unit, int(unit in chosen)) for unit in part.indices)
            yield tuple((unit, bit) for unit, bit in new if bit != bits[unit])
        for prefix in (unit for unit in alone if space.units[unit].prefix):
            new = ((unit, int(unit == prefix)) for unit in range(part.indices.stop))
            yield tuple((unit, bit) for unit, bit in new if bit != bits[unit])
