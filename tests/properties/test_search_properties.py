"""Properties of the search over random budgets: no infeasible plan, exact knapsack, exact walk."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitsearch.core.budget import ACCOUNTINGS, QUANTITIES, SCOPES, Budget, LimitSpec
from circuitsearch.core.components import SubLayer
from circuitsearch.core.keep import Keep
from circuitsearch.core.plan import Plan
from circuitsearch.search.exhaustive import sweep
from circuitsearch.search.knapsack import greedy, solve, tie_broken
from circuitsearch.search.samplers import REGISTRY, History, Prior, SpaceExhaustedError
from circuitsearch.search.space import Space
from tests.search_fixtures import teacher_shape


@st.composite
def spaces(draw: st.DrawFn, layers: int = 3) -> Space:
    """Spaces with up to three limits, from the smallest legal student to the whole teacher."""
    shape = teacher_shape(layers)
    kinds = draw(
        st.lists(
            st.tuples(
                st.sampled_from(QUANTITIES), st.sampled_from(SCOPES), st.sampled_from(ACCOUNTINGS)
            ),
            unique=True,
            max_size=3,
        )
    )
    specs = [
        LimitSpec(quantity, "100%", scope, accounting) for quantity, scope, accounting in kinds
    ]
    whole = Space(shape, Budget.resolve(specs, shape))
    _, least = whole.smallest()
    shares = draw(st.lists(st.integers(0, 100), min_size=3, max_size=3))
    limits = []
    for spec, share in zip(specs, shares, strict=False):
        low, high = least[spec.name], whole.budget.limits[len(limits)].maximum
        value = low + (high - low) * share // 100
        limits.append(LimitSpec(spec.quantity, value, spec.scope, spec.accounting))
    return Space(shape, Budget.resolve(limits, shape))


def vectors(units: int) -> st.SearchStrategy[list[float]]:
    """Worths of both signs; integers too, because they tie."""
    exact = st.integers(-2, 2).map(float)
    return st.lists(st.floats(-1, 1, width=32) | exact, min_size=units, max_size=units)


@settings(max_examples=25)
@given(spaces(), st.integers(0, 10**6), st.data())
def test_no_sampler_ever_proposes_an_infeasible_or_a_known_plan(
    space: Space, seed: int, data: st.DataObject
) -> None:
    scores = data.draw(vectors(9))
    plans = list(space.enumerate())
    losses = [-float(np.dot(scores, space.bits(plan))) for plan in plans]
    worths = dict(zip(space.names, scores, strict=True))
    prior = Prior(worths, tuple(zip(plans, losses, strict=True)))
    for factory in REGISTRY.values():
        sampler = factory(space, prior, seed, "single")
        tried: list[tuple[int, ...]] = []
        rng = np.random.default_rng(seed)
        for _ in range(4):
            values = rng.uniform(0, 1, size=len(tried))
            history = History(
                np.array(tried, float).reshape(len(tried), 9), values, frozenset(tried)
            )
            try:
                bits = sampler.propose(history)
            except SpaceExhaustedError:
                assert len(tried) == space.count()
                break
            plan = space.plan(bits)
            assert space.budget.admits(plan, space.shape)
            assert any(unit.name.startswith("C") for unit in plan.sublayers)
            assert bits not in tried
            tried.append(bits)


@settings(max_examples=40)
@given(spaces(), st.data())
def test_knapsack_equals_brute_force(space: Space, data: st.DataObject) -> None:
    values = data.draw(vectors(9))
    plans = [space.bits(plan) for plan in space.enumerate()]
    forbidden = data.draw(st.lists(st.sampled_from(plans), max_size=3, unique=True))
    distance = data.draw(st.integers(1, 3))
    worths = tie_broken(values)
    allowed = [
        bits
        for bits in plans
        if all(sum(a != b for a, b in zip(bits, one, strict=True)) >= distance for one in forbidden)
    ]
    expected = max(allowed, key=lambda bits: float(np.dot(worths, bits)), default=None)
    assert solve(values, space, forbidden, distance=distance) == expected
    quick = greedy(values, space)
    assert quick in plans


@settings(max_examples=30)
@given(spaces())
def test_walk_equals_running_every_plan(space: Space) -> None:
    steps: list[str] = []

    def expand(
        state: str, sublayer: SubLayer, keeps: tuple[Keep, ...], attended: bool
    ) -> Callable[[Keep], str]:
        steps.append(f"{state} {sublayer}")
        return lambda keep: f"{state} {sublayer}{keep}"

    rows = list(sweep(space, "", expand, str.strip))
    plans = list(space.enumerate())
    assert rows == [(plan, str(plan)) for plan in plans]
    assert (
        len(steps)
        == len(set(steps))
        == len(
            {
                plan.sublayers[: length + 1]
                for plan in plans
                for length in range(len(plan.sublayers))
            }
        )
    )
    assert space.count() == len(plans) >= 1


@settings(max_examples=50)
@given(spaces(), st.lists(st.integers(0, 1), min_size=9, max_size=9))
def test_linear_rows_equal_the_budgets_own_arithmetic(space: Space, bits: list[int]) -> None:
    plan = space.plan(bits)
    assert space.bits(plan) == tuple(bits)
    assert list(space.remaining(bits)) == list(space.budget.slack(plan, space.shape).values())
    assert space.feasible(plan) == (plan in set(space.enumerate()))
    assert Plan.parse(str(plan)) == plan
