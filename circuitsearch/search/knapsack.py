"""Best plans under a budget when the worths of units add up: a knapsack with several limits.

Given one value per unit, `solve` finds the feasible plan of largest total value by integer
programming (HiGHS through `scipy.optimize.milp`):

    maximise   sum_i value[i] x[i] + sum_t worth[t] y[t],   x[i] in {0, 1}
    subject to sum_i cost[b, i] x[i] + sum_p opening[b, p] z[p] <= capacity[b]   for every limit b
               x[i] <= x[j] where unit i is the step after j,  z[p] >= x[i] for the heads i of p
               x[i] + x[j] <= 1 where unit i is a replacement and j another unit of its sub-layer,
                                or i stands for a whole beginning (`token`) and j lies in it
               sum over the units that read the page of x[i] >= 1        (a legal student)
               y[t] <= x[i] for every unit i of interaction t; y[t] >= sum x[i] - size + 1
               sum_{i: y[i]=1} (1 - x[i]) + sum_{i: y[i]=0} x[i] >= d   (distance d from a plan y)

An *interaction* is worth something only when all of its units stay: an edge of the circuit graph
with both ends, or a path. The last row with d = 1 is a *no-good cut*: it forbids exactly the plan
y. A larger d keeps the plans of a warm-start `pool` apart. `greedy` answers the rows without
interactions within microseconds, not always optimally; the sampler's random draws use it, as a
draw need not be an exact optimum.

A floating-point solver meets rows only within a tolerance (and SciPy's can return a point that
violates one, scipy/scipy#24141). So its answer is rounded and verified in integers, and a point
beyond a limit is cut off and the program solved again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from circuitsearch.core.errors import CircuitSearchError, ConfigError
from circuitsearch.core.files import seed_from
from circuitsearch.core.plan import Plan
from circuitsearch.search.program import Interaction, solve_once
from circuitsearch.search.space import Bits, Space

__all__ = [
    "Predicted",
    "best_within",
    "greedy",
    "pool",
    "solve",
    "sweep_budget",
    "take",
    "tie_broken",
    "total",
]

_SHARES = (10, 20, 30, 40, 50, 60, 70, 80, 90, 100)
"""Shares of the budget, in percent, that a predicted curve has points at."""


_TIE = 1e-9
"""Largest worth of a tie-break, relative to the largest value: decides ties and nothing else."""


def solve(
    values: ArrayLike,
    space: Space,
    forbidden: Sequence[Sequence[int]] = (),
    *,
    interactions: Sequence[Interaction] = (),
    distance: int = 1,
) -> Bits | None:
    """Return the feasible plan of largest total value, exactly.

    Ties (total values equal within 1e-9 of the largest value) are broken by fixed worths per
    position (`tie_broken`), so the answer does not depend on the solver's path.

    Args:
        values: worth of each unit, any sign; shape [units]. Units worth less than nothing are kept
            only where legality, a distance, a later step or an interaction asks for them.
        space: units, costs, limits and legality.
        forbidden: plans as bits; the answer differs from each of them.
        interactions: worths of units that stay together.
        distance: by how many units the answer differs from each forbidden plan, at least.

    Returns:
        The plan's bits, or None when no plan satisfies all rows.

    Raises:
        ConfigError: a value is not finite, or there is not one per unit.
        CircuitSearchError: the solver failed.
    """
    array = _checked(values, space)
    size = _size(array, interactions)
    worths = tie_broken(array, size)
    scaled = [(members, worth / size) for members, worth in interactions if size > 0 and worth]
    cuts = [(tuple(int(bit) for bit in plan), distance) for plan in forbidden]
    while True:
        bits = solve_once(worths, space, cuts, scaled)
        if bits is None:
            return None
        if any(_differences(bits, plan) < apart for plan, apart in cuts):
            raise CircuitSearchError(
                f"The integer program returned the excluded plan {str(space.plan(bits))!r}: "
                "the HiGHS solver of the installed SciPy is faulty, try another SciPy version"
            )
        if min(space.remaining(bits), default=0) >= 0 and space.obeys_rules(bits):
            return bits
        # Beyond a limit by less than the solver's tolerance: cut this point off, solve again.
        cuts.append((bits, 1))


def total(
    bits: Sequence[int], values: ArrayLike, interactions: Sequence[Interaction] = ()
) -> float:
    """Return what a plan is worth: its units, and the interactions whose units all stay."""
    found = float(np.dot(np.asarray(values, dtype=np.float64), bits))
    return found + sum(worth for units, worth in interactions if all(bits[i] for i in units))


def tie_broken(values: ArrayLike, size: float | None = None) -> NDArray[np.float64]:
    """Return the values scaled to at most 1 in size, plus a fixed tiny worth per position.

    The fixed worths reach 1e-9 at most. They are irregular numbers, so that sums of different
    units differ: equally good plans get an order, and it is the same on every run.

    Args:
        values: worth of each unit.
        size: what to divide by; the largest value when None.
    """
    array = np.asarray(values, dtype=np.float64)
    size = float(np.abs(array).max(initial=0.0)) if size is None else size
    scaled = array / size if size > 0 else np.zeros_like(array)
    worths = [seed_from("tie-break", index) / 2**63 for index in range(len(array))]
    return scaled + _TIE * np.array(worths)


def greedy(values: ArrayLike, space: Space, *, fill: bool = True) -> Bits | None:
    """Return a feasible plan by taking units in order of value per cost, as long as they fit.

    The cost of a unit is the sum of its shares of every limit. A unit that stands for a whole
    beginning costs next to nothing but excludes all units in it, which no such order can weigh:
    the plan without any and one for each of positive value are made, and the best is returned.

    Args:
        values: worth of each unit, any sign; shape [units].
        space: units, costs, limits and legality.
        fill: also take units of no or negative value, until nothing more fits. Replacements of
            no or negative value are left out all the same: they fill no budget worth filling.

    Returns:
        The plan's bits, or None when no plan is feasible.

    Raises:
        ConfigError: a value is not finite, or there is not one per unit.
    """
    worths = _checked(values, space)
    order: list[int] = np.argsort(-worths / _shares(space), kind="stable").tolist()
    prefixes = [unit for unit in order if space.units[unit].prefix]
    rest = [unit for unit in order if not space.units[unit].prefix]
    firsts = [[], *([unit] for unit in prefixes if worths[unit] > 0)]
    plans = [_ordered([*first, *rest], worths, space, fill) for first in firsts]
    found = [bits for bits in plans if bits is not None]
    return max(found, key=lambda bits: total(bits, worths), default=None)


def _ordered(
    order: Sequence[int], worths: NDArray[np.float64], space: Space, fill: bool
) -> Bits | None:
    """Return the plan that takes units in the given order; see `greedy`."""
    if fill:
        return take([i for i in order if worths[i] > 0 or not space.units[i].alone], space)
    wanted = [unit for unit in order if worths[unit] > 0]
    # Without a wanted cross-attention a plan still needs one: the best affordable of the others.
    spare = [[unit] for unit in order if unit in space.required and unit not in wanted]
    plans = (take(wanted + extra, space) for extra in ([], *spare))
    found = (bits for bits in plans if bits is not None)
    if any(space.units[unit].prefix for unit in wanted):
        # The best affordable one may lie in the beginning, which would then win over its stand-in.
        return max(found, key=lambda bits: total(bits, worths), default=None)
    return next(found, None)


def take(order: Sequence[int], space: Space) -> Bits | None:
    """Return the feasible plan that takes units in the given order, as long as they fit.

    A unit is passed over when it does not fit, when its sub-layer is kept in another way already,
    when a unit taken before stands for the whole beginning that it lies in (or the other way
    round), or when with it no cross-attention could be afforded any more. A step of a chain whose
    predecessor comes later in the order is taken right after it. Units that `order` does not name
    are skipped.
    """
    taking = _Taking(order, space)
    if not taking.completable(space.capacity, reads=False, place=0):
        return None
    waiting: dict[int, list[int]] = {}
    for place, unit in enumerate(order):
        ready = [unit]
        while ready:
            one = ready.pop(0)
            after = space.units[one].after
            if after is not None and not taking.bits[after]:
                waiting.setdefault(after, []).append(one)
            elif taking.offer(one, place + 1):
                ready += waiting.pop(one, [])
    return tuple(taking.bits)


class _Taking:
    """A plan that grows unit by unit and can always be completed."""

    def __init__(self, order: Sequence[int], space: Space) -> None:
        self.bits = [0] * len(space.units)
        self._space = space
        self._remaining = space.capacity
        self._reads = False
        # What reading the page costs, by the place in the order from which it is still possible.
        none = [0] * len(space.units)
        self._readers = [
            (place, unit, space.price(unit, none))
            for place, unit in enumerate(order)
            if unit in space.required
        ]
        self._closed: set[int] = set()

    def completable(self, remaining: Sequence[int], *, reads: bool, place: int) -> bool:
        """Whether units from `place` on can make the plan legal within what remains."""
        if min(remaining, default=0) < 0:
            return False
        return reads or any(
            at >= place
            and self._space.part_of(unit) not in self._closed
            and all(have >= need for have, need in zip(remaining, price, strict=True))
            for at, unit, price in self._readers
        )

    def offer(self, unit: int, place: int) -> bool:
        """Take a unit if it fits and leaves a legal plan within reach; return whether it did."""
        space, part = self._space, self._space.part_of(unit)
        alone, prefix = space.units[unit].alone, space.units[unit].prefix
        # What the unit excludes: nothing, its own part, or all parts up to it.
        excluded = range(0 if prefix else part, part + 1 if alone else part)
        if part in self._closed or any(
            self.bits[i] for place in excluded for i in space.parts[place].indices
        ):
            return False
        price = space.price(unit, self.bits)
        left = tuple(have - need for have, need in zip(self._remaining, price, strict=True))
        reads = self._reads or space.units[unit].reads
        open_before = set(excluded) - self._closed
        self._closed |= open_before
        if not self.completable(left, reads=reads, place=place):
            self._closed -= open_before
            return False
        self.bits[unit], self._remaining, self._reads = 1, left, reads
        return True


def pool(
    values: ArrayLike,
    space: Space,
    size: int,
    distance: int | None = None,
    interactions: Sequence[Interaction] = (),
) -> list[Plan]:
    """Return good plans that differ from each other, best first where the budget is the full one.

    Every third plan may use only 98 % of the budget, so that the plans also differ in size.

    Args:
        values: worth of each unit; shape [units].
        space: units, costs, limits and legality.
        size: largest number of plans.
        distance: by how many units any two plans differ, at least; one in twenty when None.
        interactions: worths of units that stay together.

    Returns:
        At most `size` feasible plans; fewer when the space holds no more at that distance.

    Raises:
        ConfigError: `size` or `distance` is below 1, or the values do not fit the space.
    """
    apart = max(1, len(space.units) // 20) if distance is None else distance
    if size < 1 or apart < 1:
        raise ConfigError(f"Pool: got size {size} and distance {apart}, allowed are 1 and above")
    found: list[Bits] = []
    while len(found) < size:
        bits = None
        if len(found) % 3 == 2:
            smaller = space.within(98)
            bits = solve(values, smaller, found, interactions=interactions, distance=apart)
        if bits is None:
            bits = solve(values, space, found, interactions=interactions, distance=apart)
        if bits is None:
            break
        found.append(bits)
    return [space.plan(bits) for bits in found]


class Predicted(NamedTuple):
    """The best plan of a part of the budget, as the values see it.

    Attributes:
        percent: share of every limit's capacity that may be used.
        plan: the plan.
        worth: what it is worth, in the unit of the values.
    """

    percent: int
    plan: Plan
    worth: float


def sweep_budget(
    values: ArrayLike,
    space: Space,
    percents: Sequence[int] = _SHARES,
    interactions: Sequence[Interaction] = (),
) -> list[Predicted]:
    """Return the predicted curve of worth against budget, before anything is trained.

    Shares of the budget that no legal student meets are left out.

    Raises:
        ConfigError: a value is not finite, or there is not one per unit.
    """
    found = []
    for percent in percents:
        bits = solve(values, space.within(percent), interactions=interactions)
        if bits is not None:
            found.append(Predicted(percent, space.plan(bits), total(bits, values, interactions)))
    return found


def best_within(
    ranking: Sequence[tuple[Plan, float]], space: Space, percents: Sequence[int] = _SHARES
) -> list[tuple[int, Plan, float]]:
    """Return the curve that a ranking predicts: its best plan at every share of the budget.

    Args:
        ranking: feasible plans with their losses, best first.
        space: their space.
        percents: shares of what units may cost together, of every limit.

    Returns:
        (percent, plan, loss) of every share within which the ranking has a plan.
    """
    found = []
    for percent in percents:
        part = space.within(percent)
        first = next(((plan, loss) for plan, loss in ranking if part.feasible(plan)), None)
        if first is not None:
            found.append((percent, *first))
    return found


def _checked(values: ArrayLike, space: Space) -> NDArray[np.float64]:
    """Return the values as an array; refuse a wrong number of them and anything not finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.shape != (len(space.units),):
        raise ConfigError(
            f"Values of units: got shape {array.shape}, allowed is one per unit "
            f"({len(space.units)}: {', '.join(space.names)})"
        )
    wrong = [name for name, value in zip(space.names, array, strict=True) if not np.isfinite(value)]
    if wrong:
        raise ConfigError(f"Values of units: {', '.join(wrong)} must be finite numbers")
    return array


def _size(values: NDArray[np.float64], interactions: Sequence[Interaction]) -> float:
    """Return the largest worth in size."""
    return max([float(np.abs(values).max(initial=0.0)), *(abs(worth) for _, worth in interactions)])


def _shares(space: Space) -> NDArray[np.float64]:
    """Return what each unit takes of all limits together; shape [units], above 0.

    A part of free heads shares its opening among its heads. Without limits, or for a unit that none
    of them counts, the least number keeps the order of values among such units and puts them where
    they belong: first if worth something.
    """
    capacity = np.array([max(left, 1) for left in space.capacity], dtype=np.float64)
    shares: NDArray[np.float64] = (space.costs / capacity[:, None]).sum(axis=0)
    opening = (space.openings / capacity[:, None]).sum(axis=0)
    for place, part in enumerate(space.parts):
        if part.free:
            shares[part.first : part.first + part.heads] += opening[place] / part.heads
    return np.maximum(shares, 1e-12)


def _differences(bits: Sequence[int], other: Sequence[int]) -> int:
    """Return the number of units that one of two plans keeps and the other skips."""
    return sum(one != two for one, two in zip(bits, other, strict=True))
