"""A plan from elsewhere, as near as a space comes to it."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from circuitsearch.core.errors import InfeasibleError
from circuitsearch.core.keep import Keep
from circuitsearch.core.plan import Plan

from .knapsack import take
from .space import Space
from .units import Part

__all__ = ["nearest"]


def nearest(plan: Plan, space: Space, worths: Sequence[float]) -> Plan:
    """Return the feasible plan that keeps what another plan keeps, as far as it is a choice.

    Of free heads these are the same ones, where numbers of heads are the choice as many of the
    best; of neurons the next smaller width. What that leaves of the budget goes to units in the
    order of their worths. A plan of the space that leaves no room for more comes back as it is.

    Args:
        plan: any plan of the decoder, feasible or not.
        space: the plans to choose from.
        worths: worth of each unit, in the order of the bits.

    Raises:
        InfeasibleError: no plan fits the budget.
        PlanError: the plan does not fit the decoder.
    """
    fitted = plan.fitted(space.shape.decoder)
    wanted: list[int] = []
    for part in space.parts:
        keep = fitted.keep(part.sublayer)
        wanted += [] if keep is None else _units(part, keep)
    # a stand-in costs little or nothing, so it would always fit
    spare = {u for u, unit in enumerate(space.units) if not unit.alone or worths[u] > 0}
    further = sorted(spare - {*wanted}, key=lambda u: (-worths[u], u))
    bits = take([*wanted, *further], space)
    if bits is None:
        raise InfeasibleError("No plan fits the budget; raise it")
    return space.plan(bits)


def _units(part: Part, keep: Keep) -> list[int]:
    """Return the units of a part that together keep at most this of its sub-layer."""
    units = [*zip(part.indices, part.units, strict=True)]
    if keep.replacement is not None:
        return [index for index, unit in units if unit.keep == keep]
    own = [(index, unit.keep) for index, unit in units if not unit.alone]
    if part.free and keep.heads is not None:
        return [index for index, one in own if set(one.heads or ()) <= set(keep.heads)]
    return [index for index, one in own if _amount(one) <= _amount(keep) or part.free]


def _amount(keep: Keep) -> float:
    """Return how many heads or neurons are kept; infinitely many of a whole sub-layer."""
    if keep.heads is not None:
        return len(keep.heads)
    return inf if keep.width is None else keep.width
