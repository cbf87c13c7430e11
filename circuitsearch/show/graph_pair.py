"""Two circuit graphs in one picture: what both hold, and how the second differs from the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from circuitsearch.show.circuit import Circuit, Edge, in_drawing_order, in_order_of_strength

__all__ = ["difference", "united"]

_COMPARED = ("score", "effect")  # spreads and intervals of two graphs are not paired


def united(graphs: Sequence[Circuit]) -> Circuit:
    """Return a circuit with the components and edges of all graphs, for the layout.

    A component's numbers and cost are those of the first graph that has it.
    """
    parts = {part.name: part for graph in reversed(graphs) for part in graph.components}
    return Circuit(
        components=in_drawing_order(parts.values()),
        edges=in_order_of_strength(edge for graph in graphs for edge in graph.edges),
        about=graphs[0].about,
        paths=graphs[0].paths,
    )


def difference(first: Circuit, second: Circuit) -> Circuit:
    """Return the second graph minus the first.

    A component has a difference where both graphs have its number. An edge that one graph does not
    hold counts as zero there, and an edge without a difference is left out.
    """
    before = {part.name: part for part in first.components}
    parts = []
    for part in second.components:
        known = before[part.name].numbers if part.name in before else {}
        numbers = {
            key: part.numbers[key] - known[key]
            for key in _COMPARED
            if key in part.numbers and key in known
        }
        parts.append(replace(part, numbers=numbers, examples=0))
    change: dict[tuple[str, str, str], float] = {}
    for graph, sign in ((first, -1.0), (second, 1.0)):
        for edge in graph.edges:
            key = (edge.source, edge.target, edge.reader)
            change[key] = change.get(key, 0.0) + sign * edge.score
    edges = (
        Edge(source, target, score, reader)
        for (source, target, reader), score in change.items()
        if score
    )
    return Circuit(
        components=in_drawing_order(parts), edges=in_order_of_strength(edges), about=(), paths=()
    )
