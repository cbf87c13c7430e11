"""A plan from elsewhere in a space: as much of it as there is to choose, and always feasible."""

from __future__ import annotations

import random

import pytest

from circuitsearch.core.budget import LimitSpec
from circuitsearch.core.errors import InfeasibleError
from circuitsearch.core.plan import Plan
from circuitsearch.search.elastic import drawn
from circuitsearch.search.nearest import nearest
from circuitsearch.search.space import Space
from circuitsearch.search.units import Choices
from tests.search_fixtures import make_space

ORDER = {f"{kind}{layer}": (2, 0, 3, 1) for kind in "SC" for layer in range(4)}
SPACES = {
    "whole": Choices(),
    "counts": Choices("counts", (4, 8, 12), heads=ORDER),
    "heads": Choices("heads", (4, 8, 12)),
    "replaced": Choices("counts", (4, 8), ("mean", "alone", "token"), ORDER),
}


def kept(space: Space, plan: Plan) -> set[str]:
    return {name for name, bit in zip(space.names, space.bits(plan), strict=True) if bit}


@pytest.mark.parametrize("name", SPACES)
def test_a_plan_of_the_space_keeps_everything_and_fills_up(name: str) -> None:
    space = make_space("31.25%", choices=SPACES[name])
    worths = [random.Random(unit).random() for unit in range(len(space.units))]
    for seed in range(40):
        plan = drawn(space, seed)
        near = nearest(plan, space, worths)
        assert space.feasible(near)
        assert kept(space, plan) <= kept(space, near)
        assert nearest(near, space, worths) == near


@pytest.mark.parametrize("name", SPACES)
def test_any_plan_comes_back_feasible(name: str) -> None:
    space = make_space("20%", choices=SPACES[name])
    free = make_space(choices=Choices("heads", tuple(range(1, 16))))
    nothing = [-1.0] * len(space.units)
    for seed in range(40):
        assert space.feasible(nearest(drawn(free, seed), space, nothing))


def test_stand_ins_of_no_worth_are_not_put_in() -> None:
    space = make_space("31.25%", choices=SPACES["replaced"])
    worths = [-1.0 if unit.alone else 1.0 for unit in space.units]
    free = make_space("31.25%", choices=SPACES["counts"])
    alone = {unit.name for unit in space.units if unit.alone}
    assert alone
    for seed in range(40):
        assert not kept(space, nearest(drawn(free, seed), space, worths)) & alone


def test_heads_are_as_many_or_the_same_and_widths_the_next_smaller() -> None:
    plan = Plan.parse("S0[1] M0:11 C3[0-1]")
    for name, expected in (("counts", "S0[2] M0:8 C3[0,2]"), ("heads", "S0[1] M0:8 C3[0-1]")):
        wide = make_space("100%", choices=SPACES[name])
        left = wide.capacity[0] - wide.remaining(wide.bits(Plan.parse(expected)))[0]
        exactly = LimitSpec("parameters", str(wide.allowed[0] - wide.capacity[0] + left))
        space = make_space(exactly, choices=SPACES[name])
        assert str(nearest(plan, space, [0.0] * len(space.units))) == expected


def test_what_is_left_goes_to_the_most_worthy_units() -> None:
    space = make_space("31.25%")
    plan = Plan.parse("C3")
    worths = [1.0 if name == "M2" else 0.0 for name in space.names]
    assert "M2" in kept(space, nearest(plan, space, worths))


def test_an_impossible_budget_is_refused() -> None:
    space = make_space("1%")
    with pytest.raises(InfeasibleError):
        nearest(Plan.parse("C3"), space, [0.0] * len(space.units))
