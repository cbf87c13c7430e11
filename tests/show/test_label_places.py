"""Names beside points: in order, apart, inside, and no further away than they must be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from circuitsearch.show.label_places import columns, spread

HEIGHTS = st.lists(st.floats(0, 100), max_size=12)


@given(HEIGHTS, st.floats(0.5, 20))
def test_names_are_apart_in_order_and_inside(wanted: list[float], gap: float) -> None:
    found = spread(wanted, gap, 0.0, 100.0)
    assert len(found) == len(wanted)
    room = min(gap, 100.0 / max(len(wanted) - 1, 1))
    order = np.argsort(wanted, kind="stable")
    placed = [found[at] for at in order]
    assert all(above - below > room - 1e-9 for below, above in itertools.pairwise(placed))
    assert all(-1e-9 <= height <= 100 + 1e-9 for height in found)


@given(st.lists(st.integers(0, 90).map(float), min_size=1, max_size=10, unique=True))
def test_names_that_have_room_stay_where_their_points_are(wanted: list[float]) -> None:
    assert spread(wanted, 1.0, 0.0, 100.0) == pytest.approx(wanted)


def test_names_are_as_near_as_a_general_solver_puts_them() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        wanted = np.sort(generator.uniform(0, 60, size=6))
        apart = [
            {"type": "ineq", "fun": lambda x, at=at: x[at + 1] - x[at] - 9.0} for at in range(5)
        ]
        best = minimize(
            lambda x, wanted=wanted: ((x - wanted) ** 2).sum(),
            np.linspace(0, 60, 6),
            bounds=[(0, 60)] * 6,
            constraints=apart,
        )
        # the solver's own tolerance
        assert spread(wanted.tolist(), 9.0, 0.0, 60.0) == pytest.approx(best.x, abs=1e-2)


def test_points_that_are_close_along_x_share_a_column() -> None:
    assert columns([50.0, 0.0, 8.0, 16.0, 51.0], [10.0] * 5) == [[1, 2, 3], [0, 4]]
    # a long name reaches the next points, wherever in its column it belongs
    assert columns([50.0, 0.0, 8.0], [10.0, 45.0, 10.0]) == [[1, 2, 0]]
    assert columns([], []) == []
    assert spread([], 1.0, 0.0, 1.0) == []
