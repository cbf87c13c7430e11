"""Units that stand for a whole beginning (`C0=token`): the rule holds wherever plans come from."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitsearch.core.errors import PlanError
from circuitsearch.core.keep import Keep
from circuitsearch.core.plan import Plan
from circuitsearch.search import elastic
from circuitsearch.search.elastic import RULES, drawn, plan_of_step
from circuitsearch.search.exhaustive import sweep
from circuitsearch.search.knapsack import greedy, pool, solve, take, tie_broken, total
from circuitsearch.search.program import Interaction
from circuitsearch.search.sampled import sampled
from circuitsearch.search.samplers import REGISTRY, History, SpaceExhaustedError
from circuitsearch.search.samplers.baselines import random_plan
from circuitsearch.search.samplers.evolution import swapped
from circuitsearch.search.space import Bits, Space
from circuitsearch.search.units import Choices
from tests.search_fixtures import Landscape, limit, make_space

TOKENS = Choices(replacements=("token",))
SPACES = {
    "no limit": make_space(layers=2, choices=TOKENS),
    "tight": make_space("40%", limit("70%", "macs"), layers=2, choices=TOKENS),
    "three layers": make_space("30%", layers=3, choices=TOKENS),
    "others": make_space("50%", layers=2, choices=Choices(replacements=("token", "alone"))),
    "widths": make_space("40%", layers=2, choices=Choices("whole", (32,), ("token",))),
    "heads": make_space("50%", layers=1, choices=Choices("heads", (64,), ("token", "mean"))),
}
every_space = pytest.mark.parametrize("name", SPACES)


def literal(space: Space, bits: Bits) -> bool:
    """Whether bits are a feasible plan, from the names of the units alone (the oracle)."""
    kept = [name for name, bit in zip(space.names, bits, strict=True) if bit]
    places = [name for part in space.parts for name in [part.sublayer.name]]
    ends = [places.index(name.split("=")[0]) for name in kept if name.endswith("=token")]
    for name in kept:
        sublayer = name.split("=")[0].split(":")[0].split(".")[0]
        others = [n for n in kept if n.split("=")[0].split(":")[0].split(".")[0] == sublayer]
        if "=" in name and len(others) > 1:
            return False
        if ":" in name:
            steps = [n for n in space.names if n.startswith(f"{sublayer}:")]
            if any(step not in kept for step in steps[: steps.index(name)]):
                return False
        if any(places.index(sublayer) < end for end in ends):
            return False
    reads = any(n.startswith("C") and not n.endswith(("=token", "=mean")) for n in kept)
    return reads and min(space.remaining(bits), default=0) >= 0


def all_feasible(name: str) -> list[Bits]:
    if name not in _FEASIBLE:
        space = SPACES[name]
        vectors = itertools.product((0, 1), repeat=len(space.units))
        _FEASIBLE[name] = [bits for bits in vectors if literal(space, bits)]
    return _FEASIBLE[name]


_FEASIBLE: dict[str, list[Bits]] = {}


def test_units_are_offered_where_a_cross_attention_follows() -> None:
    space = make_space(layers=2, choices=TOKENS)
    tables = [unit.name for unit in space.units if unit.prefix]
    assert tables == ["S0=token", "C0=token", "M0=token", "S1=token"]
    assert all(unit.alone for unit in space.units if unit.prefix)
    with pytest.raises(PlanError, match="C1=token is no choice of this space"):
        space.bits(Plan.parse("C1=token M1"))


@every_space
def test_enumeration_and_count_equal_brute_force_over_all_bits(name: str) -> None:
    space, expected = SPACES[name], all_feasible(name)
    plans = list(space.enumerate())
    assert [space.bits(plan) for plan in plans] == expected
    assert space.count() == len(plans) == len(set(plans))
    assert space.exceeds(len(plans) - 1)
    assert not space.exceeds(len(plans))
    assert any(keep.prefix for plan in plans for _, keep in plan.kept)
    assert [space.plan(bits) for bits in expected] == plans
    for percent in (40, 75):
        part = space.within(percent)
        assert part.count() == sum(1 for _ in part.enumerate())
        assert part.smallest() == space.smallest()  # a student costs the same under any budget
    smallest, _ = space.smallest()
    assert space.bits(smallest) in expected


@every_space
def test_lawful_bits_are_those_of_a_plan(name: str) -> None:
    space = SPACES[name]
    for bits in itertools.product((0, 1), repeat=len(space.units)):
        if not space.obeys_rules(bits):
            continue
        assert space.bits(space.plan(bits)) == bits
        kept = any(bits[unit] for unit in space.required)
        assert literal(space, bits) == (kept and min(space.remaining(bits), default=0) >= 0)
    tables = [index for index, unit in enumerate(space.units) if unit.prefix]
    for table in tables:
        for before in range(table):
            both = tuple(int(unit in (before, table)) for unit in range(len(space.units)))
            assert not space.obeys_rules(both)


def test_a_deep_space_is_counted_without_listing() -> None:
    """Without limits: a beginning ends at any place but the last two, or there is none."""
    layers = 12
    expected = (2**layers - 1) * 2 ** (2 * layers)
    for place in range(3 * layers - 2):
        behind = 3 * layers - place - 1
        crossing = layers - (place + 2) // 3
        expected += 2**behind - 2 ** (behind - crossing)
    assert make_space(layers=layers, choices=TOKENS).count() == expected


@pytest.mark.parametrize("seed", range(6))
@every_space
def test_integer_program_equals_brute_force(name: str, seed: int) -> None:
    space, rng = SPACES[name], np.random.default_rng(seed)
    units = len(space.units)
    values = rng.normal(size=units) if seed % 2 else rng.integers(-1, 3, size=units).astype(float)
    pairs = [tuple(sorted(rng.choice(units, 2, replace=False).tolist())) for _ in range(4)]
    together: list[Interaction] = [(pair, float(worth)) for pair, worth in zip(
        pairs, rng.normal(size=4), strict=True)] if seed > 2 else []  # fmt: skip
    size = max(float(np.abs(values).max()), *(abs(worth) for _, worth in together), 0.0)
    worths = tie_broken(values, size)
    scaled = [(pair, worth / size) for pair, worth in together]
    found: list[Bits] = []
    for _ in range(3):
        allowed = [bits for bits in all_feasible(name) if bits not in found]
        expected = max(allowed, key=lambda bits: total(bits, worths, scaled))
        assert solve(values, space, found, interactions=together) == expected
        found.append(expected)
    assert all(space.feasible(plan) for plan in pool(values, space, 5, 2, together))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(SPACES)), st.data())
def test_greedy_and_take_keep_the_rule(name: str, data: st.DataObject) -> None:
    space, plans = SPACES[name], all_feasible(name)
    units = len(space.units)
    values = data.draw(st.lists(st.floats(-1, 1, width=32), min_size=units, max_size=units))
    best = max(total(bits, values) for bits in plans)
    for fill in (False, True):
        bits = greedy(values, space, fill=fill)
        assert bits in plans
        assert total(bits, values) <= best + 1e-9  # float32 numbers summed in another order
    if name == "no limit":
        # with room for everything only the rule stands between greedy and the optimum
        assert total(greedy(values, space, fill=False) or (), values) == pytest.approx(best)
    order = data.draw(st.permutations(range(units)))
    bits = take(order, space)
    assert bits in plans


def test_a_table_is_taken_with_a_reader_behind_it() -> None:
    space = make_space(layers=2, choices=TOKENS)
    bits = greedy([float(name == "S1=token") for name in space.names], space, fill=False)
    assert bits is not None
    assert str(space.plan(bits)) == "S1=token C1"


def test_a_table_that_is_worth_less_than_the_beginning_is_not_taken() -> None:
    space = make_space(layers=2, choices=TOKENS)
    worths = {"S0": 1.0, "C0": 1.0, "C1": 1.0, "C0=token": 1.9, "S0=token": 0.2}
    values = [worths.get(name, 0.0) for name in space.names]
    assert str(space.plan(greedy(values, space, fill=False) or ())) == "S0 C0 C1"
    values[space.names.index("C0=token")] = 2.1
    assert str(space.plan(greedy(values, space, fill=False) or ())) == "C0=token C1"
    assert total(solve(values, space) or (), values) == pytest.approx(3.1)


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(sorted(SPACES)), st.integers(0, 10**6))
def test_no_sampler_proposes_what_breaks_the_rule(name: str, seed: int) -> None:
    space, plans = SPACES[name], set(all_feasible(name))
    knowledge = Landscape.random(space, seed % 7).knowledge()
    for objective, (kind, factory) in itertools.product(("single", "pareto"), REGISTRY.items()):
        sampler = factory(space, knowledge, seed, objective)  # type: ignore[arg-type]
        tried: list[Bits] = []
        for _ in range(6):
            history = History(
                np.array(tried, float).reshape(len(tried), len(space.units)),
                np.random.default_rng(seed).uniform(size=len(tried)),
                frozenset(tried),
            )
            try:
                bits = sampler.propose(history)
            except SpaceExhaustedError:
                assert set(tried) == plans
                break
            assert bits in plans, kind
            assert bits not in tried
            tried.append(bits)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(sorted(SPACES)), st.integers(0, 10**6))
def test_random_plans_children_and_swaps_keep_the_rule(name: str, seed: int) -> None:
    space, plans = SPACES[name], set(all_feasible(name))
    rng = np.random.default_rng(seed)
    child = random_plan(space, rng)
    assert child in plans
    for swaps in (1, 3, 9):
        child = swapped(child or (), space, rng, swaps)
        assert child in plans
    assert space.bits(drawn(space, seed)) in plans
    worths = rng.normal(size=len(space.units))
    ranked = sampled(
        space,
        lambda some: [-total(space.bits(plan), worths) for plan in some],
        sample=4,
        swaps=25,
        seed=seed,
    )
    assert {space.bits(plan) for plan, _ in ranked} <= plans
    assert 4 < len({plan for plan, _ in ranked}) == len(ranked) <= 29


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("rule", RULES)
@every_space
def test_elastic_rules_keep_the_rule(
    name: str, rule: str, listed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not listed:
        monkeypatch.setattr(elastic, "LISTED", 0)
    space, plans = SPACES[name], set(all_feasible(name))
    worths = np.random.default_rng(1).normal(size=len(space.units)).tolist()
    of_step = plan_of_step(rule, space, 3, worths)
    assert {space.bits(of_step(step)) for step in range(60)} <= plans


@pytest.mark.parametrize("listed", [True, False])
def test_even_training_is_not_eaten_up_by_tables(
    listed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not listed:
        monkeypatch.setattr(elastic, "LISTED", 0)
    space = make_space("40%", choices=TOKENS)
    of_step = plan_of_step("even", space, 0)
    often = np.mean([space.bits(of_step(step)) for step in range(1500)], axis=0)
    own = [often[place] for place, unit in enumerate(space.units) if not unit.prefix]
    tables = sum(often[place] for place, unit in enumerate(space.units) if unit.prefix)
    plain = make_space("40%")
    without = plan_of_step("even", plain, 0)
    before = np.mean([plain.bits(without(step)) for step in range(1500)])
    # all tables together are kept about as often as a sub-layer, and these nearly as before
    assert tables == pytest.approx(np.mean(own), abs=0.06 if listed else 0.12)
    assert np.mean(own) > 0.8 * before
    assert min(own) > 0.6 * before


def test_swaps_reach_a_table_from_a_whole_beginning() -> None:
    """On additive worths: the best plan begins with a table, the random sample does not."""
    space = make_space("40%", choices=TOKENS)
    worths = {name: 0.3 for name in space.names} | {"C1=token": 5.0, "C3": 2.0, "M2": 1.0}
    worths |= {name: -9.0 for name in space.names if name.endswith("=token") and "C1" not in name}
    values = [worths[name] for name in space.names]
    best = solve(values, space)
    assert best is not None
    assert "C1=token" in str(space.plan(best))
    met = sampled(
        space,
        lambda some: [-total(space.bits(plan), values) for plan in some],
        sample=5,
        swaps=400,
        seed=0,
    )
    assert met[0][0] == space.plan(best)


@every_space
def test_walk_starts_again_at_a_table(name: str) -> None:
    space = SPACES[name]

    def expand(state: str, sublayer: object, keeps: tuple[Keep, ...], attended: bool) -> Callable:
        # with a table the state before it is not read, so it has to be the root
        assert not state or not any(keep.prefix for keep in keeps)
        return lambda keep: f"{state} {sublayer}{keep}"

    rows: Iterator[tuple[Plan, str]] = sweep(space, "", expand, str.strip)
    assert list(rows) == [(plan, str(plan)) for plan in space.enumerate()]
