from __future__ import annotations

import pytest

from circuitsearch.show.circuit import read_circuit
from circuitsearch.show.graph_pair import difference, united
from tests.show.circuits import circuit


def test_a_graph_does_not_differ_from_itself() -> None:
    graph = read_circuit(circuit(head_edges=20))
    change = difference(graph, graph)
    assert change.edges == ()
    assert {value for part in change.components for value in part.numbers.values()} == {0.0}


def test_the_difference_counts_absent_edges_as_zero_and_absent_numbers_as_unknown() -> None:
    first, second = circuit(), circuit()
    gone = second["edges"].pop(7)
    second["edges"][0]["score"] += 0.25
    second["nodes"] = [node for node in second["nodes"] if node["id"] != "C3.H1"]
    second["edges"] = [edge for edge in second["edges"] if edge["source"] != "C3.H1"]
    next(node for node in second["nodes"] if node["id"] == "M1")["effect"] = 1.0
    change = difference(read_circuit(first), read_circuit(second))
    found = {(edge.source, edge.target): edge.score for edge in change.edges}
    moved = second["edges"][0]
    assert found == {
        (gone["source"], gone["target"]): -gone["score"],
        (moved["source"], moved["target"]): pytest.approx(0.25),
    }
    parts = {part.name: part.numbers for part in change.components}
    assert parts["M1"]["effect"] == pytest.approx(1.0 - 0.09)
    assert "C3.H1" not in parts
    assert set(parts["M1"]) == {"score", "effect"}  # spreads of two graphs have no difference


def test_the_union_holds_every_component_once_in_drawing_order() -> None:
    small, large = read_circuit(circuit(heads=2)), read_circuit(circuit(heads=4))
    both = united([small, large])
    assert both.components[:4] == small.components[:4]  # the first graph's numbers and cost
    assert [part.name for part in both.components] == [part.name for part in large.components]
    assert len(both.edges) == len(small.edges) + len(large.edges)
