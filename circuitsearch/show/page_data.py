"""The data block of the circuit page: what `templates/circuit/*.js` draws, as plain JSON.

Everything is worked out here, where it is typed and tested: places, ranges, the strongest paths
through every component, the difference of two graphs, and for every plan the state of every
component. The script only draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.errors import PlanError, raise_together
from circuitsearch.core.keep import REPLACEMENTS, WHOLE, Keep
from circuitsearch.core.page_maps import PageMaps
from circuitsearch.core.plan import Plan
from circuitsearch.show.circuit import Circuit, Component, kind_words
from circuitsearch.show.graph_pair import difference, united
from circuitsearch.show.layout import Box, lay_out
from circuitsearch.show.page_maps import pages_data
from circuitsearch.show.text import one_line, rounded
from circuitsearch.show.through import Link, strongest_paths

__all__ = ["FIRST_EDGES", "PATHS", "page_data"]

FIRST_EDGES = 300  # what the page opens with; more is a hairball
PATHS = 5  # strongest paths through each component
_REMOVED, _PARTLY, _KEPT = "0", "1", "2"


def page_data(
    graph: Circuit,
    plans: Mapping[str, str],
    edge_limit: int,
    *,
    other: Circuit | None = None,
    names: tuple[str, str] = ("first graph", "second graph"),
    pages: Sequence[PageMaps] = (),
) -> dict[str, Any]:
    """Return the data block.

    Args:
        graph: the circuit graph.
        plans: plan texts by name, to lay over the graph.
        edge_limit: most edges of each graph in the page; the strongest stay.
        other: a second graph to compare with; the page also gets the difference.
        names: what the two graphs are called.
        pages: questions about page images, with the weights of heads.

    Raises:
        DataError: a page does not fit the graph or its own grid; all faults together.
        PlanError: a plan is malformed or names what the graph does not have; all faults together.
    """
    measured = [graph] if other is None else [graph, other]
    whole = united(measured)
    index = {part.name: place for place, part in enumerate(whole.components)}
    heads = _heads(whole)
    layout = lay_out(whole)
    # Graphs that are compared by eye share their ranges; a difference has its own.
    shared = _ranges(measured)
    views = [
        _view(one, name, index, edge_limit, shared)
        for one, name in zip(measured, names, strict=False)
    ]
    if other is not None:
        change = difference(graph, other)
        words = f"{names[1]} minus {names[0]}"
        views.append(_view(change, words, index, edge_limit, _ranges([change])))
    pictures, questions = pages_data(pages, index)
    return {
        "arcs": layout.arcs,
        "bar": layout.bar,
        "components": [
            _component(part, box, index, heads)
            for part, box in zip(whole.components, layout.boxes, strict=True)
        ],
        "graphs": views,
        "layers": [[n, box.x, box.y, box.width, box.height] for n, box in layout.layers],
        "pages": questions,
        "pictures": pictures,
        "plans": [_plan(name, plan, whole, heads) for name, plan in _read(plans, whole, heads)],
        "size": [layout.width, layout.height],
        "stream": layout.stream,
        "units": layout.units,
    }


def _view(
    graph: Circuit, name: str, index: Mapping[str, int], edge_limit: int, ranges: Mapping[str, Any]
) -> dict[str, Any]:
    """Return one graph: its numbers by component, its edges and paths."""
    shown = graph.edges[:edge_limit]
    links = [Link(index[edge.source], index[edge.target], edge.score) for edge in shown]
    known = {part.name: part for part in graph.components}
    numbers: list[dict[str, float | int]] = []
    for part in (known.get(name) for name in index):
        found = {key: rounded(value) for key, value in part.numbers.items()} if part else {}
        numbers.append(found | ({"examples": part.examples} if part and part.examples else {}))
    return {
        "about": [[key, v if isinstance(v, str) else rounded(v)] for key, v in graph.about],
        # Arrays, not objects: a graph of heads has thousands of edges.
        "edges": [
            [link.source, link.target, rounded(edge.score), edge.reader]
            for link, edge in zip(links, shown, strict=True)
        ],
        "first": min(FIRST_EDGES, len(shown)),
        "name": one_line(name),
        "numbers": numbers,
        "omitted": len(graph.edges) - len(shown),
        "paths": [[path, rounded(value)] for path, value in graph.paths],
        # Share, then the places of the path's edges in the list above.
        "through": [
            [[rounded(path.share, 4), *path.edges] for path in paths]
            for paths in strongest_paths(len(index), links, PATHS)
        ],
        **ranges,
    }


def _heads(graph: Circuit) -> dict[SubLayer, set[int]]:
    """Return the heads that the graph shows, by sub-layer."""
    heads: dict[SubLayer, set[int]] = {}
    for part in graph.components:
        if part.sublayer is not None and part.head is not None:
            heads.setdefault(part.sublayer, set()).add(part.head)
    return heads


def _component(
    part: Component, box: Box, index: Mapping[str, int], heads: Mapping[SubLayer, set[int]]
) -> dict[str, Any]:
    """Return one component: its place in the picture and its numbers."""
    data: dict[str, Any] = {
        "cost": [list(entry) for entry in part.cost],
        "h": box.height,
        "heads": 0,
        "kind": part.kind,
        "name": part.name,
        "parent": -1,
        "sublayer": part.sublayer is not None,
        "w": box.width,
        "words": kind_words(part),
        "x": box.x,
        "y": box.y,
    }
    if part.sublayer is not None and part.head is None:
        data["heads"] = len(heads.get(part.sublayer, ()))
    elif part.sublayer is not None:
        data["parent"], data["head"] = index[part.sublayer.name], part.head
    return data


def _ranges(graphs: Sequence[Circuit]) -> dict[str, Any]:
    """Return what sizes and colours are relative to.

    `scale` is the range of the effect bars: every whole sub-layer's score and effect, and 0. A
    spread may reach beyond; widening the range for one noisy component would flatten the rest.
    `largest` is the largest strength of a sub-layer and of a head, `strongest` that of an edge.
    """
    values = [0.0]
    largest = [0.0, 0.0]
    for part in (part for graph in graphs for part in graph.components):
        known = [part.numbers[key] for key in ("effect", "score") if key in part.numbers]
        if part.head is None:
            values += known
        if known:
            level = int(part.head is not None)
            largest[level] = max(largest[level], abs(known[0]))
    low, high = min(values), max(values)
    room = 0.12 * (high - low)
    strongest = max((abs(edge.score) for graph in graphs for edge in graph.edges[:1]), default=0.0)
    return {
        "largest": [rounded(value) for value in largest],
        "scale": [rounded(low - room if low < 0 else 0.0), rounded(high + room)],
        "strongest": rounded(strongest),
    }


def _read(
    plans: Mapping[str, str], graph: Circuit, heads: Mapping[SubLayer, set[int]]
) -> Sequence[tuple[str, Plan]]:
    """Read the plans; refuse those that name sub-layers or heads outside the graph."""
    known = {part.sublayer for part in graph.components}
    problems: list[str] = []
    read: list[tuple[str, Plan]] = []
    for name, text in plans.items():
        try:
            plan = Plan.parse(text)
        except PlanError as error:
            problems.append(f"{name}: {error}")
            continue
        for sublayer, keep in plan.kept:
            there = heads.get(sublayer)
            if sublayer not in known:
                problems.append(f"{name}: the graph has no {sublayer}")
            elif there is not None:
                strangers = [head for head in keep.heads or () if head not in there]
                problems += [f"{name}: the graph has no {sublayer}.H{head}" for head in strangers]
        read.append((name, plan))
    raise_together(problems, PlanError, "Plans of the circuit page")
    return read


def _plan(
    name: str, plan: Plan, graph: Circuit, heads: Mapping[SubLayer, set[int]]
) -> dict[str, Any]:
    """Return a plan as one state per component and a note on every sub-layer kept in part."""
    states = []
    notes: dict[str, str] = {}
    for place, part in enumerate(graph.components):
        # Embedding, encoder and logits belong to every student.
        keep = WHOLE if part.sublayer is None else plan.keep(part.sublayer)
        state, note = _state(
            part, keep, heads.get(part.sublayer, set()) if part.sublayer else set()
        )
        states.append(state)
        if note:
            notes[str(place)] = note
    text = str(plan) or "(empty)"
    return {"name": one_line(name), "notes": notes, "states": "".join(states), "text": text}


def _state(part: Component, keep: Keep | None, heads: set[int]) -> tuple[str, str]:
    """Return a component's state and, for a sub-layer kept in part, how much is kept.

    Args:
        part: the component.
        keep: what the plan keeps of its sub-layer, None for nothing.
        heads: the sub-layer's heads, as far as the graph shows them.
    """
    if keep is None:
        return _REMOVED, ""
    if keep.replacement is not None:
        own = not REPLACEMENTS[keep.replacement].fitted  # the sub-layer still runs
        if part.head is not None:
            return (_KEPT if own else _REMOVED), ""
        before = " (with all before it)" if keep.prefix else ""
        return _PARTLY, f"replaced: {keep.replacement}{before}"
    if part.head is not None:
        return (_KEPT if keep.heads is None or part.head in keep.heads else _REMOVED), ""
    if keep.whole or (heads and set(keep.heads or ()) == heads):
        return _KEPT, ""
    if part.kind == Kind.FEED.value:
        return _PARTLY, f"{keep.width:,} neurons kept"
    of = f" of {len(heads)}" if heads else ""
    return _PARTLY, f"{len(keep.heads or ())}{of} heads kept"
