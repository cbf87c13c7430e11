"""Circuits from scores: which edges to keep, connected by construction.

Every rule takes edges (never components), then keeps only what lies on a way from a source, the
embedding or the encoder, to the logits. A way enters a component by any of its readers and leaves
it by what it writes; a key or value reader that grouped queries share leads on to all its heads.
Fewer edges than were taken may therefore remain; taking more never loses one.

    top_edges           the strongest edges, wherever they are
    greedy_edges        grown from the logits: always the strongest edge into what is there already
    influential_edges   the edges that carry most of the influence on the logits over all paths

An edge table is [writers, readers] throughout. Ties go to the edge that comes first. No torch.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping

import numpy as np

from circuitsearch.core.errors import (
    ConfigError,
    DataError,
    integer_problems,
    number_problems,
    raise_together,
)

from ..wiring import Wiring
from .structure import feeds, shaped

__all__ = [
    "RULES",
    "connected_edges",
    "greedy_edges",
    "influence",
    "influential_edges",
    "top_edges",
]

Rule = Callable[..., np.ndarray]


def connected_edges(wiring: Wiring, kept: np.ndarray) -> np.ndarray:
    """Return the kept edges that lie on a way from a source to the logits.

    What is dropped leaves nothing dangling, so a second call changes nothing.

    Args:
        wiring: writers and readers.
        kept: [writers, readers] of bool; edges that do not exist are left out.

    Raises:
        DataError: the table has another shape.
    """
    there = shaped(wiring, kept).astype(bool) & wiring.present
    fed = feeds(wiring)
    sources = np.array([writer.sublayer is None for writer in wiring.writers])
    sinks = np.array([reader.sublayer is None for reader in wiring.readers])

    reached = _closed(sources, lambda writers: (there & writers[:, None]).any(axis=0) @ fed)
    used = _closed(sinks, lambda readers: fed @ (there & readers).any(axis=1))
    kept_edges: np.ndarray = there & reached[:, None] & used
    return kept_edges


def top_edges(
    wiring: Wiring,
    scores: np.ndarray,
    edge_count: int,
    *,
    absolute: bool = True,
    among: np.ndarray | None = None,
) -> np.ndarray:
    """Keep the strongest edges, then what of them is connected.

    Args:
        wiring: writers and readers.
        scores: [writers, readers]; ignored where no edge may be taken.
        edge_count: how many edges to take; more than there are takes all.
        absolute: rank by absolute score; otherwise by signed score, helpful edges first.
        among: [writers, readers] of bool, the edges that may be taken; None for all.

    Returns:
        [writers, readers] of bool; the connected part of what was taken.

    Raises:
        ConfigError: the count is no integer from 0.
        DataError: a score is not finite, or the table has another shape.
    """
    there, values = _values(wiring, scores, edge_count, absolute, among)
    kept = np.zeros(there.shape, dtype=bool)
    places = np.flatnonzero(there)
    order = np.argsort(-values.flat[places], kind="stable")
    kept.flat[places[order[:edge_count]]] = True
    return connected_edges(wiring, kept)


def greedy_edges(
    wiring: Wiring,
    scores: np.ndarray,
    edge_count: int,
    *,
    absolute: bool = True,
    among: np.ndarray | None = None,
) -> np.ndarray:
    """Grow a circuit from the logits: take the strongest edge into it, again and again.

    An edge is open for taking when its reader is the logits or feeds a component that already
    writes into the circuit. Components that the count left without input are dropped at the end.

    Arguments, result and errors are those of `top_edges`.
    """
    there, values = _values(wiring, scores, edge_count, absolute, among)
    fed = feeds(wiring)
    kept = np.zeros(there.shape, dtype=bool)
    opened = np.array([reader.sublayer is None for reader in wiring.readers])
    heap: list[tuple[float, int, int]] = []

    def open_edges(readers: np.ndarray) -> None:
        for v in readers:
            for u in np.flatnonzero(there[:, v]):
                heapq.heappush(heap, (-values[u, v], int(u), int(v)))

    open_edges(np.flatnonzero(opened))
    for _ in range(edge_count):
        if not heap:
            break
        _, u, v = heapq.heappop(heap)
        kept[u, v] = True
        fresh = fed[:, u] & ~opened
        opened |= fresh
        open_edges(np.flatnonzero(fresh))
    return connected_edges(wiring, kept)


RULES: Mapping[str, Rule] = {"top": top_edges, "greedy": greedy_edges}
"""Rules that take a number of edges, by name."""


def influence(wiring: Wiring, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how much of the logits' input each writer and each edge carries, over all paths.

    The absolute scores into a component, over all its readers, are normalised to shares of one;
    a path's influence is the product of its shares, and an edge's the sum over all paths that
    cross it to the logits: w (A + A^2 + ...), as circuit-tracer prunes its graphs, without listing
    a path. Where every component has scored input, embedding and encoder together carry one.

    Returns:
        [writers] and [writers, readers], not negative; the edges into the logits sum to one.

    Raises:
        DataError: a score is not finite, or the table has another shape.
    """
    _, sizes = _values(wiring, scores, 0, True, None)
    fed = feeds(wiring).astype(float)
    inputs = sizes.sum(axis=0)
    totals = inputs @ fed
    rate = np.array([reader.sublayer is None for reader in wiring.readers], dtype=float)
    rate /= inputs[rate > 0].sum() or 1.0  # influence per unit of score into each reader
    carried = np.zeros(len(wiring.writers))
    order = sorted({w.sublayer for w in wiring.writers if w.sublayer is not None}, reverse=True)
    for sublayer in order:
        # later readers are settled by now, so the sum over them is final
        own = [u for u, writer in enumerate(wiring.writers) if writer.sublayer == sublayer]
        carried[own] = sizes[own] @ rate
        shares = np.divide(carried[own], totals[own], where=totals[own] > 0, out=np.zeros(len(own)))
        rate += fed[:, own] @ shares
    edges: np.ndarray = sizes * rate
    return edges.sum(axis=1), edges


