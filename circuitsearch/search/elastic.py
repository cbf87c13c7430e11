"""Which plan trains at which step of the elastic teacher.

The elastic teacher is a copy of the teacher's decoder that is distilled under another plan at every
step, so that every plan is partly adapted. A *rule* says which: a pure function of the step, so
that a training can be resumed. Rules are rows of `RULES`, one function each:

    uniform   every feasible plan equally often (LayerDrop, arXiv 1909.11556; once-for-all's plain
              sampling, arXiv 1908.09791)
    sandwich  in turn one of the largest plans, one of the smallest and two uniform ones (the
              sandwich rule of arXiv 1903.05134, one network per step instead of all in one step)
    weighted  plans of large worth more often: P ~ exp(z), z the standardised sum of unit worths
    even      every unit is kept equally often, as far as the budget allows: P ~ exp(sum of h_u over
              kept units u), with h fitted to that. Under `uniform` a dear unit is kept at few
              steps, and plans with it are adapted less than others. Of numbers of heads and of
              widths, every number is. Units that stand for a whole beginning (`C0=token`) count as
              one together: they exclude each other

A space of more than `LISTED` plans is never listed. There, a plan is drawn by taking units in
random order as long as they fit (`drawn`), which favours plans that use up the budget; `weighted`
and `even` let units of large worth or h come first.
"""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Callable, Sequence
from itertools import accumulate
from math import exp, log

import numpy as np
from numpy.typing import NDArray

from circuitsearch.core.errors import ConfigError, InfeasibleError, choice_problem
from circuitsearch.core.files import seed_from
from circuitsearch.core.plan import Plan
from circuitsearch.search.knapsack import take
from circuitsearch.search.space import Bits, Space

__all__ = ["LISTED", "RULES", "PlanOfStep", "drawn", "plan_of_step"]

LISTED = 20_000
"""Spaces of at most so many feasible plans are listed, larger ones are drawn from."""
_LARGE_DRAWS = 8
"""Random plans of which the largest stands for the largest of all, in a space not listed."""

_FITTED_ROUNDS = 2000
_RARE, _STEEPEST = 1e-9, 20.0  # units that no plan can keep must not blow the fit up
_DRAWN_ROUNDS, _DRAWS = 8, 128
"""Rounds in which `even` is fitted to a space not listed, and draws of each."""

PlanOfStep = Callable[[int], Plan]
"""The plan of a step, from 0; a pure function."""
Rule = Callable[[Space, int, Sequence[float]], PlanOfStep]


def plan_of_step(
    rule: str, space: Space, seed: int, worths: Sequence[float] | None = None
) -> PlanOfStep:
    """Return the plans of an elastic training.

    Args:
        rule: a name in `RULES`.
        space: which plans are feasible.
        seed: of the draws.
        worths: worth of each unit, asked for by `weighted`; shape [units].

    Raises:
        ConfigError: an unknown rule, or `weighted` without one finite worth per unit.
        InfeasibleError: no plan fits the budget.
    """
    if rule not in RULES:
        raise ConfigError(choice_problem("elastic rule", rule, list(RULES)))
    given = [0.0] * len(space.units) if worths is None else [float(worth) for worth in worths]
    missing = rule == "weighted" and worths is None
    if missing or len(given) != len(space.units) or not np.isfinite(given).all():
        raise ConfigError(
            f"elastic rule {rule!r}: got {'no' if worths is None else len(given)} worths, allowed "
            f"is one finite number per unit ({', '.join(space.names)}); pass the scores' worths or "
            "take the rule 'uniform'"
        )
    space.check()
    return RULES[rule](space, seed, given)


def drawn(space: Space, seed: int, heights: Sequence[float] | None = None) -> Plan:
    """Return a random feasible plan of a space of any size.

    Units are taken in random order as long as they fit. A random number of them is offered, so
    that plans also differ in size where the budget does not bind.

    Args:
        space: which plans are feasible.
        seed: of the draw.
        heights: one per unit; the order is that of height plus Gumbel noise. None: all equal.

    Raises:
        InfeasibleError: no plan fits the budget.
    """
    chooser = random.Random(seed_from(seed))
    heights = [0.0] * len(space.units) if heights is None else heights
    noisy = [height - log(-log(1.0 - chooser.random() + 1e-300) + 1e-300) for height in heights]
    order = sorted(range(len(noisy)), key=lambda unit: -noisy[unit])
    offered = order[: chooser.randint(1, len(order))]
    bits = take(offered, space)
    bits = take(order, space) if bits is None else bits
    if bits is None:
        raise InfeasibleError("No plan fits the budget; raise it")
    return space.plan(bits)


def _uniform(space: Space, seed: int, worths: Sequence[float]) -> PlanOfStep:
    if space.exceeds(LISTED):
        return lambda step: drawn(space, seed_from(seed, step))
    plans = list(space.enumerate())
    return lambda step: plans[seed_from(seed, step) % len(plans)]


def _sandwich(space: Space, seed: int, worths: Sequence[float]) -> PlanOfStep:
    uniform = _uniform(space, seed, worths)
    largest, smallest = _ends(space, seed)

    def plan(step: int) -> Plan:
        turn = step % 4
        return largest(step) if turn == 0 else smallest(step) if turn == 1 else uniform(step)

    return plan


