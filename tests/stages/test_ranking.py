"""Ranking plans: right losses, kept on disk, resumed where it was killed, sampled when too many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from circuitsearch.config import LimitConfig, SearchConfig
from circuitsearch.core.budget import Budget, LimitSpec
from circuitsearch.core.plan import Plan
from circuitsearch.progress import QuietReporter
from circuitsearch.search.space import Space
from circuitsearch.search.units import Choices
from circuitsearch.stages.ranking import interpolated, mixed, rank, train_elastic
from circuitsearch.stages.weights import trainable
from circuitsearch.students import build_student, rank_neurons
from circuitsearch.students.evaluate import answer_loss_of
from circuitsearch.students.features import Features, prepare_features
from circuitsearch.students.plan_view import neuron_order
from circuitsearch.students.walk import Walk, WalkChunk
from circuitsearch.teacher.decoders import residual_decoder
from circuitsearch.teacher.loading import Teacher
from circuitsearch.workspace import Workspace
from tests.student_fixtures import noise_pages

SMALL = 3e5  # bytes: several chunks


@pytest.fixture(scope="module")
def tiny_features(tiny_teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Features:
    return prepare_features(tiny_teacher, noise_pages(10), tmp_path_factory.mktemp("features"))


@pytest.fixture
def work(tmp_path: Path) -> Workspace:
    limits = [LimitConfig(quantity="parameters", limit="30%")]
    config = SearchConfig(name="ranking", output=tmp_path / "search", budget=limits, seed=3)
    return Workspace(config, QuietReporter())


def space(teacher: Teacher, limit: str, choices: Choices | None = None) -> Space:
    specs = [LimitSpec("parameters", limit)]
    return Space(teacher.shape, Budget.resolve(specs, teacher.shape), choices)


def student_loss(teacher: Teacher, features: Features, plan: Plan, **options: Any) -> float:
    """The oracle: the student that is built, alone."""
    view = residual_decoder(build_student(teacher, plan, **options))
    return float(answer_loss_of(view, features).double().mean())


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Questions of every chunk that is walked from now on."""
    seen: list[tuple[int, ...]] = []
    real = Walk.chunk

    def chunk(self: Walk, questions: Sequence[int], plans: Sequence[Plan]) -> WalkChunk:
        seen.append(tuple(questions))
        return real(self, questions, plans)

    monkeypatch.setattr(Walk, "chunk", chunk)
    return seen


def test_every_plan_with_its_loss_best_first(
    work: Workspace, tiny_teacher: Teacher, tiny_features: Features, walked: list[tuple[int, ...]]
) -> None:
    plans = space(tiny_teacher, "30%")
    asked = tiny_teacher.decoder, tiny_features, "untrained"
    ranked = rank(work, plans, *asked)
    assert {plan for plan, _ in ranked} == set(plans.enumerate())
    assert [loss for _, loss in ranked] == sorted(loss for _, loss in ranked)
    for plan, loss in ranked[::40]:
        assert loss == pytest.approx(student_loss(tiny_teacher, tiny_features, plan), abs=1e-4)
    # what one chunk gives, several do; and what is on disk is not made again
    other = Workspace(work.config.model_copy(update={"output": work.folder / "other"}), work.say)
    again = dict(rank(other, plans, *asked, memory_bytes=SMALL))
    assert all(again[plan] == pytest.approx(loss, abs=1e-5) for plan, loss in ranked)
    walked.clear()
    assert rank(work, plans, *asked) == ranked
    assert walked == []
    assert [path.name for path in work.config.work.iterdir()] == ["ranking-untrained.json"]


