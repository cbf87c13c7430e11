"""What stands in for sub-layers on the way to a study: fitted once, worth what it saves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from circuitsearch.config import LimitConfig, SearchConfig, SpaceConfig, StudyConfig
from circuitsearch.core.budget import Budget, LimitSpec
from circuitsearch.core.components import sublayers
from circuitsearch.core.cost import Quantity, cost
from circuitsearch.core.findings import Finding, Verdict
from circuitsearch.core.plan import Plan
from circuitsearch.progress import QuietReporter
from circuitsearch.search.knapsack import total
from circuitsearch.search.nearest import nearest
from circuitsearch.search.samplers import Prior
from circuitsearch.search.space import Space
from circuitsearch.search.units import Choices
from circuitsearch.search.worths import unit_worths
from circuitsearch.stages.inputs import fit
from circuitsearch.stages.warm import plans_of, replaced_worths, warm_start
from circuitsearch.students import build_student, fit_replacements
from circuitsearch.students.baselines import Proposal
from circuitsearch.students.evaluate import answer_loss_of
from circuitsearch.students.features import Features, prepare_features
from circuitsearch.students.replacements import Replacements
from circuitsearch.teacher.decoders import residual_decoder
from circuitsearch.teacher.loading import Teacher
from circuitsearch.workspace import Workspace
from tests.student_fixtures import any_replacements, noise_pages


@pytest.fixture(scope="module")
def tiny_features(tiny_teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Features:
    return prepare_features(tiny_teacher, noise_pages(5), tmp_path_factory.mktemp("features"))


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    config = SearchConfig(
        name="warm",
        output=tmp_path / "search",
        budget=[LimitConfig(quantity="parameters", limit="30%")],
        space=SpaceConfig(replacements=["mean", "token"]),
    )
    return Workspace(config, QuietReporter())


def test_the_search_fits_what_its_space_offers_and_keeps_it(
    work: Workspace, tiny_teacher: Teacher, tiny_features: Features, tmp_path: Path
) -> None:
    made = fit(work, tiny_teacher, tiny_features)
    view = tiny_teacher.decoder
    literal = fit_replacements(view, tiny_features, view.sublayers, names=["mean", "token"])
    assert made is not None
    assert replace(made, fitted_to=None).fingerprint == literal.fingerprint
    assert not made.maps
    table = made.tokens[view.sublayers[1]]
    assert table.dtype == torch.int64
    assert table.shape == (view.shape.vocabulary,)
    again = fit(work, tiny_teacher, tiny_features)
    assert again is not None
    assert again.fingerprint == made.fingerprint
    # a worker on another processor fits slightly other numbers and is in the same study
    (path,) = (tmp_path / "search" / "work").glob("replacements-*.safetensors")
    rounded = {s: mean * (1 + 1e-6) for s, mean in literal.means.items()}
    Replacements(rounded, literal.maps, literal.tokens).save(path)
    elsewhere = fit(work, tiny_teacher, tiny_features)
    assert elsewhere is not None
    first = view.sublayers[0]
    assert not torch.equal(elsewhere.means[first], made.means[first])
    assert elsewhere.fingerprint == made.fingerprint


def test_worths_of_replacements_predict_the_loss_of_their_plan(
    work: Workspace, tiny_teacher: Teacher, tiny_features: Features
) -> None:
    """With effects that are losses without one sub-layer, worths add up to the measured loss."""
    fitted = any_replacements(tiny_teacher.shape.decoder)
    budget = Budget.resolve([LimitSpec("parameters", "100%")], tiny_teacher.shape)
    space = Space(tiny_teacher.shape, budget, Choices(replacements=("mean", "token")))
    worths = replaced_worths(work, tiny_teacher, space, tiny_features, fitted)
    assert set(worths) == {unit.name for unit in space.units if unit.alone}

    other = any_replacements(tiny_teacher.shape.decoder, seed=1)
    assert replaced_worths(work, tiny_teacher, space, tiny_features, other) != worths
    assert replaced_worths(work, tiny_teacher, space, tiny_features, fitted) == worths

    def loss(plan: Plan) -> float:
        view = residual_decoder(build_student(tiny_teacher, plan, replacements=fitted))
        return float(answer_loss_of(view, tiny_features).double().mean())

    full = Plan.full(4)
    clean = loss(full)
    effects = {one.name: loss(full.without(one)) - clean for one in sublayers(4)}
    units = unit_worths(space, effects, worths)
    values = [units[name] for name in space.names]
    whole = total(space.bits(full), values)
    for text in ("S0=token", "M1=token", "S3=token", "M2=mean"):
        (entry,) = Plan.parse(text).kept
        kept = [one for one in full.kept if one[0] > entry[0]]
        if text.endswith("=mean"):
            kept = [one for one in full.kept if one[0] != entry[0]]
        plan = Plan((*kept, entry))
        predicted = clean + whole - total(space.bits(plan), values)
        # twelve float32 losses of the walk against those of students built alone
        assert predicted == pytest.approx(loss(plan), abs=1e-3), text


def found(name: str, **values: object) -> Finding:
    verdict = Verdict("claim", "it is so", "", "1", "shown", "none")
    return Finding(name, name, "?", "!", 1, verdicts=(verdict,), values=values)


FINDINGS = {
    "skip": found("skip", effects={"C3": 9.0, "C2": 5.0, "S3": 2.0, "M0": 1.5, "S0": 1.0}),
    "paths": found("paths", minimal=["S3"]),
    "cleaner": found("cleaner", alone_as_good=True),
    "case": found("case", lowers_case=True),
}


def room_for(teacher: Teacher, plan: str, quantity: Quantity) -> LimitSpec:
    """A limit that the plan just meets."""
    spent = cost(Plan.parse(plan), teacher.shape, "paper").scopes["decoder"]
    return LimitSpec(quantity, spent.parameters if quantity == "parameters" else spent.macs)


@pytest.mark.parametrize("replacements", [(), ("alone",)])
@pytest.mark.parametrize("expected", ["M0 C2 S3 C3", "C2 S3 C3", "S3 C3", "C3"])
def test_plans_follow_from_findings_within_the_space(
    tiny_teacher: Teacher, expected: str, replacements: tuple[str, ...]
) -> None:
    budget = Budget.resolve([room_for(tiny_teacher, expected, "parameters")], tiny_teacher.shape)
    space = Space(tiny_teacher.shape, budget, Choices(replacements=replacements))  # type: ignore[arg-type]
    plans = plans_of(space, FINDINGS)
    # the last cross-attention's write does as well alone, and nothing is kept behind it
    assert str(plans[0]) == f"{expected}=alone" if replacements else expected
    assert len(plans) == len(set(plans))
    assert all(space.feasible(plan) for plan in plans)


def test_a_second_limit_makes_the_rule_spend_less(tiny_teacher: Teacher) -> None:
    limits = [
        room_for(tiny_teacher, "M0 C2 S3 C3", "parameters"),
        room_for(tiny_teacher, "S3 C3", "macs"),
    ]
    space = Space(tiny_teacher.shape, Budget.resolve(limits, tiny_teacher.shape))
    plans = plans_of(space, FINDINGS)
    assert str(plans[0]) == "S3 C3"
    assert all(space.feasible(plan) for plan in plans)


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_a_search_begins_with_plans_of_findings_where_it_asks_for_them(
    work: Workspace, tiny_teacher: Teacher, wanted: int
) -> None:
    asked = StudyConfig(warm_edges=0, warm_pairs=0, warm_elastic=0, warm_findings=wanted)
    searched = Workspace(work.config.model_copy(update={"search": asked}), work.say)
    space = Space(
        tiny_teacher.shape,
        Budget.resolve([room_for(tiny_teacher, "M0 C2 S3 C3", "parameters")], tiny_teacher.shape),
    )
    derived = plans_of(space, FINDINGS)
    assert len(derived) > 2
    # the effects ask for the very plan that the rule gives first, which is distilled once
    first = space.bits(derived[0])
    prior = Prior(
        {name: 1.0 if bit else -1.0 for name, bit in zip(space.names, first, strict=True)}
    )
    runs: list[int] = []

    def findings() -> dict[str, Finding]:
        runs.append(1)
        return FINDINGS

    begin = beginning(searched, tiny_teacher, space, prior)
    plans = begin(findings=findings, proposals=unasked)
    assert plans[0] == (derived[0], "scores")
    assert plans[1:] == [(plan, "findings") for plan in derived[1 : 1 + wanted]]
    assert len(runs) == min(wanted, 1)  # analyses take minutes: none runs unasked


def beginning(
    work: Workspace, teacher: Teacher, space: Space, prior: Prior
) -> Callable[..., list[tuple[Plan, str]]]:
    """Return the warm start of a search without circuit graph, elastic teacher and findings."""
    known = {"prior": prior, "circuit": {}, "elastic": None, "pages": [], "findings": dict}
    return partial(warm_start, work, teacher, space, **known)


def unasked(names: Sequence[str]) -> list[tuple[str, Proposal]]:
    raise AssertionError(f"asked for {names}")


def test_heads_and_widths_begin_with_plans_of_published_methods(
    work: Workspace, tiny_teacher: Teacher
) -> None:
    fine = SpaceConfig(attention="heads", widths=[4, 8])
    settings = StudyConfig(warm_edges=0, warm_pairs=0, warm_elastic=0)
    config = work.config.model_copy(update={"search": settings, "space": fine})
    choices = Choices("heads", (4, 8))
    limit = room_for(tiny_teacher, "M0 C2 S3 C3", "parameters")
    space = Space(tiny_teacher.shape, Budget.resolve([limit], tiny_teacher.shape), choices)
    prior = Prior(dict.fromkeys(space.names, 1.0))
    searched = Workspace(config, work.say)
    begin = beginning(searched, tiny_teacher, space, prior)
    effects = begin(proposals=lambda names: [])
    offered = [Plan.parse("S0[1] M0:5 C3"), Plan.parse("C2[0] C3[1]"), effects[0][0]]
    asked: list[Sequence[str]] = []

    def proposals(names: Sequence[str]) -> list[tuple[str, Proposal]]:
        asked.append(names)
        pairs = zip(["taylor", "taylor", "finercut"], offered, strict=True)
        return [(name, Proposal(plan)) for name, plan in pairs]

    plans = begin(proposals=proposals)
    assert asked == [["taylor", "finercut"]]
    # the first plan of each method, unless the effects ask for the very same one
    near = nearest(offered[0], space, [1.0] * len(space.units))
    assert plans == [*effects, (near, "taylor")]
    assert space.feasible(near)


@pytest.mark.parametrize("level", ["sublayers", "heads"])
def test_edges_of_free_heads_propose_where_the_circuit_has_heads(
    work: Workspace, tiny_teacher: Teacher, level: str
) -> None:
    settings = StudyConfig(warm_scores=0, warm_edges=1, warm_pairs=0, warm_elastic=0)
    update = {
        "search": settings,
        "space": SpaceConfig(attention="heads"),
        "circuit": work.config.circuit.model_copy(update={"level": level}),
    }
    config = work.config.model_copy(update=update)
    limits = Budget.resolve([LimitSpec("parameters", "30%")], tiny_teacher.shape)
    space = Space(tiny_teacher.shape, limits, Choices("heads"))
    # worth something with both of their ends only
    edges = {("S0.H1", "C2.H3"): 5.0, ("embedding", "S1.H2"): 1.0, ("C2.H3", "readout"): 1.0}
    circuit = {"edges": [{"source": a, "target": b, "score": v} for (a, b), v in edges.items()]}
    searched = Workspace(config, QuietReporter())
    prior = Prior(dict.fromkeys(space.names, 0.1))
    begin = beginning(searched, tiny_teacher, space, prior)
    plans = begin(circuit=circuit, proposals=lambda names: [])
    if level == "sublayers":
        assert plans == []
    else:
        ((plan, source),) = plans
        assert source == "edges"
        assert {"S0.H1", "C2.H3", "S1.H2"} <= {
            name for name, bit in zip(space.names, space.bits(plan), strict=True) if bit
        }