def _weighted(space: Space, seed: int, worths: Sequence[float]) -> PlanOfStep:
    if space.exceeds(LISTED):
        scaled = _standardised(worths)
        return lambda step: drawn(space, seed_from(seed, step), scaled)
    plans = list(space.enumerate())
    totals = [float(np.dot(worths, space.bits(plan))) for plan in plans]
    heights = list(accumulate(exp(height) for height in _standardised(totals)))
    top = heights[-1]

    def plan(step: int) -> Plan:
        share = seed_from(seed, step) / 2**63
        return plans[min(bisect(heights, share * top), len(plans) - 1)]

    return plan


def _even(space: Space, seed: int, worths: Sequence[float]) -> PlanOfStep:
    if space.exceeds(LISTED):
        heights = _even_heights(space, seed)
        return lambda step: drawn(space, seed_from(seed, step), heights)
    plans = list(space.enumerate())
    bits = np.array([space.bits(plan) for plan in plans], dtype=np.float64)
    levels = np.zeros(bits.shape[1])
    chances = np.full(len(plans), 1 / len(plans))
    parts = _even_parts(space)
    wanted = bits.mean()  # the budget decides at which share all units meet
    for _ in range(_FITTED_ROUNDS):
        often = np.maximum(chances @ bits, _RARE)
        levels = np.clip(levels + 0.5 * np.log(wanted * parts / often), -_STEEPEST, _STEEPEST)
        wanted = often.sum() / parts.sum()
        chances = np.exp(bits @ levels)
        chances /= chances.sum()
    totals: list[float] = np.cumsum(chances).tolist()

    def plan(step: int) -> Plan:
        share = seed_from(seed, step) / 2**63
        return plans[min(bisect(totals, share * totals[-1]), len(plans) - 1)]

    return plan


def _even_parts(space: Space) -> NDArray[np.float64]:
    """Return how often each unit is kept when a common one is kept once; shape [units].

    Of a chain (numbers of heads, widths) all levels are equally frequent: step k of n is kept at n
    - k + 1 of the n. Kept equally often, the steps would hardly ever be told apart.

    Units that stand for a whole beginning exclude each other and the whole beginning. Each of them
    kept as often as any other unit would leave hardly anything kept, so they share one's turn.
    """
    prefixes = sum(unit.prefix for unit in space.units)
    shares = []
    for part in space.parts:
        steps = sum(not unit.alone for unit in part.units)
        for place, unit in enumerate(part.units):
            in_chain = not (part.free or unit.alone)
            share = 1 - place / steps if in_chain else 1.0
            shares.append(1 / prefixes if unit.prefix else share)
    return np.array(shares)


def _even_heights(space: Space, seed: int) -> list[float]:
    """Return heights of units under which draws of a large space keep them about equally often."""
    levels, parts = np.zeros(len(space.units)), _even_parts(space)
    for turn in range(_DRAWN_ROUNDS):
        draws = [
            space.bits(drawn(space, seed_from(seed, "even", turn, draw), levels.tolist()))
            for draw in range(_DRAWS)
        ]
        often = np.maximum(np.mean(draws, axis=0), 0.5 / _DRAWS)
        wanted = often.sum() / parts.sum()
        levels = np.clip(levels + 0.5 * np.log(wanted * parts / often), -_STEEPEST, _STEEPEST)
    heights: list[float] = levels.tolist()
    return heights


def _ends(space: Space, seed: int) -> tuple[PlanOfStep, PlanOfStep]:
    """Return what draws one of the largest and one of the smallest plans at a step.

    Size is the sum of a plan's shares of all limits, or its number of units without limits.
    """
    if not space.exceeds(LISTED):
        sizes = {plan: _size(space, space.bits(plan)) for plan in space.enumerate()}
        ends = []
        for end in (max(sizes.values()), min(sizes.values())):
            alike = [plan for plan, size in sizes.items() if abs(size - end) < 1e-9]
            ends.append(lambda step, alike=alike: alike[seed_from(seed, step) % len(alike)])
        return ends[0], ends[1]
    least = space.smallest()[0]

    def largest(step: int) -> Plan:
        draws = [drawn(space, seed_from(seed, step, draw)) for draw in range(_LARGE_DRAWS)]
        return max(draws, key=lambda plan: _size(space, space.bits(plan)))

    return largest, lambda step: least


def _size(space: Space, bits: Bits) -> float:
    """Return how much of the budget a plan takes (see `_ends`)."""
    if not space.limits:
        return float(sum(bits))
    rest = space.remaining(bits)
    pairs = zip(space.capacity, rest, strict=True)
    return sum((have - left) / max(have, 1) for have, left in pairs)


def _standardised(values: Sequence[float]) -> list[float]:
    """Return values with mean 0 and deviation 1; all 0 when they do not differ."""
    array = np.asarray(values, dtype=np.float64)
    deviation = float(array.std())
    if deviation == 0:
        return [0.0] * len(array)
    scaled: list[float] = ((array - array.mean()) / deviation).tolist()
    return scaled


RULES: dict[str, Rule] = {
    "uniform": _uniform,
    "sandwich": _sandwich,
    "weighted": _weighted,
    "even": _even,
}
"""Rules by name; the module docstring says what each does."""
