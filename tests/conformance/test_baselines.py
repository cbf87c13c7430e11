"""What every row of `BASELINES` must do at every budget; a new row is tested by being there.

feasible        the budget holds, in integers; masks reach the number of zeros
canonical       the plan is its own canonical form, with heads and widths that the decoder has
reads           a cross-attention stays
deterministic   the same case gives the same proposals, whatever ran before
counted         passes are whole numbers, and none where nothing is run
JSON            a proposal survives a file
the teacher     stays as it is, without hooks and gradients
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from circuitsearch.core.components import Kind
from circuitsearch.core.cost import cost
from circuitsearch.core.errors import InfeasibleError
from circuitsearch.core.plan import Plan
from circuitsearch.stages.ranking import weights_hash
from circuitsearch.students import build_student
from circuitsearch.students.baselines import BASELINES, Case, Masks, Proposal
from circuitsearch.students.features import Features, prepare_features
from circuitsearch.teacher.loading import Teacher
from tests.baseline_cases import BUDGETS, make_case, small_teacher
from tests.student_fixtures import noise_pages

FREE = {"magnitude", "magnitude-unstructured", "random"}
"""Rows that run nothing."""
COARSE = {"shortgpt", "shortgpt-sublayers", "minitron"}
"""Rows that keep a whole cross-attention, or a layer of one head and one step: more than 6.5 %."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return small_teacher(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def features(teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Features:
    return prepare_features(teacher, noise_pages(5), tmp_path_factory.mktemp("features"))


@pytest.fixture(params=BUDGETS)
def case(request: pytest.FixtureRequest, teacher: Teacher, features: Features) -> Case:
    return make_case(teacher, features, request.param)


@pytest.mark.parametrize("name", BASELINES)
def test_proposals_conform(name: str, case: Case, tmp_path: Path) -> None:
    row, shape = BASELINES[name], case.teacher.shape
    before = weights_hash(case.teacher.decoder)
    if name in COARSE and case.budget.limits[0].text == "6.5%":
        with pytest.raises(InfeasibleError, match="heads and widths"):
            row.propose(case)
        return
    found = row.propose(case)
    assert weights_hash(case.teacher.decoder) == before
    assert all(p.grad is None for p in case.teacher.model.parameters())
    assert row.name == name
    assert len(found) == 1 or row.kind in ("plans", "draws")
    assert found or (name == "mint" and case.budget.limits[0].text == "6.5%")
    assert len({(one.label, one.plan.hash) for one in found}) == len(found)
    for one in found:
        assert (
            str(one.plan) == str(one.plan.fitted(shape.decoder)) == str(Plan.parse(str(one.plan)))
        )
        assert any(sublayer.kind is Kind.CROSS for sublayer in one.plan.sublayers)
        assert isinstance(one.passes, int)
        free = name in FREE or one.label.startswith(("mint3", "mint1"))
        # several plans that follow from the same passes count them once
        again = one.label.startswith("mint7") and one.label != found[0].label
        assert (one.passes == 0) == (free or again)
        if row.kind == "masks":
            _check_masks(case, one)
            path = tmp_path / "masks.safetensors"
            assert one.masks is not None
            one.masks.save(path)
            assert Masks.load(path).fingerprint == one.masks.fingerprint
        else:
            assert one.masks is None
            assert case.budget.admits(one.plan, shape)
            student = build_student(case.teacher, one.plan, neurons=one.neurons)
            layers = {n: p for n, p in student.decoder.named_parameters() if ".layers." in n}
            spent = cost(one.plan, shape, "cached").scopes["decoder"].parameters
            assert sum(p.numel() for p in layers.values()) == spent
        data = json.loads(json.dumps(one.to_json(), allow_nan=False))
        assert Proposal.from_json(data, one.masks) == one


def _check_masks(case: Case, one: Proposal) -> None:
    """The non-zero parameters keep the budget, and the notes say what zeros are worth."""
    assert one.masks is not None
    assert one.plan == Plan.full(case.teacher.shape.decoder.layers)
    slack = case.budget.slack(one.plan, case.teacher.shape)
    for limit in case.budget.limits:
        if limit.quantity == "parameters":
            assert slack[limit.name] + one.masks.zeros >= 0
        else:
            assert any(limit.name in note for note in one.notes)
    assert "MACs are 100 %" in one.notes[0]
    assert f"{one.masks.zeros:,}" in one.notes[0]


GREEDY = [name for name in BASELINES if name.startswith("finercut")]
"""Many students at granularity heads, and no draw at all: asked twice about sub-layers only."""


@pytest.mark.parametrize(
    ("name", "budget"),
    [(name, "coarse") for name in BASELINES]
    + [(name, "fine") for name in BASELINES if name not in GREEDY],
)
def test_the_same_case_gives_the_same(
    name: str, budget: str, teacher: Teacher, features: Features
) -> None:
    found = []
    for state in (0, 1):
        torch.manual_seed(state)  # no rule may draw from torch's own stream
        proposals = BASELINES[name].propose(make_case(teacher, features, budget))
        found.append([one.to_json() for one in proposals])
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["random", "evopress"])
def test_the_seed_matters(name: str, teacher: Teacher, features: Features) -> None:
    cases = [make_case(teacher, features, "fine", seed=seed) for seed in range(4)]
    plans = {tuple(str(one.plan) for one in BASELINES[name].propose(case)) for case in cases}
    assert len(plans) > 1
