"""The exhaustive walk against running every plan on its own, with the calls counted."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable, Sequence

import pytest

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.errors import InfeasibleError
from circuitsearch.core.keep import Keep
from circuitsearch.core.plan import Plan
from circuitsearch.search.elastic import drawn
from circuitsearch.search.exhaustive import sweep
from circuitsearch.search.units import Choices
from tests.search_fixtures import limit, make_space


def step(state: float, sublayer: SubLayer, keep: Keep) -> float:
    """An arbitrary map that depends on the order of sub-layers and on their form, unlike a sum."""
    return (1.3 * state + sublayer.position + sum(map(ord, str(keep))) + 1.0) % 17.0


def literal(plans: Sequence[Plan]) -> list[tuple[Plan, float]]:
    """Every plan run from the start (the oracle)."""
    rows = []
    for plan in plans:
        state = 1.0
        for sublayer, keep in plan.kept:
            state = step(state, sublayer, keep)
        rows.append((plan, -state))
    return rows


class Counted:
    """Root, expand and leaf, with what they were called for."""

    def __init__(self) -> None:
        self.expanded: list[tuple[SubLayer, tuple[Keep, ...], bool]] = []
        self.picked = 0
        self.leaves = 0

    def expand(
        self, state: float, sublayer: SubLayer, keeps: tuple[Keep, ...], attended: bool
    ) -> Callable[[Keep], float]:
        self.expanded.append((sublayer, keeps, attended))

        def pick(keep: Keep) -> float:
            assert keep in keeps
            self.picked += 1
            return step(state, sublayer, keep)

        return pick

    def leaf(self, state: float) -> float:
        self.leaves += 1
        return -state


def beginnings(plans: Sequence[Plan]) -> set[tuple[tuple[SubLayer, Keep], ...]]:
    """All distinct non-empty beginnings of the plans."""
    return {plan.kept[:length] for plan in plans for length in range(1, len(plan.kept) + 1)}


CASES: list[tuple[tuple[object, ...], int, Choices | None]] = [
    ((), 2, None),
    (("31.25%",), 4, None),
    (("40%", limit("50%", "macs")), 4, None),
    (("6.25%",), 4, None),
    (("3%",), 24, None),
    (("10%",), 2, Choices(attention="heads", widths=(32, 64))),
    (("10%",), 2, Choices(attention="counts", replacements=("mean", "alone"))),
    (("40%",), 4, Choices(attention="counts", within=("S0", "C0", "S1", "C3"))),
]


@pytest.mark.parametrize(("limits", "layers", "choices"), CASES)
def test_values_order_and_number_of_steps(
    limits: tuple[str, ...], layers: int, choices: Choices | None
) -> None:
    space = make_space(*limits, layers=layers, choices=choices)
    plans = list(space.enumerate())
    calls = Counted()
    assert list(sweep(space, 1.0, calls.expand, calls.leaf)) == literal(plans)
    # every beginning is made once, and every sub-layer is run once for all its forms
    assert calls.picked == len(beginnings(plans))
    runs = {(one[:-1], one[-1][0]) for one in beginnings(plans)}
    assert len(calls.expanded) == len(runs)
    assert calls.leaves == len(plans) == space.count()


def test_any_plans_in_any_order() -> None:
    space = make_space("60%", choices=Choices(attention="heads", widths=(32,)))
    plans = [drawn(space, seed) for seed in range(300)]
    plans += [Plan(), Plan.parse("S0"), plans[0]]
    random.Random(0).shuffle(plans)
    calls = Counted()
    rows = list(sweep(plans, 1.0, calls.expand, calls.leaf))
    assert len(rows) == len(set(plans))
    assert dict(rows) == dict(literal(plans))
    assert rows[0] == (Plan(), -1.0)
    assert calls.picked == len(beginnings(plans))
    assert list(sweep([], 1.0, calls.expand, calls.leaf)) == []


def test_says_which_forms_follow_and_whether_a_self_attention_does() -> None:
    texts = ("S0 C0", "S0 C0 M0:3", "S0 C0 M0:3 S1[1]", "S0 C0 M0:8 C1", "S0 C0 M0:8 S1=linear")
    calls = Counted()
    list(sweep([Plan.parse(text) for text in texts], 1.0, calls.expand, calls.leaf))
    made = {
        str(sublayer): (sorted(map(str, keeps)), attended)
        for sublayer, keeps, attended in calls.expanded
    }
    assert made == {
        "S0": ([""], True),
        "C0": ([""], True),
        "M0": ([":3", ":8"], True),
        "S1": (["=linear"], False),  # met last: behind M0:8; behind M0:3 it is "[1]"
        "C1": ([""], False),
    }


def test_attended_is_whether_any_plan_below_keeps_a_self_attention() -> None:
    plans = list(make_space("40%").enumerate())

    def expand(
        state: tuple[SubLayer, ...], sublayer: SubLayer, keeps: tuple[Keep, ...], attended: bool
    ) -> Callable[[Keep], tuple[SubLayer, ...]]:
        new = (*state, sublayer)
        below = [plan.sublayers for plan in plans if plan.sublayers[: len(new)] == new]
        assert attended == any(
            one.kind is Kind.SELF for behind in below for one in behind[len(new) :]
        )
        return lambda keep: new

    assert sum(1 for _ in sweep(plans, (), expand, len)) == len(plans)


def test_sharing_on_the_whole_decoder() -> None:
    calls = Counted()
    plans = sum(1 for _ in sweep(make_space(), 0.0, calls.expand, calls.leaf))
    # The numbers of the module docstring; 12 * 2,048 kept units, less those of the plans without C.
    assert (plans, calls.picked) == (3840, 3967)
    assert sum(len(plan.sublayers) for plan in make_space().enumerate()) == 23_552


def test_an_impossible_budget_is_refused_before_any_step() -> None:
    calls = Counted()
    with pytest.raises(InfeasibleError):
        sweep(make_space("5%"), 0.0, calls.expand, calls.leaf)
    assert calls.expanded == []


def test_the_walk_is_lazy() -> None:
    calls = Counted()
    walk = sweep(make_space(), 1.0, calls.expand, calls.leaf)
    assert calls.expanded == []
    plan, _ = next(walk)
    assert (str(plan), calls.picked, calls.leaves) == ("C3", 1, 1)


def test_at_most_one_state_per_kept_sublayer_is_alive() -> None:
    class State:
        """Stands for a tensor; counted while it is alive."""

        def __init__(self, depth: int) -> None:
            self.depth = depth
            alive.add(self)

    alive: weakref.WeakSet[State] = weakref.WeakSet()
    most = 0

    def grow(
        state: State, sublayer: SubLayer, keeps: tuple[Keep, ...], attended: bool
    ) -> Callable[[Keep], State]:
        def pick(keep: Keep) -> State:
            nonlocal most
            new = State(state.depth + 1)
            most = max(most, len(alive) - new.depth)
            return new

        return pick

    space = make_space("40%")
    assert sum(1 for _ in sweep(space, State(0), grow, lambda state: state.depth)) == space.count()
    # The root, and the state that the loop still holds from the plan before.
    assert most <= 2
