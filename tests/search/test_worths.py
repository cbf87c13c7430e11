"""Worths of units from effects: shares, second order against the literal sum, edges."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from circuitsearch.core.errors import ConfigError
from circuitsearch.search.knapsack import solve, total
from circuitsearch.search.units import Choices
from circuitsearch.search.worths import best_heads, edge_worths, pair_worths, unit_worths
from tests.search_fixtures import make_space

SPACE = make_space("50%", layers=2)
STEPS = make_space("50%", layers=2, choices=Choices("counts", (32, 64), ("mean",)))


def effects(seed: int = 0) -> dict[str, float]:
    """Effects of all sub-layers and heads of two layers."""
    rng = np.random.default_rng(seed)
    names = [f"{kind}{layer}" for layer in range(2) for kind in "SCM"]
    heads = [f"{name}.H{head}" for name in names if name[0] != "M" for head in range(4)]
    return {name: float(rng.normal()) for name in names + heads}


def test_units_of_a_sublayer_share_its_effect() -> None:
    known = effects()
    worths = unit_worths(STEPS, known, {"M1=mean": 0.5})
    for part in STEPS.parts:
        own = [worths[unit.name] for unit in part.units if not unit.alone]
        assert sum(own) == pytest.approx(known[part.sublayer.name], abs=1e-12)
    assert worths["M0:32"] == pytest.approx(known["M0"] / 4)  # 32 of 128 neurons
    assert worths["M0:128"] == pytest.approx(known["M0"] / 2)
    assert worths["M1=mean"] == 0.5
    assert worths["M0=mean"] == 0.0
    with pytest.raises(ConfigError, match=r"(?s)M0 has no effect.*C1 has no effect"):
        unit_worths(SPACE, {n: v for n, v in known.items() if n not in ("C1", "M0")})


def test_heads_are_ordered_by_effect() -> None:
    known = effects() | {"C0.H0": 1.0, "C0.H1": 3.0, "C0.H2": -1.0, "C0.H3": 1.0}
    assert best_heads(SPACE, known)["C0"] == (1, 0, 3, 2)
    worths = unit_worths(STEPS, known | {"C0": 5.0})
    assert worths["C0:1"] > 0 > -worths["C0:2"]
    free = make_space("50%", layers=2, choices=Choices("heads"))
    shared = unit_worths(free, known | {"C0": 5.0})
    # Positive effects 1, 3, 0 (negative) and 1, each with a hundredth of the largest on top.
    assert shared["C0.H1"] == pytest.approx(5.0 * 3.03 / 5.12)


def test_pairs_rank_plans_as_the_literal_second_order_sum() -> None:
    rng = np.random.default_rng(1)
    alone = {name: float(rng.normal()) for name in SPACE.names}
    pairs = {
        (one, other): float(rng.normal()) for one, other in itertools.combinations(SPACE.names, 2)
    }

    def literal(bits: tuple[int, ...]) -> float:
        gone = [name for name, bit in zip(SPACE.names, bits, strict=True) if not bit]
        cost = sum(alone[name] for name in gone)
        for one, other in itertools.combinations(gone, 2):
            cost += pairs[one, other] - alone[one] - alone[other]
        return -cost

    values, together = pair_worths(SPACE, alone, pairs)
    plans = [SPACE.bits(plan) for plan in SPACE.enumerate()]
    found = np.array([total(bits, values, together) for bits in plans])
    expected = np.array([literal(bits) for bits in plans])
    # the same for the plans of a space that leaves sub-layers out
    inside = make_space("50%", layers=2, choices=Choices(within=("S0", "C0", "C1", "M1")))
    some = list(inside.enumerate())
    fewer, fewer_together = pair_worths(inside, alone, pairs)
    worth = np.array([total(inside.bits(plan), fewer, fewer_together) for plan in some])
    wanted = np.array([literal(SPACE.bits(plan)) for plan in some])
    np.testing.assert_allclose(worth - worth[0], wanted - wanted[0], atol=1e-11)
    # Equal up to one constant; sums of some forty numbers of order one.
    np.testing.assert_allclose(found - found[0], expected - expected[0], atol=1e-11)
    best = solve(values, SPACE, interactions=together)
    assert best == plans[int(np.argmax(expected))]
    with pytest.raises(ConfigError, match="free heads"):
        pair_worths(make_space("50%", layers=2, choices=Choices("heads")), alone, pairs)


def test_edges_count_when_both_ends_stay() -> None:
    edges = {("embedding", "S0"): 1.0, ("S0", "C1"): 2.0, ("C1", "logits"): 4.0, ("C1", "S0"): 0.5}
    values, together = edge_worths(SPACE, edges)
    bits = {name: place for place, name in enumerate(SPACE.names)}
    assert values[bits["S0"]] == 1.0
    assert values[bits["C1"]] == 4.0
    assert together == [((bits["S0"], bits["C1"]), 2.5)]
    free = make_space("50%", layers=2, choices=Choices("heads"))
    _, heads = edge_worths(free, {("S0.H1", "C1.H2"): 3.0})
    assert heads == [((free.names.index("S0.H1"), free.names.index("C1.H2")), 3.0)]
    with pytest.raises(ConfigError, match=r"set circuit\.level to 'heads'"):
        edge_worths(free, edges)
    inside = make_space("50%", layers=2, choices=Choices(within=("C1",)))
    assert edge_worths(inside, edges) == ([4.0], [])  # S0 and its edges are gone
    assert unit_worths(inside, effects()) == {"C1": effects()["C1"]}
    steps, _ = edge_worths(STEPS, {("embedding", "C0.H3"): 2.0})
    assert steps[STEPS.names.index("C0:1")] == 2.0
