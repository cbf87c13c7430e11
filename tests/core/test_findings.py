"""The record of an analysis: read back equal, refused where it says nothing or the impossible."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from circuitsearch.core.errors import DataError
from circuitsearch.core.findings import ANSWERS, Chart, Finding, Series, Table, Verdict
from tests.show.findings import bars, finding, heat, lines, verdict


@pytest.mark.parametrize("whole", [True, False])
def test_a_finding_is_read_back_equal_from_a_file(whole: bool) -> None:
    made = finding("skip", whole=whole)
    again = Finding.from_json(json.loads(json.dumps(made.to_json(), sort_keys=True)))
    assert again == made
    assert hash(again.verdicts) == hash(made.verdicts)  # tuples all the way down, as it was made
    assert {type(row) for table in again.tables for row in table.rows} <= {tuple}


def test_optional_fields_may_be_left_out() -> None:
    data = finding("skip", whole=False).to_json()
    for name in ("tables", "charts", "notes", "values"):
        del data[name]
    assert Finding.from_json(data) == finding("skip", whole=False)


def test_numpy_numbers_become_plain_ones() -> None:
    numpy = pytest.importorskip("numpy")
    table = Table("t", ("a", "b"), ((numpy.float64(0.5), numpy.int64(3)),))
    made = replace(finding("skip"), tables=(table,), values={"x": numpy.float64(2)})
    assert json.loads(json.dumps(made.to_json()))["tables"][0]["rows"] == [[0.5, 3]]


@pytest.mark.parametrize("answer", ANSWERS)
def test_every_answer_is_allowed(answer: Any) -> None:
    assert verdict(answer).answer == answer


def test_a_misspelt_answer_is_refused_with_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'not shown'"):
        verdict("not show")


def test_a_finding_answers_something() -> None:
    with pytest.raises(DataError, match="'skip': 2 problems") as told:
        replace(finding("skip"), verdicts=(), examples=-1)
    assert "no verdict" in str(told.value)
    assert "examples: got -1" in str(told.value)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (((1, 2), (3,)), "row 1: got 1 cells for 2"),
        (((1, math.nan),), "NaN or infinite"),
        (((math.inf, None),), "NaN or infinite"),
    ],
)
def test_tables_are_rectangular_and_finite(rows: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Table("Loss", ("a", "b"), rows)


def chart(**changes: Any) -> Chart:
    return replace(lines(), **changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "line"}, "did you mean 'lines'"),
        ({"series": ()}, "shows nothing"),
        ({"x": (), "series": (Series("a", ()),)}, "shows nothing"),
        ({"series": (Series("a", (1.0,)),)}, "a: y has 1 of 4"),
        ({"series": (Series("a", (1.0,) * 4, low=(0.0,)),)}, "a: low has 1 of 4"),
        ({"series": (Series("a", (1.0,) * 4, high=(math.nan,) * 4),)}, "a: high holds NaN"),
        ({"x": ("a", 2.0, 3.0, 4.0)}, "lines need numbers"),
    ],
)
def test_charts_that_cannot_be_drawn_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        chart(**changes)


def test_gaps_and_names_are_allowed() -> None:
    assert None in bars().series[0].y
    assert None in heat().series[0].y
    assert all(isinstance(x, str) for x in bars().x)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ((), "Reading a Finding"),
        (("verdicts", 0), "Reading a Verdict"),
        (("tables", 0), "Reading a Table"),
        (("charts", 0), "Reading a Chart"),
        (("charts", 0, "series", 0), "Reading a Series"),
    ],
)
def test_unknown_and_missing_fields_are_refused_wherever_they_are(
    place: tuple[str | int, ...], words: str
) -> None:
    for more in (True, False):
        data = json.loads(json.dumps(finding("skip").to_json()))
        inner: Any = data
        for step in place:
            inner = inner[step]
        if more:
            inner["surprise"] = 1
        else:
            del inner[next(iter(inner))]
        with pytest.raises(DataError, match=words):
            Finding.from_json(data)


def test_what_is_no_object_is_refused() -> None:
    given: list[Any] = [[], "text", None, {**finding("skip").to_json(), "verdicts": ["shown"]}]
    for data in given:
        with pytest.raises(DataError, match="expected a JSON object"):
            Finding.from_json(data)


def test_a_verdict_is_read_with_its_rule() -> None:
    made = verdict("partly")
    assert Finding.from_json(finding("skip").to_json()).verdicts[1] == made
    assert isinstance(made, Verdict)
