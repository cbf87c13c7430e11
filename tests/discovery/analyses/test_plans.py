"""From findings to plans: the paper's findings give the paper's plan, others give others."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest

from circuitsearch.core.budget import Budget, LimitSpec
from circuitsearch.core.components import Head, Kind, SubLayer, sublayers
from circuitsearch.core.cost import Generation
from circuitsearch.core.errors import ConfigError
from circuitsearch.core.files import seed_from
from circuitsearch.core.findings import Finding, Verdict
from circuitsearch.core.plan import Plan
from circuitsearch.core.shapes import TeacherShape, known_shape
from circuitsearch.discovery.analyses.material import Material
from circuitsearch.discovery.analyses.plan_rule import SHARES, Evidence, plans_from, roles_of
from circuitsearch.discovery.analyses.plans import plans_analysis
from circuitsearch.search.space import Space
from circuitsearch.search.units import Choices
from circuitsearch.teacher.loading import Teacher

DONUT = known_shape("donut-base")

# the paper's story: C3 reads, C2 finds the key, S3 carries the keyword, M0 lower-cases, M3 cleans
SKIPS = {
    **{"S0": 0.1, "C0": 0.05, "M0": 0.6, "S1": 0.1, "C1": 0.3, "M1": 0.2},
    **{"S2": 0.2, "C2": 0.5, "M2": 0.2, "S3": 0.4, "C3": 6.0, "M3": 0.1},
}
HEADS = {
    Head(SubLayer.at(layer, kind), index).name: (1 + layer) * ((7 * index) % 16)
    for layer, kind, index in itertools.product(range(4), (Kind.SELF, Kind.CROSS), range(16))
}
PAPER = Evidence(SKIPS, HEADS, True, False, ("S3",))


def by_share(shape: TeacherShape, evidence: Evidence) -> dict[str, str]:
    return {one.share: str(one.plan) for one in plans_from(shape, evidence)}


def found(evidence: Evidence) -> dict[str, Finding]:
    """The findings that say so."""
    values: dict[str, dict[str, Any]] = {
        "skip": {"effects": evidence.skips},
        "heads": {"effects": evidence.heads},
        "case": {"lowers_case": evidence.lowers_case},
        "cleaner": {"alone_as_good": evidence.alone_as_good},
        "paths": {"minimal": evidence.minimal},
    }
    said = Verdict("", "", "", "", "open", "")
    return {
        name: Finding(name, "", "", "", 1, verdicts=(said,), values=given)
        for name, given in values.items()
        if next(iter(given.values())) not in (None, {})
    }


def analysed(teacher: Teacher, evidence: Evidence, shape: TeacherShape = DONUT) -> Finding:
    teacher = replace(teacher, shape=shape)
    return plans_analysis(Material(teacher, (), (), Generation(), found=found(evidence)))


def test_the_papers_findings_give_the_papers_plans(tiny_teacher: Teacher) -> None:
    plans = by_share(DONUT, PAPER)
    assert plans["31.25%"] == "M0 C2 S3 C3"
    assert plans["18.75%"] == "C2 S3 C3"  # 12 Mi: no feed-forward fits beside readers and path
    small = Plan.parse(plans["7%"])
    assert [one.name for one in small.sublayers] == ["C2", "S3", "C3"]
    verdict = analysed(tiny_teacher, PAPER).verdicts[0]
    assert verdict.answer == "shown"


def test_other_findings_give_other_plans(tiny_teacher: Teacher) -> None:
    """C0 and C1 read, M1 matters and M0 does not, S0 carries the keyword."""
    skips = SKIPS | {"C0": 9.0, "C1": 7.0, "M0": 0.0, "M1": 20.0}
    other = replace(PAPER, skips=skips, lowers_case=False, minimal=("S0",))
    assert by_share(DONUT, other)["31.25%"] == "S0 C0 C1 M1"
    verdict = analysed(tiny_teacher, other).verdicts[0]
    assert verdict.answer == "not shown"
    assert "0 of the published four" in verdict.here
    # one of the four gives way to another: S2 in place of S3
    near = analysed(tiny_teacher, replace(PAPER, minimal=("S2",))).verdicts[0]
    assert near.answer == "partly"


@pytest.mark.parametrize(
    ("lowers", "effect", "decision"),
    [
        (True, 0.0, "keep"),
        (True, None, "keep"),
        (False, 0.6, "add by effect"),
        (None, 0.6, "add by effect"),
        (False, 0.0, "leave out"),
        (None, 0.0, "leave out"),
        (False, None, "leave out"),
        (None, None, None),
    ],
)
def test_the_first_feed_forward(
    lowers: bool | None, effect: float | None, decision: str | None
) -> None:
    skips = {} if effect is None else SKIPS | {"M0": effect}
    evidence = Evidence(skips, {}, lowers, None, ("S3",))
    roles = {str(role.sublayer): role.decision for role in roles_of(DONUT, evidence)}
    assert roles.get("M0") == decision
    small, everything = plans_from(DONUT, evidence, ["31.25%", "100%"])
    first = SubLayer.parse("M0")
    # 8 Mi that cost 0.6 nats stand behind C1 with 4 Mi and 0.3 nats, by their place
    assert (first in small.plan) is (decision == "keep" or effect == 0.6)
    assert (first in everything.plan) is (decision != "leave out")


def test_the_cleaner_goes_and_leaves_the_cross_attention_alone() -> None:
    made = {
        p.share: p for p in plans_from(DONUT, replace(PAPER, alone_as_good=True), [*SHARES, "100%"])
    }
    assert str(made["31.25%"].plan) == "M0 C2 S3 C3=alone"
    assert str(made["31.25%"].plain) == "M0 C2 S3 C3"
    assert "C3's write alone does as well" in made["31.25%"].why
    # heads and the replacement exclude each other
    assert made["7%"].plan == made["7%"].plain
    # it is left out even where there is room for everything
    assert {str(one) for one in made["100%"].plan.sublayers} == {*map(str, sublayers(4))} - {"M3"}
    kept = plans_from(DONUT, PAPER, ["100%"])[0]
    assert kept.plan == kept.plain
    assert SubLayer.parse("M3") in kept.plan


def test_small_shares_keep_the_heads_of_largest_effect() -> None:
    plan = plans_from(DONUT, PAPER, ["7%"])[0].plan
    owners = [SubLayer.parse(name) for name in ("C3", "S3", "C2")]
    # 4.48 Mi hold 17 heads of 2^18 weights: the best of each owner, then the best of all
    heads = [Head(one, index) for one in owners for index in range(16)]
    heads.sort(key=lambda head: (-HEADS[head.name], head))
    first = [next(head for head in heads if head.sublayer == one) for one in owners]
    wanted = {*first, *[head for head in heads if head not in first][:14]}
    kept = {Head(one, i) for one, keep in plan.kept for i in keep.heads or ()}
    assert kept == wanted
    # without effects of heads nothing says which to keep
    assert by_share(DONUT, replace(PAPER, heads={}))["7%"] == "C3"


def test_what_the_rule_does_without_findings(tiny_teacher: Teacher) -> None:
    nothing = Evidence({}, {})
    assert by_share(DONUT, nothing)["31.25%"] == "C0 C1 C2 S3 C3"
    finding = plans_analysis(Material(replace(tiny_teacher, shape=DONUT), (), (), Generation()))
    assert finding.verdicts[0].answer == "cannot be asked"
    assert "no effects of skipping" in finding.verdicts[0].here
    assert finding.values is not None
    assert finding.values["missing"] == ["skip", "cleaner", "case", "paths", "heads"]
    assert len(finding.values["plans"]) == len(SHARES)


@pytest.mark.parametrize("layers", [1, 2, 4, 7])
@pytest.mark.parametrize("alone", [True, None])
def test_plans_are_legal_and_within_their_share(layers: int, alone: bool | None) -> None:
    decoder = replace(DONUT.decoder, layers=layers, heads=4, ffn=999)
    shape = replace(DONUT, decoder=decoder)
    names = [str(one) for one in sublayers(layers)]
    skips = {name: float(hash_of(name)) for name in names}
    attentions = [name for name in names if name[0] != "M"]
    heads = {f"{name}.H{i}": float(hash_of(name, i)) for name in attentions for i in range(4)}
    for share in ("45%", "18.75%", "3%"):
        budget = Budget.resolve([LimitSpec("parameters", share)], shape)
        space = Space(shape, budget, Choices("heads", (), ("alone",)))
        whole = Space(shape, budget, Choices("whole", (), ("alone",)))
        for minimal, lowers in itertools.product((None, ("S0",), tuple(names)), (True, False)):
            for one in plans_from(shape, Evidence(skips, heads, lowers, alone, minimal), [share]):
                assert space.problems(one.plan) == space.problems(one.plain) == []
                if not any(keep.heads for _, keep in one.plan.kept):
                    assert whole.problems(one.plan) == []


def hash_of(*parts: object) -> int:
    return seed_from(*parts) % 1000 - 200


def test_decoders_that_the_claim_is_not_about(tiny_teacher: Teacher) -> None:
    longer = replace(DONUT, decoder=replace(DONUT.decoder, layers=6))
    assert (
        "for 4 layers, this decoder has 6" in analysed(tiny_teacher, PAPER, longer).verdicts[0].here
    )
    narrow = replace(DONUT, decoder=replace(DONUT.decoder, ffn=512))
    verdict = analysed(tiny_teacher, PAPER, narrow).verdicts[0]
    assert (verdict.answer, "does not fit" in verdict.here) == ("cannot be asked", True)
    gated = replace(DONUT, decoder=replace(DONUT.decoder, gated=True))
    finding = analysed(tiny_teacher, PAPER, gated)
    assert finding.verdicts[0].answer == "cannot be asked"
    assert "gated" in finding.notes[0]
    assert finding.values is not None
    assert finding.values["plans"] == []
    with pytest.raises(ConfigError, match="gated"):
        plans_from(gated, PAPER)


def test_the_record_travels(tiny_teacher: Teacher) -> None:
    finding = analysed(tiny_teacher, replace(PAPER, alone_as_good=True))
    assert Finding.from_json(json.loads(json.dumps(finding.to_json()))) == finding
    assert finding.values is not None
    texts = [entry["plan"] for entry in finding.values["plans"]]
    assert [str(Plan.parse(text)) for text in texts] == texts
    plans = {row[0]: row for row in finding.tables[1].rows}
    assert plans["31.25%"][1:4] == ("M0 C2 S3 C3=alone", 20 * 2**20, 31.25)
