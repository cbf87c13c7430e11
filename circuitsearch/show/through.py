"""The strongest paths through every component of a circuit graph.

A path is a chain of edges from a component that nothing in the graph writes to (the embedding, the
encoder) to one that nothing reads (the logits). An edge's *share* is its part of the absolute
score that its target receives; a path's share is the product of its edges':

    share(e) = |score(e)| / sum of |score| over the edges into the target of e
    share(path) = product of share(e) over the path's edges

So the shares of all paths into the logits sum to one, and a path is strong when each of its
components gets much of what it reads from the one before. This is the normalisation that
attribution graphs of transcoders use for the influence of a component on the output (Ameisen et
al. 2025). It ranks what the graph says; only patching along a path measures its effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Link", "Path", "strongest_paths"]

# Sums of two machines differ in their last bits; paths of equal strength go by their edges.
_DIGITS = 9


class Link(NamedTuple):
    """An edge between two places of the drawing order."""

    source: int
    target: int
    score: float


class Path(NamedTuple):
    """A path: its share, and its edges from the first to the last."""

    share: float
    edges: tuple[int, ...]


def strongest_paths(
    components: int, links: Sequence[Link], amount: int
) -> tuple[tuple[Path, ...], ...]:
    """Return the `amount` strongest paths through each component, strongest first.

    The k best paths from below and the k best to above are found in one pass each way; the k best
    through a component are among the k * k pairs. Edges of score zero and edges that run against
    the drawing order carry no path.

    Args:
        components: number of components.
        links: the graph's edges.
        amount: paths per component, k.

    Returns:
        One tuple per component, empty for a component without edges.
    """
    into: list[list[int]] = [[] for _ in range(components)]
    out: list[list[int]] = [[] for _ in range(components)]
    received = [0.0] * components
    for place, link in enumerate(links):
        if link.source < link.target and link.score:
            into[link.target].append(place)
            out[link.source].append(place)
            received[link.target] += abs(link.score)

    def share(place: int) -> float:
        link = links[place]
        return abs(link.score) / received[link.target]

    start = [Path(1.0, ())]
    below: list[list[Path]] = []
    for component in range(components):
        ways = [
            Path(way.share * share(place), (*way.edges, place))
            for place in into[component]
            for way in below[links[place].source]
        ]
        below.append(_best(ways, amount) if into[component] else start)
    above: list[list[Path]] = [start] * components
    for component in reversed(range(components)):
        ways = [
            Path(share(place) * way.share, (place, *way.edges))
            for place in out[component]
            for way in above[links[place].target]
        ]
        above[component] = _best(ways, amount) if out[component] else start
    return tuple(
        tuple(
            _best(
                [
                    Path(first.share * last.share, first.edges + last.edges)
                    for first in below[component]
                    for last in above[component]
                ],
                amount,
            )
            if into[component] or out[component]
            else ()
        )
        for component in range(components)
    )


def _best(ways: list[Path], amount: int) -> list[Path]:
    """Return the strongest, ties by their edges."""
    return sorted(ways, key=lambda way: (-float(f"{way.share:.{_DIGITS}g}"), way.edges))[:amount]
