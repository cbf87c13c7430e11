"""Plans: text and JSON form, canonical order, fitting to a decoder, faults reported together."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from circuitsearch.core.components import DecoderShape, Kind, SubLayer, known_shape
from circuitsearch.core.errors import PlanError
from circuitsearch.core.keep import REPLACEMENTS
from circuitsearch.core.plan import WHOLE, Keep, Plan

SHAPE = known_shape("donut-base").decoder


def sub(text: str) -> SubLayer:
    return SubLayer.parse(text)


def test_parse_gives_canonical_order_and_ranges() -> None:
    plan = Plan.parse("M0 C2 S3[8,0-7] C3[4,7-11] M1:512")
    assert str(plan) == "M0 M1:512 C2 S3[0-8] C3[4,7-11]"
    assert plan.sublayers == tuple(sub(name) for name in ("M0", "M1", "C2", "S3", "C3"))
    assert plan.keep(sub("C3")) == Keep(heads=(4, 7, 8, 9, 10, 11))
    assert plan.keep(sub("M1")) == Keep(width=512)
    assert plan.keep(sub("M0")) == WHOLE
    assert plan.keep(sub("S0")) is None
    assert sub("C2") in plan
    assert sub("S0") not in plan


def test_two_neighbours_are_a_range() -> None:
    assert str(Plan.parse("S0[3,4,6]")) == "S0[3-4,6]"


def test_json_form() -> None:
    plan = Plan.parse("M0 C3[4,7-8] M1:512")
    data = [
        {"sublayer": "M0"},
        {"sublayer": "M1", "width": 512},
        {"sublayer": "C3", "heads": [4, 7, 8]},
    ]
    assert plan.to_json() == data
    assert Plan.from_json(data) == plan
    assert Plan.from_json(["C3[4,7-8]", "M0", {"sublayer": "M1", "width": 512}]) == plan
    assert Plan.from_json(str(plan)) == plan
    assert Plan.from_json([]) == Plan()


def test_replacements_are_written_with_an_equals_sign() -> None:
    plan = Plan.parse("C3=alone M1=mean S0=linear C0=linear C1=mean M0")
    assert str(plan) == "S0=linear C0=linear M0 C1=mean M1=mean C3=alone"
    assert plan.keep(sub("M1")) == Keep(replacement="mean")
    assert not Keep(replacement="mean").whole
    assert not Keep(replacement="mean").nothing
    data = [{"sublayer": "S0", "replacement": "linear"}, {"sublayer": "C3", "replacement": "alone"}]
    assert Plan.parse("C3=alone S0=linear").to_json() == data
    assert Plan.from_json([*reversed(data)]) == Plan.parse("S0=linear C3=alone")
    assert Plan.from_json([{**data[0], "heads": None, "width": None}]) == Plan.parse("S0=linear")
    assert Plan.parse("M1=mean").hash == hashlib.sha256(b'"M1=mean"').hexdigest()[:16]
    assert plan.fitted(SHAPE) == plan


def test_the_table_of_replacements() -> None:
    legal = {
        f"{kind}0={name}"
        for name, one in REPLACEMENTS.items()
        for kind in Kind
        if kind in one.kinds
    }
    assert legal == {"S0=mean", "C0=mean", "M0=mean", "S0=linear", "C0=linear", "M0=linear",
                     "C0=alone", "S0=token", "C0=token", "M0=token"}  # fmt: skip
    assert {name for name, one in REPLACEMENTS.items() if one.reads} == {"alone"}
    assert {name for name, one in REPLACEMENTS.items() if one.fitted} == {"mean", "linear", "token"}
    assert {name for name, one in REPLACEMENTS.items() if one.prefix} == {"token"}


def test_nothing_stands_in_front_of_a_replaced_beginning() -> None:
    plan = Plan.parse("C3 M1=mean C0=token M0:4")
    assert str(plan) == "C0=token M0:4 M1=mean C3"
    assert Plan.parse(str(plan)) == Plan.from_json(plan.to_json()) == plan
    assert plan.to_json()[0] == {"sublayer": "C0", "replacement": "token"}
    assert plan.fitted(SHAPE) == plan
    assert plan.units(sub("C0"), SHAPE) == 0
    # what keeps nothing is no part of the plan
    assert str(Plan.parse("S0[] C0=token C3")) == "C0=token C3"
    for build in (
        lambda: Plan.parse("M1=token C3 S0[1] C0=mean"),
        lambda: Plan.from_json(["C3", "C0=mean", "S0[1]", {"sublayer": "M1",
                                                            "replacement": "token"}]),
        lambda: Plan((
            (sub("M1"), Keep(replacement="token")), (sub("C0"), Keep(replacement="mean")),
            (sub("S0"), Keep(heads=(1,))),
        )),
    ):  # fmt: skip
        with pytest.raises(PlanError) as caught:
            build()
        text = str(caught.value)
        assert "M1=token stands for everything up to M1, but the plan keeps" in text
        assert "S0[1]" in text
        assert "C0=mean" in text
        assert "leave that out, or drop M1=token" in text
    with pytest.raises(PlanError, match="keeps C0=token in front of it"):
        Plan.parse("C0=token S1=token C3")


def test_faults_of_replacements_are_named_together() -> None:
    with pytest.raises(PlanError) as caught:
        Plan.parse("M1=maen S0=alone M2=alone C3[1]=mean M3:4=linear C0= M0=mean=mean S1=[1] S2=")
    text = str(caught.value)
    for fault in (
        "replacement: got 'maen', allowed are mean, linear, alone, token; did you mean 'mean'?",
        "S0=alone: this replacement is for C only; allowed for S0 are mean, linear, token",
        "M2=alone: this replacement is for C only; allowed for M2 are mean, linear, token",
        "got heads and a replacement; write one of them",
        "got width and a replacement; write one of them",
        "'C0=': Kept part of a sub-layer: replacement: got ''",
        "got 'mean=mean'",
        "got '[1]'",
    ):
        assert fault in text
    assert "9 problems" in text


def test_hash_is_that_of_the_text() -> None:
    assert Plan.parse("C2 M0").hash == hashlib.sha256(b'"M0 C2"').hexdigest()[:16]


def test_empty_and_full_plans() -> None:
    assert str(Plan()) == ""
    assert Plan.parse("") == Plan.parse(" , ") == Plan.parse("(empty)") == Plan()
    assert len(Plan.full(4).sublayers) == 12
    assert Plan.full(1) == Plan.parse("S0 C0 M0") == Plan.of([sub("M0"), "C0", "S0"])


def test_entries_that_keep_nothing_are_dropped() -> None:
    assert Plan.parse("S0[] M0:0 C1") == Plan.parse("C1")
    assert Plan(((sub("S0"), Keep(heads=())),)) == Plan()


def test_without() -> None:
    assert Plan.parse("M0 C2").without(sub("M0")) == Plan.parse("C2")
    assert Plan.parse("C2").without(sub("M0")) == Plan.parse("C2")


def test_fitted_makes_full_lists_whole() -> None:
    plan = Plan.parse("S3[0-15] C3[0-14] M1:4096 M2:4095")
    assert plan.fitted(SHAPE) == Plan.parse("S3 C3[0-14] M1 M2:4095")
    assert Plan.full(4).fitted(SHAPE) == Plan.full(4)


def test_units() -> None:
    plan = Plan.parse("S0 S3[0-8] M0 M1:512 C1=alone C2=linear M3=mean")
    names = ("S0", "S3", "M0", "M1", "C0", "M2", "C1", "C2", "M3")
    units = {name: plan.units(sub(name), SHAPE) for name in names}
    own = {"S0": 16, "S3": 9, "M0": 4096, "M1": 512, "C0": 0, "M2": 0}
    assert units == own | {"C1": 16, "C2": 0, "M3": 0}


def test_fitted_lists_every_fault() -> None:
    with pytest.raises(PlanError) as caught:
        Plan.parse("S4 S3[14-17,20] M1:5000 C0").fitted(SHAPE)
    text = str(caught.value)
    assert "3 problems" in text
    assert "S4: the decoder has 4 layers, allowed are S0 to M3" in text
    assert "S3: got heads 16-17,20, allowed are 0 to 15" in text
    assert "M1: got width 5000, allowed are 0 to 4096" in text


def test_parse_lists_every_fault() -> None:
    with pytest.raises(PlanError) as caught:
        Plan.parse("X9 c2 M0[1] S0:5 C1[3-1] C1 C1 M1:many S2[a] S1[2,1-3] ]")
    text = str(caught.value)
    for fault in (
        "got 'X9'",
        "did you mean 'C2'",
        "M0 is a feed-forward and has no heads; write a width: M0:512",
        "S0 is an attention and has no width; write heads: S0[0-3]",
        "got '3-1', allowed are 3 or an ascending range",
        "C1 is named more than once",
        "width: got 'many'",
        "heads: got 'a'",
        "head 2 is listed more than once",
        "unexpected ']'",
    ):
        assert fault in text
    assert "10 problems" in text


@pytest.mark.parametrize(
    "text", ["] S0", "S0[1]] C0", "S0[", "S0]", "S0 [1]", "S0[1]]", "S0[1],[2]", "S0[1,]", "S0[-1]",
             "M0:", "M0:-1", "M0:1.5", "M0:007", "S0[1][2]", "S0:1:2", "S\u0660", "S0[\u0661]",
             "S0[99999]", "S0+C0", "S0\0", "=mean", "S0 =mean", "S0= mean", "S0=Linear"],
)  # fmt: skip
def test_malformed_text_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
        Plan.parse(text)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "expected a list"),
        ({"sublayer": "C2"}, "expected a list"),
        ([3], "entry 0: got 3"),
        ([{"layer": "C2"}], "entry 0"),
        ([{"sublayer": "C2", "head": [1]}], "did you mean 'heads'"),
        ([{"sublayer": "C2", "heads": "0-3"}], "a list of integers"),
        ([{"sublayer": "C2", "heads": [0, 0]}], "head 0 is listed more than once"),
        ([{"sublayer": "C2", "heads": [-1, 2.0, True]}], "3 problems"),
        ([{"sublayer": "M2", "width": "512"}], "width: got '512'"),
        ([{"sublayer": "M2", "heads": [1]}], "no heads"),
        ([{"sublayer": "M2", "replacement": "Mean"}], "did you mean 'mean'"),
        ([{"sublayer": "M2", "replacement": ["mean"]}], r"replacement: got \['mean'\]"),
        ([{"sublayer": "M2", "replaced": "mean"}], "did you mean 'replacement'"),
        ([{"sublayer": "C2", "heads": [1], "replacement": "alone"}], "heads and a replacement"),
        ([{"sublayer": "S2", "replacement": "alone"}], "for C only"),
        (["S0[] S0"], "S0 is named more than once"),
        (["C2", {"sublayer": "C2"}], "C2 is named more than once"),
    ],
)
def test_malformed_json_is_refused(data: Any, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        Plan.from_json(data)


def test_from_json_lists_every_fault() -> None:
    with pytest.raises(PlanError) as caught:
        Plan.from_json(["X1", {"sublayer": "M0", "width": -1}, "C0", "C0"])
    assert all(part in str(caught.value) for part in ("entry 0", "entry 1", "C0 is named"))


def test_direct_construction_is_checked_too() -> None:
    with pytest.raises(PlanError, match="named more than once"):
        Plan(((sub("C0"), WHOLE), (sub("C0"), Keep(heads=(1,)))))
    with pytest.raises(PlanError, match="no width"):
        Plan(((sub("C0"), Keep(width=3)),))
    with pytest.raises(PlanError, match="for C only"):
        Plan(((sub("M0"), Keep(replacement="alone")),))


def test_a_plan_can_be_a_key() -> None:
    shape = DecoderShape(1, 8, 2, 4, 16, 10, 8)
    assert {Plan.parse("S0[0-1]").fitted(shape): 1}[Plan.parse("S0")] == 1
