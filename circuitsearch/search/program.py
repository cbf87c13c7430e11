"""The integer program of `knapsack`, written for HiGHS and solved once.

Variables are the bits x of the units, then one z per part of free heads (1 as soon as a head of it
stays), then one y per interaction. Both z and y are continuous: at an optimum the rows alone push
them to 0 or 1.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from circuitsearch.core.errors import CircuitSearchError
from circuitsearch.search.space import Bits, Space

__all__ = ["Interaction", "solve_once"]

Interaction = tuple[tuple[int, ...], float]
"""Indices of units, and what they are worth if all of them stay."""

_SCALE = 1e6
"""Largest value as the solver sees it. Its absolute gap of 1e-6 is then 1e-12 of that value, which
resolves the tie-breaks; at a scale of 1 it stops up to 1e-6 short of the optimum."""
_COEFFICIENT = 10**6
"""Largest coefficient of a limit's row; larger ones are scaled down for the solver."""
_INFEASIBLE = 2  # scipy.optimize.milp's status


@dataclass
class _Rows:
    """Rows of the program: low <= sum of coefficient * variable <= high."""

    entries: list[tuple[int, int, float]] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def add(self, terms: dict[int, float], *, low: float = -np.inf, high: float = np.inf) -> None:
        """Add one row."""
        self.entries += [(len(self.low), column, number) for column, number in terms.items()]
        self.low.append(low)
        self.high.append(high)

    def constraint(self, variables: int) -> LinearConstraint:
        """Return all rows for the solver."""
        rows, columns, numbers = (np.array(part) for part in zip(*self.entries, strict=True))
        table = coo_array((numbers, (rows, columns)), shape=(len(self.low), variables))
        return LinearConstraint(table.tocsr(), np.array(self.low), np.array(self.high))


def solve_once(
    worths: NDArray[np.float64],
    space: Space,
    cuts: Sequence[tuple[Bits, int]],
    interactions: Sequence[Interaction] = (),
) -> Bits | None:
    """Return the program's optimum as bits; None when no point satisfies all rows.

    Args:
        worths: worth of each unit; shape [units].
        space: units, costs, limits and rules.
        cuts: plans with the distance that the answer keeps from each.
        interactions: see `Interaction`.

    Raises:
        CircuitSearchError: the solver failed.
    """
    units = len(space.units)
    opened = [place for place, part in enumerate(space.parts) if part.free]
    variables = units + len(opened) + len(interactions)
    rows = _Rows()
    _add_limits(rows, space, opened)
    _add_rules(rows, space, opened)
    for place, (members, worth) in enumerate(interactions):
        _add_interaction(rows, units + len(opened) + place, members, worth)
    for plan, apart in cuts:
        terms = {unit: 1.0 - 2.0 * bit for unit, bit in enumerate(plan)}
        rows.add(terms, low=float(apart - sum(plan)))
    objective = np.zeros(variables)
    objective[:units] = -_SCALE * worths
    objective[units + len(opened) :] = [-_SCALE * worth for _, worth in interactions]
    with _stdout_kept_clean():
        result = milp(
            objective,
            constraints=rows.constraint(variables),
            integrality=np.arange(variables) < units,
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0},
        )
    if result.status == _INFEASIBLE:
        return None
    if result.x is None or result.status != 0:
        raise CircuitSearchError(f"The integer program was not solved: {result.message}")
    return tuple(int(value > 0.5) for value in result.x[:units])


def _add_limits(rows: _Rows, space: Space, opened: Sequence[int]) -> None:
    """Add one row per limit, scaled for the solver."""
    units = len(space.units)
    for limit, left in enumerate(space.capacity):
        prices = [int(price) for price in space.costs[limit]]
        prices += [int(space.openings[limit, place]) for place in opened]
        # Dividing by the common divisor loses nothing: sums of multiples stay below a number
        # exactly when they stay below its floor. Donut's parameters become 1, 1 and 2.
        divisor = math.gcd(*prices) or 1
        coefficients, bound = [price // divisor for price in prices], left // divisor
        scale = max(1.0, max(map(abs, coefficients)) / _COEFFICIENT)
        terms = {place: number / scale for place, number in enumerate(coefficients) if number}
        rows.add(terms or {units - 1: 0.0}, high=bound / scale)


def _add_rules(rows: _Rows, space: Space, opened: Sequence[int]) -> None:
    """Add the rules of units: reading the page, chains, replacements alone, open parts."""
    rows.add(dict.fromkeys(space.required, 1.0), low=1.0)
    prefixes = [i for i, unit in enumerate(space.units) if unit.prefix]
    column = {place: len(space.units) + at for at, place in enumerate(opened)}
    for place, part in enumerate(space.parts):
        alone = [i for i in part.indices if space.units[i].alone]
        own = [i for i in part.indices if not space.units[i].alone]
        for index in own:
            after = space.units[index].after
            if after is not None:
                rows.add({index: 1.0, after: -1.0}, high=0.0)
            if part.free:
                rows.add({index: 1.0, column[place]: -1.0}, high=0.0)
        later = [i for i in prefixes if i >= part.indices.stop]
        if part.units and (alone or later):
            # One variable that is 1 when the sub-layer itself stays, in part or whole.
            itself = column[place] if part.free else own[0]
            rows.add(dict.fromkeys([*alone, *later, itself], 1.0), high=1.0)


def _add_interaction(rows: _Rows, column: int, members: Sequence[int], worth: float) -> None:
    """Add the rows that tie one interaction to its units."""
    if worth >= 0:  # the objective pushes y up
        for unit in members:
            rows.add({column: 1.0, unit: -1.0}, high=0.0)
    else:  # and here down
        rows.add({column: 1.0, **dict.fromkeys(members, -1.0)}, low=1.0 - len(members))


@contextlib.contextmanager
def _stdout_kept_clean() -> Iterator[None]:
    """Send what the solver writes to standard output to standard error instead.

    HiGHS prints a leftover debugging line from C++ in about 1 of 200 programs, whatever its output
    options say (jump-dev/HiGHS.jl#312); standard output belongs to the command's data.
    """
    try:
        saved = os.dup(1)
    except OSError:  # no standard output to protect
        yield
        return
    try:
        sys.stdout.flush()
        os.dup2(2, 1)
        yield
    finally:
        # C buffers its output apart from Python: empty that buffer before the way is put back.
        if os.name == "posix":
            ctypes.CDLL(None).fflush(None)
        os.dup2(saved, 1)
        os.close(saved)
