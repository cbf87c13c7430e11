"""The integer program against brute force over all feasible plans, ties and cuts included."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from circuitsearch.core.errors import CircuitSearchError, ConfigError
from circuitsearch.core.plan import Plan
from circuitsearch.search import program
from circuitsearch.search.knapsack import (
    best_within,
    greedy,
    pool,
    solve,
    sweep_budget,
    take,
    tie_broken,
    total,
)
from circuitsearch.search.program import Interaction
from circuitsearch.search.space import Bits, Space
from circuitsearch.search.units import Choices
from tests.search_fixtures import Landscape, limit, make_space

SPACE = make_space("40%", limit("50%", "macs"))
ALL = [SPACE.bits(plan) for plan in SPACE.enumerate()]


def brute(
    values: Sequence[float] | np.ndarray, forbidden: Sequence[Bits] = (), distance: int = 1
) -> Bits | None:
    """The best of all feasible plans far enough from the forbidden ones (the oracle)."""
    worths = tie_broken(values)
    allowed = [
        bits
        for bits in ALL
        if all(
            sum(a != b for a, b in zip(bits, plan, strict=True)) >= distance for plan in forbidden
        )
    ]
    return max(allowed, key=lambda bits: float(np.dot(worths, bits)), default=None)


@pytest.mark.parametrize("seed", range(25))
def test_solve_equals_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Real values of both signs, and small integers: the latter are full of ties.
    values = rng.normal(size=12) if seed % 2 else rng.integers(-1, 3, size=12).astype(float)
    assert solve(values, SPACE) == brute(values)


def test_cuts_give_the_plans_in_order_of_value() -> None:
    values = np.random.default_rng(3).normal(size=12)
    tried: list[Bits] = []
    for _ in range(8):
        best = solve(values, SPACE, tried)
        assert best == brute(values, tried)
        assert best is not None
        tried.append(best)
    assert len(set(tried)) == 8


@pytest.mark.parametrize("distance", [2, 3, 5])
def test_distance_cuts(distance: int) -> None:
    values = np.random.default_rng(4).normal(size=12)
    forbidden = [ALL[5], ALL[200], ALL[600]]
    assert solve(values, SPACE, forbidden, distance=distance) == brute(values, forbidden, distance)


def test_nothing_left_is_none() -> None:
    space = make_space("6.25%")  # one cross-attention and nothing else
    plans = [space.bits(plan) for plan in space.enumerate()]
    assert len(plans) == 4
    assert solve(np.ones(12), space, plans[:3]) == plans[3]
    assert solve(np.ones(12), space, plans) is None
    assert solve(np.ones(12), make_space("5%")) is None
    assert solve(np.ones(12), SPACE, [ALL[0]], distance=13) is None


def test_values_of_no_use_still_give_a_legal_plan() -> None:
    worst = -np.arange(1.0, 13.0)
    assert SPACE.plan(solve(worst, SPACE) or ()).sublayers == (
        SPACE.units[1].sublayer,
    )  # C0 costs least
    zero = solve(np.zeros(12), SPACE)
    assert zero is not None
    assert SPACE.reads_page(SPACE.plan(zero))


def test_a_limit_one_short_of_the_optimum_excludes_it() -> None:
    # MACs have ten digits here; the solver's tolerance alone would let the plan pass.
    values = np.random.default_rng(8).uniform(0.5, 1, size=12)
    free = make_space(limit("55%", "macs"))
    best = solve(values, free)
    assert best is not None
    spent = free.capacity[0] - free.remaining(best)[0]
    exact, short = make_space(limit(spent, "macs")), make_space(limit(spent - 1, "macs"))
    assert solve(values, exact) == best
    other = solve(values, short)
    assert other is not None
    assert other != best
    assert min(short.remaining(other)) >= 0


def test_a_point_beyond_a_limit_is_cut_off_and_the_program_solved_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, calls = program.milp, []

    def lenient(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        # At first, the whole teacher: what a solver with too wide a tolerance might return.
        if len(calls) == 1:
            return SimpleNamespace(status=0, x=np.full(12, 0.999999), message="")
        return original(*args, **kwargs)

    monkeypatch.setattr(program, "milp", lenient)
    values = np.random.default_rng(1).normal(size=12)
    assert solve(values, SPACE) == brute(values)
    assert len(calls) == 2


def test_a_solver_that_ignores_cuts_or_fails_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(status: int, bits: Bits | None) -> None:
        x = None if bits is None else np.array(bits, dtype=float)
        result = SimpleNamespace(status=status, x=x, message="numbers too wild")
        monkeypatch.setattr(program, "milp", lambda *_, **__: result)

    answer(0, ALL[7])
    with pytest.raises(CircuitSearchError, match="returned the excluded plan"):
        solve(np.ones(12), SPACE, [ALL[7]])
    answer(4, None)
    with pytest.raises(CircuitSearchError, match="was not solved: numbers too wild"):
        solve(np.ones(12), SPACE)


def test_what_the_solver_prints_goes_to_standard_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    original = program.milp

    def noisy(*args: Any, **kwargs: Any) -> Any:
        os.write(1, b"leftover of HiGHS\n")
        return original(*args, **kwargs)

    monkeypatch.setattr(program, "milp", noisy)
    solve(np.ones(12), SPACE)
    os.write(1, b"data\n")
    out, err = capfd.readouterr()
    assert out == "data\n"
    assert "leftover of HiGHS" in err


def test_greedy_takes_what_pays_best_and_fills_the_budget() -> None:
    space = make_space("31.25%")  # 5 shares: S and C cost 1, M costs 2
    values = dict.fromkeys(space.names, 0.0) | {"M0": 3.0, "C2": 2.0, "S1": 1.0, "S3": -1.0}
    array = np.array([values[name] for name in space.names])
    lean = greedy(array, space, fill=False)
    assert lean is not None
    assert str(space.plan(lean)) == "M0 S1 C2"
    full = greedy(array, space)
    assert full is not None
    # One share is left; the first unit worth nothing takes it, in execution order.
    assert str(space.plan(full)) == "S0 M0 S1 C2"


def test_greedy_reserves_room_for_a_cross_attention() -> None:
    space = make_space("31.25%")
    values = np.array([1.0 if name[0] in "SM" else -5.0 for name in space.names])
    for fill in (False, True):
        bits = greedy(values, space, fill=fill)
        assert bits is not None
        plan = space.plan(bits)
        assert space.feasible(plan)
        assert sum(unit.name.startswith("C") for unit in plan.sublayers) == 1
    assert greedy(values, make_space("5%")) is None
    assert take([0, 2, 3], space) is None  # no cross-attention among the units to take


@pytest.mark.parametrize("seed", range(10))
def test_greedy_is_feasible_filled_and_never_better_than_solve(seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=12)
    bits, best = greedy(values, SPACE), solve(values, SPACE)
    assert bits in ALL
    assert best is not None
    for unit in range(12):  # nothing more fits
        more = tuple(1 if index == unit else bit for index, bit in enumerate(bits or ()))
        assert more == bits or more not in ALL
    # Rounding of twelve summed values of order one.
    assert np.dot(values, bits) <= np.dot(values, best) + 1e-12
    lean = greedy(values, SPACE, fill=False)
    assert lean in ALL


def test_greedy_without_limits_keeps_everything_worth_something() -> None:
    space = make_space()
    values = np.array([1.0, -1.0] * 6)
    lean = greedy(values, space, fill=False)
    assert lean is not None
    kept = {index for index, bit in enumerate(lean) if bit}
    assert kept == {0, 2, 4, 6, 8, 10}
    assert greedy(values, space) == (1,) * 12


def test_pool_is_distant_feasible_and_starts_with_the_optimum() -> None:
    values = np.random.default_rng(0).gamma(0.6, size=12)
    plans = pool(values, SPACE, 8, distance=3)
    bits = [SPACE.bits(plan) for plan in plans]
    assert len(plans) == 8
    assert bits[0] == brute(values)
    assert all(SPACE.feasible(plan) for plan in plans)
    for index, one in enumerate(bits):
        for other in bits[:index]:
            assert sum(a != b for a, b in zip(one, other, strict=True)) >= 3
    # Every third plan leaves 2 % of every limit.
    assert all(
        left * 100 >= 2 * most
        for left, most in zip(SPACE.remaining(bits[2]), SPACE.capacity, strict=True)
    )


def test_pool_ends_with_the_space() -> None:
    space = make_space("6.25%")
    assert len(pool(np.ones(12), space, 20)) == 4
    # Two different single cross-attentions differ by two units, so three apart is only one.
    assert len(pool(np.ones(12), space, 20, distance=3)) == 1


def test_wrong_values_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"got shape \(3,\), allowed is one per unit"):
        solve(np.ones(3), SPACE)
    with pytest.raises(ConfigError, match="M0 must be finite"):
        greedy([1, 1, float("nan"), *[1] * 9], SPACE)
    with pytest.raises(ConfigError, match="size 0"):
        pool(np.ones(12), SPACE, 0)


def test_many_units_stay_exact() -> None:
    space: Space = make_space("30%", limit("35%", "macs"), layers=16)
    values = np.random.default_rng(2).normal(size=48)
    best, quick = solve(values, space), greedy(values, space, fill=False)
    assert best is not None
    assert quick is not None
    assert space.feasible(space.plan(best))
    assert np.dot(values, best) >= np.dot(values, quick)
    # Brute force is out of reach, but no exchange of one or two units may improve the optimum.
    for first in range(48):
        for second in range(first, 48):
            swapped = tuple(bit ^ (unit in (first, second)) for unit, bit in enumerate(best))
            if min(space.remaining(swapped)) >= 0 and any(swapped[unit] for unit in space.required):
                # Rounding of 48 summed values of order one.
                assert np.dot(values, swapped) <= np.dot(values, best) + 1e-11


FORMS = {
    "counts": Choices(attention="counts", heads={"C0": (2, 0, 3, 1)}),
    "heads": Choices(attention="heads"),
    "widths": Choices(widths=(32, 64)),
    "replacements": Choices(replacements=("mean", "linear", "alone")),
    "heads, replacements": Choices(attention="heads", replacements=("mean",)),
    "everything": Choices("counts", (64,), ("mean", "alone")),
    "within": Choices("counts", (64,), ("mean", "token"), within=("S0", "C0", "M0", "C1")),
    "heads within": Choices("heads", (64,), ("token",), within=("C0", "M1")),
}


def form(name: str) -> Space:
    """Two layers under two limits, in which the fixed part of a sub-layer counts too."""
    return make_space(
        "30%" if name != "heads, replacements" else "60%",
        limit("65%", "parameters", "decoder", "cached"),
        layers=1 if name == "heads, replacements" else 2,
        choices=FORMS[name],
    )


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_units_is_solved_like_by_brute_force(name: str) -> None:
    space = form(name)
    everything = np.array([space.bits(plan) for plan in space.enumerate()])
    rng = np.random.default_rng(5)
    for _ in range(4):
        values = rng.normal(size=len(space.units))
        worths = everything @ tie_broken(values)
        first, second = (tuple(everything[place].tolist()) for place in np.argsort(-worths)[:2])
        assert solve(values, space) == first
        assert solve(values, space, [first]) == second
        for fill in (False, True):
            quick = greedy(values, space, fill=fill)
            assert quick is not None
            assert (everything == quick).all(axis=1).any()
            assert np.dot(values, quick) <= np.dot(values, first) + 1e-12  # rounding of the sums


@pytest.mark.parametrize("name", ["heads", "everything"])
def test_interactions_count_only_when_all_of_their_units_stay(name: str) -> None:
    space = form(name)
    everything = [space.bits(plan) for plan in space.enumerate()]
    rng = np.random.default_rng(6)
    for _ in range(3):
        values = rng.normal(size=len(space.units))
        together: list[Interaction] = [
            (tuple(rng.choice(len(space.units), size=size, replace=False).tolist()), rng.normal())
            for size in (2, 2, 2, 3, 3)
        ]
        best = solve(values, space, interactions=together)
        assert best is not None
        most = max(total(bits, values, together) for bits in everything)
        # Ties are decided by worths of 1e-9 of the largest value; every other gap is far larger.
        assert total(best, values, together) == pytest.approx(most, abs=1e-7)


def test_an_edge_can_turn_the_choice() -> None:
    space = make_space("18.75%")  # three shares: S and C cost one each
    values = np.zeros(12)
    names = {name: place for place, name in enumerate(space.names)}
    values[names["S0"]], values[names["C2"]] = 1.0, 1.0
    alone = solve(values, space)
    edge = ((names["S1"], names["C3"]), 1.5)
    both = solve(values, space, interactions=[edge])
    repelled = solve(values, space, interactions=[((names["S0"], names["C2"]), -1.5)])
    assert alone is not None
    assert both is not None
    assert repelled is not None
    assert {"S0", "C2"} <= {s.name for s in space.plan(alone).sublayers}
    assert {"S1", "C3"} <= {s.name for s in space.plan(both).sublayers}
    assert not {"S0", "C2"} <= {s.name for s in space.plan(repelled).sublayers}


def test_the_budget_sweep_rises_and_fits() -> None:
    values = np.random.default_rng(1).uniform(0.1, 1, size=12)
    curve = sweep_budget(values, SPACE)
    assert curve[-1].plan == SPACE.plan(brute(values) or ())
    assert [one.worth for one in curve] == sorted(one.worth for one in curve)
    for one in curve:
        left = SPACE.remaining(SPACE.bits(one.plan))
        # What is spent of every capacity stays within the share.
        assert all(
            100 * (most - have) <= one.percent * most
            for have, most in zip(left, SPACE.capacity, strict=True)
        )
    assert sweep_budget(values, make_space("6.25%"), [50]) == []  # half a cross-attention


def test_a_step_that_waits_is_taken_with_the_one_before_it() -> None:
    space = make_space("100%", choices=Choices(attention="counts"))
    names = {name: place for place, name in enumerate(space.names)}
    bits = take([names["C1:2"], names["C1:1"]], space)
    assert bits is not None
    assert space.plan(bits) == Plan.parse("C1[0-1]")


def test_the_curve_of_a_ranking_is_its_first_plan_within_every_share() -> None:
    landscape = Landscape.random(SPACE, 8)
    ranked = sorted(((plan, -landscape.quality(plan)) for plan in SPACE.enumerate()), key=by_loss)
    curve = best_within(ranked, SPACE)
    assert [percent for percent, _, _ in curve][-1] == 100
    assert curve[-1][1:] == ranked[0]
    for percent, plan, loss in curve:
        part = list(SPACE.within(percent).enumerate())
        assert (plan, loss) == min(((p, -landscape.quality(p)) for p in part), key=by_loss)
    assert best_within([], SPACE) == []


def by_loss(row: tuple[Plan, float]) -> tuple[float, str]:
    """Order of a ranking."""
    return row[1], str(row[0])
