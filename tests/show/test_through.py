from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitsearch.show.through import Link, Path, strongest_paths


def all_paths(components: int, links: list[Link]) -> list[Path]:
    """The oracle: every path from a component without writers to one without readers."""
    usable = [i for i, link in enumerate(links) if link.source < link.target and link.score]
    received = {
        place: sum(abs(links[i].score) for i in usable if links[i].target == place)
        for place in range(components)
    }
    paths: list[Path] = []

    def walk(place: int, edges: tuple[int, ...]) -> None:
        onward = [i for i in usable if links[i].source == place]
        for i in onward:
            walk(links[i].target, (*edges, i))
        if not onward and edges:
            share = math.prod(abs(links[i].score) / received[links[i].target] for i in edges)
            paths.append(Path(share, edges))

    for place in range(components):
        if not received[place]:
            walk(place, ())
    return paths


LINKS = st.lists(
    st.builds(Link, st.integers(0, 6), st.integers(0, 6), st.integers(-9, 9).map(float)),
    max_size=18,
)


@given(LINKS, st.integers(1, 4))
def test_the_strongest_of_all_paths_are_found(links: list[Link], amount: int) -> None:
    every = all_paths(7, links)
    for place, found in enumerate(strongest_paths(7, links, amount)):
        through = [
            path
            for path in every
            if any(place in (links[i].source, links[i].target) for i in path.edges)
        ]
        best = sorted((path.share for path in through), reverse=True)[:amount]
        # Products in another order differ in their last bits; ties may be settled either way.
        assert [path.share for path in found] == pytest.approx(best, rel=1e-8)
        assert {path.edges for path in found} <= {path.edges for path in through}
        assert len({path.edges for path in found}) == len(found)


def test_shares_of_all_paths_into_one_output_sum_to_one() -> None:
    links = [Link(a, b, (-1.0) ** a * (a + 2 * b)) for a in range(5) for b in range(a + 1, 5)]
    (into_last,) = strongest_paths(5, links, 100)[4:]
    assert len(into_last) == 8  # each of the three between is passed or not
    assert sum(path.share for path in into_last) == pytest.approx(1.0)


def test_edges_without_score_or_against_the_order_carry_nothing() -> None:
    links = [Link(0, 1, 0.0), Link(2, 1, 5.0), Link(0, 2, -1.0)]
    assert strongest_paths(3, links, 3) == ((Path(1.0, (2,)),), (), (Path(1.0, (2,)),))


def test_equal_paths_go_by_their_edges() -> None:
    links = [Link(0, 1, 0.1 + 0.2), Link(0, 1, 0.3), Link(0, 1, -0.3)]
    assert [path.edges for path in strongest_paths(2, links, 2)[1]] == [(0,), (1,)]
