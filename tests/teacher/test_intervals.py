"""The paired bootstrap against a literal loop, closed cases, and its coverage on made-up data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitsearch.core.difference import Difference
from circuitsearch.core.errors import ConfigError, DataError
from circuitsearch.teacher import metrics
from circuitsearch.teacher.intervals import bootstrap_interval, paired_bootstrap, wilson_interval

SCORES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=12)


def literal(
    first: list[float], second: list[float], clusters: list[str], draws: int, seed: int
) -> tuple[float, float, float]:
    """Draw documents one by one, average both models over what was drawn, subtract."""
    rng = np.random.default_rng(seed)
    names = sorted(set(clusters))
    differences = []
    for _ in range(draws):
        rows = [
            row
            for name in rng.choice(names, size=len(names))
            for row in range(len(first))
            if clusters[row] == name
        ]
        ours = sum(first[row] for row in rows) / len(rows)
        theirs = sum(second[row] for row in rows) / len(rows)
        differences.append(ours - theirs)
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high), sum(d > 1e-12 for d in differences) / draws


def made_up(documents: int, gap: float, seed: int) -> tuple[list[float], list[float], list[str]]:
    """Scores that documents and questions share, so that pairing matters."""
    rng = np.random.default_rng(seed)
    first, second, clusters = [], [], []
    for document in range(documents):
        hard = rng.uniform(0.2, 0.6)
        for _ in range(1 + document % 3):
            own = hard + rng.uniform(-0.1, 0.1)
            first.append(own + gap + rng.uniform(-0.1, 0.1))
            second.append(own)
            clusters.append(f"d{document}")
    return first, second, clusters


def test_the_fast_one_agrees_with_the_literal_one() -> None:
    first, second, clusters = made_up(25, 0.02, seed=1)
    ours = paired_bootstrap(first, second, clusters, seed=3, draws=4000)
    low, high, wins = literal(first, second, clusters, draws=1500, seed=4)
    # Monte Carlo quantiles: their error is about 2.5 % of the width at 1500 draws; 12 % is five
    assert ours.low == pytest.approx(low, abs=0.12 * (high - low))
    assert ours.high == pytest.approx(high, abs=0.12 * (high - low))
    assert ours.wins is not None
    assert 0.5 < ours.wins < 1.0
    # a share of 1500 draws has a standard error below 1.3 points; four of them
    assert ours.wins == pytest.approx(wins, abs=0.05)


def test_equal_predictions_differ_by_exactly_nothing() -> None:
    scores = [0.1, 0.7, 0.3, 1 / 3, 0.9]
    found = paired_bootstrap(scores, scores, ["a", "a", "b", "c", "d"], seed=0)
    assert (found.mean, found.low, found.high, found.wins) == (0.0, 0.0, 0.0, 0.0)
    assert (found.questions, found.documents) == (5, 4)
    assert found.first == found.second == pytest.approx(math.fsum(scores) / 5)


def test_a_model_that_is_better_on_every_question_wins_every_draw() -> None:
    second = [0.1, 0.4, 0.3, 0.6]
    found = paired_bootstrap([s + 0.25 for s in second], second, list("abcd"), seed=0)
    assert found.wins == 1.0
    # the same gap everywhere: every draw has it, up to the rounding of the sums
    assert (found.mean, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25), abs=1e-12)


def test_pairing_narrows_the_interval() -> None:
    first, second, clusters = made_up(40, 0.05, seed=2)
    found = paired_bootstrap(first, second, clusters, seed=0)
    alone = bootstrap_interval(first, clusters, seed=0)
    assert alone is not None
    assert found.low is not None
    assert found.high is not None
    # documents vary by 0.12 (sd), the difference of the two models by 0.06: half as wide
    assert found.high - found.low < 0.75 * (alone[1] - alone[0])


@settings(max_examples=30)
@given(scores=SCORES, seed=st.integers(0, 5))
def test_swapping_the_models_mirrors_everything(
    scores: list[tuple[float, float]], seed: int
) -> None:
    first, second = [a for a, _ in scores], [b for _, b in scores]
    clusters = [index // 2 for index in range(len(scores))]
    one = paired_bootstrap(first, second, clusters, seed, draws=200)
    other = paired_bootstrap(second, first, clusters, seed, draws=200)
    assert one.mean == -other.mean
    assert (one.first, one.second) == (other.second, other.first)
    if len(set(clusters)) < 2:
        assert one.low is one.high is one.wins is None
        return
    assert one.low is not None
    assert other.high is not None
    assert one.wins is not None
    assert other.wins is not None
    # quantiles are interpolated from the other end: rounding only
    assert one.low == pytest.approx(-other.high, abs=1e-12)
    assert one.wins + other.wins <= 1.0


def test_it_covers_the_true_difference() -> None:
    # 200 samples of 30 documents; a 95 % percentile interval of 30 clusters covers about 93 %.
    # Binomial spread at 200: 1.8 points; 86 % is four of those below.
    hits = 0
    for trial in range(200):
        first, second, clusters = made_up(30, 0.1, seed=100 + trial)
        found = paired_bootstrap(first, second, clusters, seed=trial, draws=400)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0.1 <= found.high
    assert 0.86 <= hits / 200 <= 0.995


@pytest.mark.parametrize(
    ("changes", "kind", "says"),
    [
        ({"second": [0.5]}, DataError, "got 2 and 1 scores"),
        ({"first": [], "second": [], "clusters": []}, DataError, "one value at least"),
        ({"clusters": ["a"]}, DataError, "one cluster per value"),
        ({"first": [0.5, math.nan]}, DataError, "not finite"),
        ({"level": 0.0}, ConfigError, "level"),
        ({"draws": 0}, ConfigError, "draws"),
    ],
)
def test_refusals(changes: dict[str, Any], kind: type[Exception], says: str) -> None:
    good: dict[str, Any] = {"first": [0.5, 1.0], "second": [0.5, 0.0], "clusters": ["a", "b"]}
    with pytest.raises(kind, match=says):
        paired_bootstrap(**{**good, **changes}, seed=0)


def test_the_metrics_module_names_them_too() -> None:
    assert metrics.bootstrap_interval is bootstrap_interval
    assert metrics.paired_bootstrap is paired_bootstrap
    assert metrics.wilson_interval is wilson_interval


def test_the_record_travels_as_json_and_refuses_nonsense() -> None:
    found = paired_bootstrap([0.5, 1.0], [0.5, 0.0], ["a", "b"], seed=0)
    assert Difference.from_json(found.to_json()) == found
    with pytest.raises(DataError, match="3 problems"):
        Difference.from_json({**found.to_json(), "mean": 2.0, "wins": math.nan, "questions": 0})
