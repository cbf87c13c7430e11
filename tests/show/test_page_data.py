from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from circuitsearch.core.errors import PlanError
from circuitsearch.show.circuit import read_circuit
from circuitsearch.show.page_data import page_data
from tests.show.circuits import circuit


def states(plan: str, **options: int) -> tuple[dict[str, str], dict[str, str]]:
    data = page_data(read_circuit(circuit(**options)), {"p": plan}, 100)
    names = [part["name"] for part in data["components"]]
    entry = data["plans"][0]
    notes = {names[int(place)]: note for place, note in entry["notes"].items()}
    return dict(zip(names, entry["states"], strict=True)), notes


def test_a_plan_gives_a_state_to_every_component() -> None:
    state, notes = states("M0:512 C2 S3[0-2,5]")
    assert state["M0"] == state["S3"] == "1"
    assert state["C2"] == state["C2.H7"] == state["S3.H5"] == "2"
    assert state["C3"] == state["C3.H0"] == state["S3.H3"] == "0"
    assert state["embedding"] == state["encoder"] == state["logits"] == "2"
    assert notes == {"M0": "512 neurons kept", "S3": "4 of 8 heads kept"}


def test_a_replaced_sublayer_says_by_what() -> None:
    state, notes = states("M1=mean C1=linear C3=alone")
    assert state["M1"] == state["C1"] == state["C3"] == "1"
    assert state["C1.H0"] == "0"  # its heads are gone
    assert state["C3.H0"] == "2"  # all of it runs, only the stream before is left behind
    assert notes == {"M1": "replaced: mean", "C1": "replaced: linear", "C3": "replaced: alone"}


def test_a_replaced_beginning_says_how_far_it_goes() -> None:
    state, notes = states("C1=token M1 C3")
    assert state["C1"] == "1"
    assert state["C1.H0"] == state["S0"] == state["C0"] == state["M0"] == state["S1"] == "0"
    assert state["M1"] == state["C3"] == state["embedding"] == "2"
    assert notes == {"C1": "replaced: token (with all before it)"}


def test_naming_every_head_keeps_the_sublayer_whole() -> None:
    state, notes = states("C3[0-7]")
    assert state["C3"] == "2"
    assert notes == {}


def test_heads_of_a_graph_without_heads_get_a_note() -> None:
    _, notes = states("C3[4,7-11]", heads=0)
    assert notes == {"C3": "6 heads kept"}


def test_plans_that_do_not_fit_are_refused_together() -> None:
    plans = {"a": "S9", "b": "C3[8]", "c": "C3[", "d": "C3"}
    with pytest.raises(PlanError) as caught:
        page_data(read_circuit(circuit()), plans, 100)
    message = str(caught.value)
    assert "a: the graph has no S9" in message
    assert "b: the graph has no C3.H8" in message
    assert "c: " in message
    assert "d: " not in message


def test_the_strongest_edges_stay_and_the_rest_is_counted() -> None:
    graph = read_circuit(circuit())
    data: dict[str, Any] = page_data(graph, {}, 10)["graphs"][0]
    assert len(data["edges"]) == 10
    assert data["omitted"] == 85
    assert data["first"] == 10
    assert [edge[2] for edge in data["edges"]] == pytest.approx(
        # The page holds six significant digits.
        [edge.score for edge in graph.edges[:10]],
        rel=1e-5,
    )


def test_the_page_opens_with_300_edges() -> None:
    data = page_data(read_circuit(circuit(head_edges=400)), {}, 4000)["graphs"][0]
    assert data["first"] == 300
    assert len(data["edges"]) > 450


def test_the_bars_range_covers_every_sublayers_score_and_effect_and_zero() -> None:
    graph = read_circuit(circuit())
    low, high = page_data(graph, {}, 1)["graphs"][0]["scale"]
    values = [
        part.numbers[key]
        for part in graph.components
        if part.head is None
        for key in ("score", "effect")
        if key in part.numbers
    ]
    assert low < min(values) < 0 < max(values) < high


def test_graphs_that_are_compared_share_their_ranges_and_the_difference_has_its_own() -> None:
    data = circuit()
    for entry in (*data["nodes"], *data["edges"]):
        entry.update({key: 3 * entry[key] for key in ("score", "effect") if key in entry})
    first, second, change = page_data(
        read_circuit(circuit()), {}, 100, other=read_circuit(data), names=("a", "b")
    )["graphs"]
    ranges = ("scale", "largest", "strongest")
    assert [first[key] for key in ranges] == [second[key] for key in ranges]
    assert change["name"] == "b minus a"
    # The second is three times the first, so the change is two thirds of it.
    assert change["largest"] == pytest.approx([2 / 3 * x for x in second["largest"]], rel=1e-5)
    assert change["strongest"] == pytest.approx(2 / 3 * second["strongest"], rel=1e-5)


def test_paths_name_edges_of_the_page_that_join() -> None:
    data = page_data(read_circuit(circuit(head_edges=60)), {}, 120)
    view = data["graphs"][0]
    names = [part["name"] for part in data["components"]]
    for place, paths in enumerate(view["through"]):
        for _, *edges in paths:
            ends = [view["edges"][edge][:2] for edge in edges]
            assert all(a[1] == b[0] for a, b in pairwise(ends))
            assert place in {end for pair in ends for end in pair}
    through = view["through"][names.index("C3")]
    shares = [path[0] for path in through]
    assert len(through) == 5
    assert shares == sorted(shares, reverse=True)
