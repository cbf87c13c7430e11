"""What stands in for sub-layers on the way to a study: fitted once, worth what it saves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from circuitsearch.config import LimitConfig, SearchConfig, SpaceConfig
from circuitsearch.core.budget import Budget, LimitSpec
from circuitsearch.core.components import sublayers
from circuitsearch.core.plan import Plan
from circuitsearch.progress import QuietReporter
from circuitsearch.search.knapsack import total
from circuitsearch.search.space import Space
from circuitsearch.search.units import Choices
from circuitsearch.search.worths import unit_worths
from circuitsearch.stages.inputs import fit
from circuitsearch.stages.warm import replaced_worths
from circuitsearch.students import build_student, fit_replacements
from circuitsearch.students.evaluate import answer_loss_of
from circuitsearch.students.features import Features, prepare_features
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
    work: Workspace, tiny_teacher: Teacher, tiny_features: Features
) -> None:
    made = fit(work, tiny_teacher, tiny_features)
    view = tiny_teacher.decoder
    literal = fit_replacements(view, tiny_features, view.sublayers, names=["mean", "token"])
    assert made is not None
    assert made.fingerprint == literal.fingerprint
    assert not made.maps
    table = made.tokens[view.sublayers[1]]
    assert table.dtype == torch.int64
    assert table.shape == (view.shape.vocabulary,)
    again = fit(work, tiny_teacher, tiny_features)
    assert again is not None
    assert again.fingerprint == made.fingerprint


def test_worths_of_replacements_predict_the_loss_of_their_plan(
    work: Workspace, tiny_teacher: Teacher, tiny_features: Features
) -> None:
    """With effects that are losses without one sub-layer, worths add up to the measured loss."""
    fitted = any_replacements(tiny_teacher.shape.decoder)
    budget = Budget.resolve([LimitSpec("parameters", "100%")], tiny_teacher.shape)
    space = Space(tiny_teacher.shape, budget, Choices(replacements=("mean", "token")))
    worths = replaced_worths(work, tiny_teacher, space, tiny_features, fitted)
    assert set(worths) == {unit.name for unit in space.units if unit.alone}

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
