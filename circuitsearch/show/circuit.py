"""The circuit graph as the viewer reads it: typed records made from node-link JSON.

The file is what networkx writes with `node_link_data(graph, edges="edges")`:

    {"directed": true, "graph": {...}, "nodes": [{"id": "C3", "score": ...}, ...],
     "edges": [{"source": "C2", "target": "C3", "port": "q", "score": ...}, ...]}

A component is recognised by its name: `S0`, `C3`, `M1`, a head `C3.H11`, or one of the ends
`embedding`, `encoder`, `logits`. An edge says in `port` (files of schema 1: `reader`) where its
target reads. Other tools' files may have it in the name (`C3.q`, `C3.kv`, `C3.H11.k`): such an
entry is a reading place of its component, not a component of its own. Numbers that are absent stay
absent; numbers that are not finite are refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from circuitsearch.core.components import Head, Kind, SubLayer, parse_component
from circuitsearch.core.errors import DataError, PlanError, raise_together
from circuitsearch.show.text import one_line

__all__ = [
    "EMBEDDING",
    "ENCODER",
    "LOGITS",
    "Circuit",
    "Component",
    "Edge",
    "in_drawing_order",
    "in_order_of_strength",
    "kind_words",
    "read_circuit",
]

EMBEDDING, ENCODER, LOGITS = "embedding", "encoder", "logits"
# Spellings of the three ends that graph writers use; the first names the end in the page.
_ENDS = {
    **dict.fromkeys(("embedding", "embeddings", "embed", "input", "tokens"), EMBEDDING),
    **dict.fromkeys(("encoder", "memory", "page"), ENCODER),
    **dict.fromkeys(("logits", "output", "readout"), LOGITS),
}
_KIND_WORDS = {
    Kind.SELF.value: "self-attention",
    Kind.CROSS.value: "cross-attention",
    Kind.FEED.value: "feed-forward",
    EMBEDDING: "token embedding",
    ENCODER: "image encoder",
    LOGITS: "output logits",
}
_READER = re.compile(r"(.+)\.(q|k|v|kv|qk|qkv|in)")
_LISTS = ("nodes", "edges")
_PORTS = ("port", "reader")
_NUMBERS = (
    *("score", "score_sd", "sign_consistency", "score_low", "score_high"),
    *("effect", "effect_sd", "effect_low", "effect_high"),
)


@dataclass(frozen=True, kw_only=True)
class Component:
    """One component of the picture.

    Attributes:
        name: canonical name (`C3`, `C3.H11`, `embedding`).
        kind: `S`, `C`, `M`, or one of the three ends.
        sublayer: the sub-layer that it is or belongs to; None for an end.
        head: index of the head; None for a whole sub-layer or an end.
        numbers: what is known of score, score_sd, sign_consistency, score_low, score_high, effect,
            effect_sd, effect_low, effect_high.
        examples: number of examples behind the numbers, 0 when unknown.
        cost: pairs such as ("parameters", 4194304), as named in the file.
    """

    name: str
    kind: str
    sublayer: SubLayer | None = None
    head: int | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    examples: int = 0
    cost: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Edge:
    """One edge: what `source` writes, read by `target` (through `reader`, where that is known)."""

    source: str
    target: str
    score: float
    reader: str = ""


@dataclass(frozen=True)
class Circuit:
    """Components in drawing order (embedding, encoder, execution order, logits) and their edges.

    Attributes:
        components: every component once.
        edges: by falling strength, ties by name, so that the first n are the n strongest.
        about: what the graph says of itself (teacher, metric, ablation, ...), plain values only.
        paths: the most effective paths to `paths.target` with their effectiveness, best first.
    """

    components: tuple[Component, ...]
    edges: tuple[Edge, ...]
    about: tuple[tuple[str, str | float | int], ...]
    paths: tuple[tuple[str, float], ...] = ()


def read_circuit(data: Any) -> Circuit:
    """Read the node-link JSON of a circuit graph.

    Args:
        data: the JSON object (see the module's docstring).

    Raises:
        DataError: lists everything that is malformed: missing lists, unknown or repeated names,
            edges to components that do not exist, numbers that are not finite.
    """
    heading = "Circuit graph"
    lists = {name: data.get(name) if isinstance(data, Mapping) else None for name in _LISTS}
    raise_together(
        [
            f"{name}: got {type(value).__name__}, expected a list of objects; "
            'write the graph with networkx.node_link_data(graph, edges="edges")'
            for name, value in lists.items()
            if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value)
        ],
        DataError,
        heading,
    )
    problems: list[str] = []
    components = _components(lists["nodes"] or [], problems)
    edges = _edges(lists["edges"] or [], components, problems)
    raise_together(problems, DataError, heading)
    about = data.get("graph")
    about = about if isinstance(about, Mapping) else {}
    return Circuit(
        components=in_drawing_order(components.values()),
        edges=in_order_of_strength(edges),
        about=tuple(sorted(_plain_values(_facts(about)))),
        paths=_paths(about.get("paths")),
    )


def _components(entries: list[Any], problems: list[str]) -> dict[str, Component]:
    """Read the components; a reader (`C3.q`) is folded into its component."""
    found: dict[str, Component] = {}
    for index, entry in enumerate(entries):
        text = entry.get("id")
        name, reader = _split(text) if isinstance(text, str) else (None, "")
        if name is None:
            problems.append(
                f"nodes[{index}]: id {text!r} is no component; allowed are S0, C3, M1, C3.H11, "
                f"{EMBEDDING}, {ENCODER} and {LOGITS}"
            )
        elif reader:
            continue
        elif name in found:
            problems.append(f"nodes[{index}]: component {name} appears more than once")
        else:
            found[name] = _component(name, entry, problems)
    # Every decoder has both ends, and a head stands in the row of its sub-layer, whether or not
    # the graph says so.
    rows = [part.sublayer.name for part in found.values() if part.sublayer is not None]
    for name in (EMBEDDING, LOGITS, *rows):
        if name not in found:
            found[name] = _component(name, {}, problems)
    return found


def _component(name: str, entry: Mapping[str, Any], problems: list[str]) -> Component:
    """Read one component's numbers and cost."""
    numbers = {}
    for key in _NUMBERS:
        value = entry.get(key)
        if value is not None:
            numbers[key] = _finite(value, f"component {name}: {key}", problems)
    examples = entry.get("examples")
    facts: dict[str, Any] = {
        "numbers": numbers,
        "examples": examples if isinstance(examples, int) else 0,
        "cost": tuple(sorted(_costs(entry))),
    }
    if name in (EMBEDDING, ENCODER, LOGITS):
        return Component(name=name, kind=name, **facts)
    part = parse_component(name)
    if isinstance(part, Head):
        kind = part.sublayer.kind.value
        return Component(name=name, kind=kind, sublayer=part.sublayer, head=part.index, **facts)
    return Component(name=name, kind=part.kind.value, sublayer=part, **facts)


def _edges(
    entries: list[Any], components: Mapping[str, Component], problems: list[str]
) -> list[Edge]:
    """Read the edges that carry a score; parallel edges with different readers stay apart."""
    edges: list[Edge] = []
    for index, entry in enumerate(entries):
        ends = [entry.get(side) for side in ("source", "target")]
        names = [_split(end) if isinstance(end, str) else (None, "") for end in ends]
        (source, _), (target, reader) = names
        if source not in components or target not in components:
            problems.append(f"edges[{index}]: {ends[0]!r} to {ends[1]!r} joins no two components")
            continue
        score = entry.get("score", entry.get("effect"))
        # Without a score, or from a reader to its own component, an edge only says what is joined.
        if score is None or source == target or source is None or target is None:
            continue
        number = _finite(score, f"edge {source} to {target}: score", problems)
        named = next((entry[key] for key in _PORTS if key in entry), None)
        edges.append(
            Edge(source, target, number, one_line(named) if isinstance(named, str) else reader)
        )
    return edges


def _split(text: str) -> tuple[str | None, str]:
    """Split `C3.q` into the component's canonical name, None if there is none, and the reader."""
    end = _ENDS.get(text.casefold())
    if end is not None:
        return end, ""
    try:
        return parse_component(text).name, ""
    except PlanError:
        found = _READER.fullmatch(text)
    if found is None:
        return None, ""
    return _split(found[1])[0], found[2]


def _finite(value: Any, what: str, problems: list[str]) -> float:
    """Return a number as a float; report anything else and return 0."""
    if _is_number(value):
        return float(value)
    problems.append(f"{what} is {value!r}, allowed are finite numbers")
    return 0.0


def _is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number (True and False are not numbers)."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _costs(entry: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield costs: plain `parameters` and `macs`, and `cost` per accounting or flat."""
    cost = entry.get("cost")
    parts: dict[str, Any] = {"": entry}
    if isinstance(cost, Mapping):
        parts = {"": cost, **{f" ({one_line(str(key))})": cost[key] for key in cost}}
    for suffix, part in parts.items():
        for quantity in ("parameters", "macs"):
            value = part.get(quantity) if isinstance(part, Mapping) else None
            if isinstance(value, int) and not isinstance(value, bool):
                yield f"{quantity}{suffix}", value


def _facts(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts with those of the recipe among them, and of the wiring its level only."""
    facts = {key: value for key, value in about.items() if key not in ("recipe", "wiring")}
    wiring, recipe = about.get("wiring"), about.get("recipe")
    if isinstance(wiring, Mapping) and "level" in wiring:
        facts["level"] = wiring["level"]
    return {**facts, **recipe} if isinstance(recipe, Mapping) else facts


def _plain_values(
    about: Mapping[str, Any], before: str = ""
) -> Iterator[tuple[str, str | float | int]]:
    """Yield the text and the finite numbers of nested objects, keys joined by dots."""
    for key, value in about.items():
        name = f"{before}{one_line(str(key))}"
        if isinstance(value, Mapping):
            yield from _plain_values(value, f"{name}.")
        elif isinstance(value, str):
            yield name, one_line(value)
        elif _is_number(value):
            yield name, value


def _paths(paths: Any) -> tuple[tuple[str, float], ...]:
    """Return the best paths as text and effectiveness; entries of another form are left out."""
    best = paths.get("best") if isinstance(paths, Mapping) else None
    found = []
    for one in best if isinstance(best, list) else ():
        through = one.get("through") if isinstance(one, Mapping) else None
        if isinstance(through, list) and _is_number(one.get("effectiveness")):
            name = " ".join(one_line(str(part)) for part in through)
            found.append((name or "residual", float(one["effectiveness"])))
    return tuple(found)


def in_drawing_order(components: Iterable[Component]) -> tuple[Component, ...]:
    """Sort components: embedding, encoder, order of execution, logits."""
    return tuple(sorted(components, key=_order))


def in_order_of_strength(edges: Iterable[Edge]) -> tuple[Edge, ...]:
    """Sort edges, strongest first, ties by name."""
    return tuple(sorted(edges, key=_strength))


def _order(component: Component) -> tuple[int, int, int]:
    """Sort key of the drawing order; a sub-layer comes before its heads."""
    if component.sublayer is None:
        place = {EMBEDDING: -2, ENCODER: -1, LOGITS: 1}[component.kind]
        return (place, 0, 0)
    head = -1 if component.head is None else component.head
    return (0, component.sublayer.position, head)


def _strength(edge: Edge) -> tuple[float, str, str, str]:
    """Sort key: strongest first."""
    return (-abs(edge.score), edge.source, edge.target, edge.reader)


def kind_words(component: Component) -> str:
    """Say in words what a component is, e.g. "head of cross-attention"."""
    words = _KIND_WORDS[component.kind]
    return words if component.head is None else f"head of {words}"