def influential_edges(
    wiring: Wiring,
    scores: np.ndarray,
    *,
    component_share: float = 0.8,
    edge_share: float = 0.98,
) -> np.ndarray:
    """Keep the components, then the edges between them, that carry most of the influence.

    The components of largest influence are kept until they hold `component_share` of what all of
    them hold together; embedding and encoder always stay. Influence is then worked out again
    without the others, and edges are kept in the same way. The defaults are circuit-tracer's.

    Returns:
        [writers, readers] of bool, connected.

    Raises:
        ConfigError: a share is outside 0 to 1.
        DataError: a score is not finite, or the table has another shape.
    """
    problems = number_problems("component_share", component_share, 0.0, 1.0)
    problems += number_problems("edge_share", edge_share, 0.0, 1.0)
    raise_together(problems, ConfigError, "Influential edges")
    carried, _ = influence(wiring, scores)
    sources = np.array([writer.sublayer is None for writer in wiring.writers])
    stays = sources | _covering(np.where(sources, 0.0, carried), component_share)
    between = stays[:, None] & ((feeds(wiring) @ stays) | ~feeds(wiring).any(axis=1))
    _, edges = influence(wiring, np.where(between, scores, 0.0))
    return connected_edges(wiring, between & _covering(edges, edge_share))


def _covering(values: np.ndarray, share: float) -> np.ndarray:
    """Return the fewest, largest entries that hold a share of the sum; as bool, same shape."""
    order = np.argsort(-values, axis=None, kind="stable")
    reached = np.cumsum(values.flat[order])
    # rounding must not ask for one entry more than the share needs
    needed = np.searchsorted(reached, share * reached[-1] * (1 - 1e-12)) + 1
    kept = np.zeros(values.shape, dtype=bool)
    kept.flat[order[:needed]] = share > 0
    return kept & (values > 0)


def _closed(start: np.ndarray, step: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return the smallest set that holds `start` and what `step` reaches from it."""
    found = start
    while True:
        grown = start | step(found)
        if np.array_equal(grown, found):
            return found
        found = grown


def _values(
    wiring: Wiring,
    scores: np.ndarray,
    edge_count: int,
    absolute: bool,
    among: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return which edges may be taken, and what to rank them by, zero elsewhere."""
    raise_together(integer_problems("edge_count", edge_count), ConfigError, "Selection")
    there = wiring.present
    if among is not None:
        there = there & shaped(wiring, among)
    values = np.where(there, shaped(wiring, scores), 0.0).astype(float)
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        u, v = wrong[0]
        raise DataError(
            f"Selection: the score of {wiring.writers[u].name} -> {wiring.readers[v].name} is "
            f"{values[u, v]}, and {len(wrong) - 1} more are not finite; score the edges again"
        )
    return there, np.abs(values) if absolute else values
