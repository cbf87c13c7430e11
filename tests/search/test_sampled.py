"""Ranking a sample of a large space: never an infeasible or a repeated plan, near the optimum."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from circuitsearch.core.errors import ConfigError, InfeasibleError
from circuitsearch.core.plan import Plan
from circuitsearch.search.knapsack import solve
from circuitsearch.search.sampled import sampled
from circuitsearch.search.space import Space
from circuitsearch.search.units import Choices
from tests.search_fixtures import Landscape, limit, make_space


class Judge:
    """Losses of plans, with the plans it was asked for."""

    def __init__(self, space: Space, seed: int) -> None:
        self.landscape = Landscape.random(space, seed)
        self.met: list[Plan] = []

    def __call__(self, plans: Sequence[Plan]) -> list[float]:
        self.met += plans
        return [-self.landscape.quality(plan) for plan in plans]


SAMPLED = Choices(attention="heads", widths=(32, 64), replacements=("mean",))


def test_a_sample_never_repeats_and_is_ranked() -> None:
    space = make_space("40%", limit("50%", "macs"), choices=SAMPLED)
    judge = Judge(space, 0)
    ranked = sampled(space, judge, sample=100, swaps=150, seed=3)
    assert len(ranked) == len(judge.met) == len(set(judge.met)) == 250
    assert {plan for plan, _ in ranked} == set(judge.met)
    assert all(space.feasible(plan) for plan, _ in ranked)
    assert all(value == -judge.landscape.quality(plan) for plan, value in ranked)
    values = [value for _, value in ranked]
    assert values == sorted(values)
    assert sampled(space, Judge(space, 0), sample=100, swaps=150, seed=3) == ranked
    assert sampled(space, Judge(space, 0), sample=100, swaps=150, seed=4) != ranked


def test_swaps_find_what_a_sample_alone_does_not() -> None:
    """On additive worths, where the knapsack knows the optimum."""
    space = make_space("40%", choices=SAMPLED)
    assert space.count() > 10**6
    for seed in range(3):
        judge = Judge(space, seed)
        best = -judge.landscape.quality(space.plan(solve(judge.landscape.worths, space) or ()))
        plain = sampled(space, judge, sample=500, swaps=0, seed=seed)[0][1]
        swapped = sampled(space, judge, sample=100, swaps=400, seed=seed)[0][1]
        assert best <= swapped < best + 0.03 < plain


def test_an_impossible_budget_is_refused() -> None:
    judge = Judge(make_space(), 0)
    with pytest.raises(InfeasibleError):
        sampled(make_space("5%"), judge, sample=1, swaps=1, seed=0)
    assert judge.met == []


def test_a_sample_of_a_small_space_is_all_of_it() -> None:
    space = make_space("20%", layers=2)
    judge = Judge(space, 1)
    ranked = sampled(space, judge, sample=10_000, swaps=10_000, seed=0)
    assert {plan for plan, _ in ranked} == set(space.enumerate())
    assert ranked[0][1] == pytest.approx(-judge.landscape.best())


@pytest.mark.parametrize(("sample", "swaps"), [(0, 5), (5, -1), (0, -1)])
def test_impossible_sizes_of_a_sample_are_named_together(sample: int, swaps: int) -> None:
    with pytest.raises(ConfigError) as caught:
        sampled(make_space(), lambda plans: [0.0] * len(plans), sample=sample, swaps=swaps, seed=0)
    assert ("sample: got 0" in str(caught.value)) == (sample == 0)
    assert ("swaps: got -1" in str(caught.value)) == (swaps == -1)