def test_a_killed_ranking_goes_on_where_it_was(
    work: Workspace,
    tiny_teacher: Teacher,
    tiny_features: Features,
    walked: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plans = space(tiny_teacher, "30%")
    asked = tiny_teacher.decoder, tiny_features, "untrained"
    other = Workspace(work.config.model_copy(update={"output": work.folder / "other"}), work.say)
    whole = rank(other, plans, *asked, memory_bytes=SMALL)
    chunks = list(walked)
    assert len(chunks) >= 4
    walked.clear()
    leaf, taken = WalkChunk.leaf, 0

    def killed(self: WalkChunk, state: Any) -> int:
        nonlocal taken
        taken += 1
        if taken > 2 * plans.count() + 5:
            raise KeyboardInterrupt
        return leaf(self, state)

    with monkeypatch.context() as patched:
        patched.setattr(WalkChunk, "leaf", killed)
        with pytest.raises(KeyboardInterrupt):
            rank(work, plans, *asked, memory_bytes=SMALL)
    assert walked == chunks[:3]
    walked.clear()
    assert rank(work, plans, *asked, memory_bytes=SMALL) == whole
    assert walked == chunks[2:]


def test_other_weights_are_ranked_anew(
    work: Workspace, tiny_teacher: Teacher, tiny_features: Features
) -> None:
    plans = space(tiny_teacher, "30%")
    first = rank(work, plans, tiny_teacher.decoder, tiny_features, "elastic")
    whole = build_student(tiny_teacher, Plan.full(4)).requires_grad_(False)
    with torch.no_grad():
        whole.decoder.model.decoder.layers[2].fc1.weight += 0.1
    second = rank(work, plans, residual_decoder(whole), tiny_features, "elastic")
    assert dict(first) != dict(second)


def test_two_rankings_mix_to_weighted_geometric_means(
    work: Workspace, tiny_teacher: Teacher, tiny_features: Features
) -> None:
    plans = space(tiny_teacher, "30%")
    changed = build_student(tiny_teacher, Plan.full(4)).requires_grad_(False)
    with torch.no_grad():
        changed.decoder.model.decoder.layers[2].fc1.weight += 0.1
    other = residual_decoder(changed)
    one = rank(work, plans, tiny_teacher.decoder, tiny_features, "untrained")
    two = rank(work, plans, other, tiny_features, "elastic")
    losses = dict(two)
    literal = {plan: loss**0.75 * losses[plan] ** 0.25 for plan, loss in one}
    found = mixed(one, two, 0.25)
    assert dict(found) == literal
    assert [plan for plan, _ in found] == sorted(literal, key=lambda p: (literal[p], str(p)))
    assert mixed(one, two, 0) == one


def test_a_space_too_large_is_ranked_by_a_sample(
    work: Workspace, tiny_teacher: Teacher, tiny_features: Features
) -> None:
    plans = space(tiny_teacher, "20%", Choices(attention="heads", widths=(8, 24)))
    assert plans.count() > 20_000
    ranked = rank(work, plans, tiny_teacher.decoder, tiny_features, "untrained", sample=40)
    assert len(ranked) == len({plan for plan, _ in ranked}) == 80
    assert all(plans.feasible(plan) for plan, _ in ranked)
    for plan, loss in ranked[::20]:
        assert loss == pytest.approx(student_loss(tiny_teacher, tiny_features, plan), abs=1e-4)
    other = Workspace(work.config.model_copy(update={"output": work.folder / "other"}), work.say)
    again = rank(other, plans, tiny_teacher.decoder, tiny_features, "untrained", sample=40)
    assert again == ranked
    assert not [path for path in work.config.work.iterdir() if path.is_dir()]


def test_weights_between_teacher_and_elastic_teacher(
    work: Workspace, tiny_teacher: Teacher, tiny_features: Features
) -> None:
    elastic = work.config.elastic.model_copy(update={"steps": 3, "learning_rate": 3e-2})
    config = work.config.model_copy(update={"elastic": elastic})
    plans = space(tiny_teacher, "30%")
    view: Any = train_elastic(Workspace(config, work.say), tiny_teacher, plans, tiny_features)
    first, last = (trainable(one) for one in (tiny_teacher.decoder, view))
    before = {name: weights.clone() for name, weights in last.items()}
    between = trainable(interpolated(tiny_teacher.decoder, view, 0.75))
    moved = [name for name in first if not torch.equal(first[name], last[name])]
    assert moved
    for name, weights in between.items():
        torch.testing.assert_close(weights, 0.25 * first[name] + 0.75 * last[name])
        assert torch.equal(last[name], before[name])
    asked = tiny_features, "elastic"
    end = interpolated(tiny_teacher.decoder, view, 1.0)
    assert rank(work, plans, end, *asked) == rank(work, plans, view, *asked)
    start = interpolated(tiny_teacher.decoder, view, 0.0)
    assert rank(work, plans, start, *asked) == rank(work, plans, tiny_teacher.decoder, *asked)


def test_an_elastic_teacher_of_widths_is_ranked_by_the_teachers_neurons(
    work: Workspace, tiny_teacher: Teacher, tiny_features: Features
) -> None:
    """What training moves are weights; which neurons a width means stays the teacher's choice."""
    plans = space(tiny_teacher, "8%", Choices(attention="counts", widths=(8, 24)))
    elastic = work.config.elastic.model_copy(update={"steps": 6, "learning_rate": 3e-2})
    distill = work.config.distill.model_copy(update={"batch": 8})
    config = work.config.model_copy(update={"elastic": elastic, "distill": distill})
    work = Workspace(config, work.say)
    view: Any = train_elastic(work, tiny_teacher, plans, tiny_features)
    order = neuron_order(tiny_teacher.decoder)
    assert any(rank_neurons(view.model, feed) != order[feed] for feed in order)
    ranked = rank(work, plans, view, tiny_features, "elastic", neurons=order)
    for plan, loss in ranked[:: len(ranked) // 5]:
        expected = student_loss(tiny_teacher, tiny_features, plan, source=view.model, neurons=order)
        assert loss == pytest.approx(expected, abs=1e-4)
    # loaded, not trained again
    assert train_elastic(work, tiny_teacher, plans, tiny_features) is not view
