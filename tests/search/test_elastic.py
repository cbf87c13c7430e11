"""Which plan trains at which step: rules are pure, feasible, and draw what they promise."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from circuitsearch.core.components import Kind
from circuitsearch.core.errors import ConfigError, InfeasibleError
from circuitsearch.core.plan import Plan
from circuitsearch.search import elastic
from circuitsearch.search.elastic import RULES, drawn, plan_of_step
from circuitsearch.search.space import Space
from circuitsearch.search.units import Choices
from tests.search_fixtures import limit, make_space

HUGE = Choices(attention="heads", widths=(32, 64), replacements=("mean", "alone"))


def _spaces() -> list[Space]:
    return [
        make_space("31.25%", limit("50%", "macs")),
        make_space("30%", choices=HUGE),
        make_space(choices=HUGE),
    ]


def _worths(space: Space) -> list[float]:
    return np.random.default_rng(0).normal(size=len(space.units)).tolist()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("place", range(3))
def test_every_rule_gives_feasible_plans_as_a_function_of_the_step(rule: str, place: int) -> None:
    space = _spaces()[place]
    plans = plan_of_step(rule, space, 7, _worths(space))
    some = [plans(step) for step in range(60)]
    assert all(space.feasible(plan) for plan in some)
    again = plan_of_step(rule, space, 7, _worths(space))
    assert [again(step) for step in reversed(range(60))] == some[::-1]
    other = plan_of_step(rule, space, 8, _worths(space))
    assert [other(step) for step in range(60)] != some
    assert len(set(some)) > 20


def test_a_huge_space_is_never_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: Space) -> None:
        raise AssertionError("the space was listed")

    space = make_space("30%", choices=HUGE)
    assert space.count() > elastic.LISTED
    monkeypatch.setattr(Space, "enumerate", never)
    for rule in RULES:
        plan_of_step(rule, space, 0, _worths(space))(3)


def test_uniform_draws_every_plan_equally_often() -> None:
    space = make_space("20%", layers=2)
    plans = plan_of_step("uniform", space, 0)
    drawn_plans = Counter(plans(step) for step in range(100 * space.count()))
    assert set(drawn_plans) == set(space.enumerate())
    # 100 expected of each, deviation 10
    assert all(55 <= times <= 145 for times in drawn_plans.values())


@pytest.mark.parametrize("limits", [("31.25%",), ()])
def test_sandwich_takes_turns_of_largest_smallest_and_any(limits: tuple[str, ...]) -> None:
    space = make_space(*limits)
    plans = plan_of_step("sandwich", space, 0)

    def size(plan: Plan) -> float:
        return -float(space.remaining(space.bits(plan))[0]) if limits else float(len(plan.kept))

    sizes = {size(plan) for plan in space.enumerate()}
    assert {size(plans(step)) for step in range(0, 80, 4)} == {max(sizes)}
    assert {size(plans(step)) for step in range(1, 80, 4)} == {min(sizes)}
    others = [plans(step) for step in range(80) if step % 4 > 1]
    assert len({size(plan) for plan in others}) > 2
    assert len({plans(step) for step in range(0, 80, 4)}) > (1 if limits else 0)


def test_weighted_prefers_plans_of_large_worth() -> None:
    for space in _spaces():
        worths = _worths(space)

        def mean(rule: str, space: Space = space, worths: list[float] = worths) -> float:
            plans = plan_of_step(rule, space, 0, worths)
            some = [np.dot(worths, space.bits(plans(step))) for step in range(300)]
            return float(np.mean(some))

        assert mean("weighted") > mean("uniform") + 0.3


def test_weighted_probabilities_are_those_of_the_docstring() -> None:
    space = make_space("14%", layers=2)
    worths = _worths(space)
    listed = list(space.enumerate())
    totals = np.array([np.dot(worths, space.bits(plan)) for plan in listed])
    expected = np.exp((totals - totals.mean()) / totals.std())
    expected /= expected.sum()
    plans = plan_of_step("weighted", space, 0, worths)
    times = Counter(plans(step) for step in range(4000))
    found = np.array([times[plan] / 4000 for plan in listed])
    np.testing.assert_allclose(found, expected, atol=0.03)


def _dear_share(space: Space, rule: str) -> float:
    """How often feed-forwards are kept, relative to all units, over 600 draws."""
    plans = plan_of_step(rule, space, 0)
    often = np.mean([space.bits(plans(step)) for step in range(600)], axis=0)
    dear = [unit.sublayer.kind is Kind.FEED for unit in space.units]
    return float(often[dear].mean() / often.mean())


def test_even_keeps_dear_units_as_often_as_cheap_ones() -> None:
    listed = make_space("31.25%")
    assert _dear_share(listed, "uniform") < 0.7
    assert _dear_share(listed, "even") == pytest.approx(1.0, abs=0.06)
    drawn_from = make_space("31.25%", choices=Choices(attention="heads"))
    assert drawn_from.count() > elastic.LISTED
    assert _dear_share(drawn_from, "uniform") < 0.8
    assert _dear_share(drawn_from, "even") == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("limit", ["40%", "90%"])
def test_even_trains_every_number_of_heads_and_neurons(limit: str) -> None:
    heads = {f"{kind}{layer}": (0, 1, 2, 3) for kind in "SC" for layer in range(4)}
    space = make_space(limit, choices=Choices("counts", widths=(4, 8, 12), heads=heads))
    assert space.count() > elastic.LISTED
    plans = plan_of_step("even", space, 0)
    bits = np.array([space.bits(plans(step)) for step in range(1200)])
    levels = np.stack([bits[:, list(part.indices)].sum(1) for part in space.parts], axis=1)
    shares = [(levels == level).mean() for level in range(1, 5)]
    assert max(shares) < 2 * min(shares)
    assert shares[0] < 2 * np.mean(shares)


def test_draws_of_a_huge_space_differ_in_size_and_fill_a_tight_budget() -> None:
    wide = [len(drawn(make_space(choices=HUGE), seed).kept) for seed in range(100)]
    assert min(wide) <= 3
    assert max(wide) >= 11
    tight = make_space("20%", choices=HUGE)
    left = [tight.remaining(tight.bits(drawn(tight, seed)))[0] for seed in range(100)]
    assert np.median(left) < 0.15 * tight.capacity[0]


def test_faults_are_refused() -> None:
    space = make_space()
    with pytest.raises(ConfigError, match="did you mean 'uniform'"):
        plan_of_step("unifrom", space, 0)
    with pytest.raises(ConfigError, match="got no worths"):
        plan_of_step("weighted", space, 0)
    with pytest.raises(ConfigError, match="got 2 worths"):
        plan_of_step("weighted", space, 0, [1.0, 2.0])
    with pytest.raises(ConfigError, match="finite"):
        plan_of_step("weighted", space, 0, [np.nan] * len(space.units))
    with pytest.raises(InfeasibleError):
        plan_of_step("uniform", make_space("5%"), 0)
    with pytest.raises(InfeasibleError):
        drawn(make_space("5%"), 0)
