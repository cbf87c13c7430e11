"""What a search spends before its first training, counted in passes of one question."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from circuitsearch import stages
from circuitsearch.config import (
    CircuitConfig,
    ElasticConfig,
    LimitConfig,
    SearchConfig,
    StudyConfig,
)
from circuitsearch.core.budget import Budget, LimitSpec
from circuitsearch.core.plan import Plan
from circuitsearch.core.scores import Scores
from circuitsearch.pipeline import Pipeline
from circuitsearch.progress import QuietReporter
from circuitsearch.search.space import Space
from circuitsearch.search.units import Choices
from circuitsearch.stages.spending import passes_before
from circuitsearch.students.baselines import Proposal
from circuitsearch.workspace import Workspace
from tests.search_fixtures import teacher_shape

SHAPE = teacher_shape()
SCORES = Scores("t", "answer_loss", "zero", "eap", 9, (), {}, passes=54)
RECIPE = {"passes": 40, "examples": 6, "edge_passes": 2.5, "effect_passes": 1.0}
RANKING = [(Plan.parse("C0"), 0.5), (Plan.parse("C1"), 0.6)]


@pytest.mark.parametrize(
    ("attention", "level", "edges", "pairs", "replacements", "expected"),
    [
        ("whole", "sublayers", 0, 0, (), 0),
        ("whole", "sublayers", 1, 0, (), 40 + 21),
        ("whole", "sublayers", 0, 1, (), 6 * (1 + 12 + 66)),
        # they speak of whole sub-layers, and are not asked
        ("heads", "sublayers", 1, 1, (), 0),
        ("heads", "heads", 1, 1, (), 40 + 21),
        # whole, every sub-layer skipped, every sub-layer replaced
        ("whole", "sublayers", 0, 0, ("mean",), 5 * (1 + 12 + 12)),
    ],
)
def test_every_source_counts_passes_of_one_question(
    tmp_path: Path,
    attention: str,
    level: str,
    edges: int,
    pairs: int,
    replacements: tuple[str, ...],
    expected: int,
) -> None:
    config = SearchConfig(
        name="spent",
        output=tmp_path,
        budget=[LimitConfig(quantity="parameters", limit="30%")],
        circuit=CircuitConfig(level=level),  # type: ignore[arg-type]
        search=StudyConfig(warm_edges=edges, warm_pairs=pairs),
    )
    limits = Budget.resolve([LimitSpec("parameters", "30%")], SHAPE)
    space = Space(SHAPE, limits, Choices(attention, (), replacements))  # type: ignore[arg-type]
    spent = passes_before(
        Workspace(config, QuietReporter()),
        space,
        SCORES,
        {"graph": {"recipe": RECIPE}},
        [("taylor", Proposal(Plan.parse("C0"), passes=7))],
        [RANKING, RANKING[:1]],
        questions=5,
    )
    assert spent == 54 + 7 + 5 * 3 + expected


@pytest.mark.parametrize(("weight", "walked"), [(0.0, ["elastic"]), (0.05, ["elastic", "teacher"])])
def test_a_ranking_that_is_left_out_is_neither_walked_nor_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: float, walked: list[str]
) -> None:
    config = SearchConfig(
        name="spent",
        output=tmp_path,
        budget=[LimitConfig(quantity="parameters", limit="30%")],
        elastic=ElasticConfig(untrained=weight),
    )
    asked: list[str] = []

    def ranked(line: Pipeline, view: str, name: str) -> list[tuple[Plan, float]]:
        asked.append(view)
        return [(Plan.parse("C0"), 2.0), (Plan.parse("C3"), 3.0)]

    monkeypatch.setattr(Pipeline, "_ranked", ranked)
    monkeypatch.setattr(stages, "passes_before", lambda *known: len(known[5]))
    line: Any = Pipeline(Workspace(config, QuietReporter()))
    line.space = SimpleNamespace(exceeds=lambda number: False)
    line.teacher, line.elastic = SimpleNamespace(decoder="teacher"), "elastic"
    line.scores = line.circuit = None
    line.features = {"train": None, "select": SimpleNamespace(examples=[])}
    monkeypatch.setattr(Pipeline, "_proposed", lambda line, names: [])
    assert [loss for _, loss in line.predicted] == pytest.approx([2.0, 3.0])
    assert line.spent == len(walked)
    assert asked == walked
