"""The final comparison with baselines beside the search, on the tiny teacher."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from circuitsearch.config import SearchConfig
from circuitsearch.core.errors import TrainingError
from circuitsearch.core.files import read_json
from circuitsearch.core.plan import Plan
from circuitsearch.pipeline import Pipeline
from circuitsearch.progress import QuietReporter
from circuitsearch.show.rows import ResultRow
from circuitsearch.show.tables import table_notes
from circuitsearch.stages import compare
from circuitsearch.stages.training import Build
from circuitsearch.workspace import Workspace

BASELINES = ["mint", "magnitude", "magnitude-unstructured", "random"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Pipeline:
    """A search with baselines that ran through."""
    config = SearchConfig.model_validate(
        {
            "name": "compared",
            "output": tmp_path_factory.mktemp("compared") / "out",
            "teacher": str(tiny_folder),
            "data": {"source": "rendered", "train": 8, "score": 4, "select": 3, "final": 3},
            "budget": [{"quantity": "parameters", "limit": "31.25%"}],
            "elastic": {"steps": 3, "batch": 6},
            "distill": {"steps": 2, "batch": 4},
            "exhaustive": {"top": 1, "short": 2},
            "baselines": BASELINES,
            "search": {"trainings": 2, "warm_edges": 0},
            "final": {"seeds": [0, 1]},
        }
    )
    pipeline = Pipeline(Workspace(config, QuietReporter()))
    assert pipeline.rows
    return pipeline


def row(made: Pipeline, name: str) -> ResultRow:
    return next(one for one in made.rows if one.name == name)


def test_every_method_has_a_row_with_all_seeds(made: Pipeline) -> None:
    names = [one.name for one in made.rows]
    methods = ["mint18", "magnitude", "magnitude-unstructured", "random"]
    assert names[0] == "teacher"
    assert sorted(names[1:]) == sorted(["T1", "D1", *methods, "best"])
    assert [one.rank for one in made.rows[1:]] == [*range(1, len(names))]
    assert all(one.seeds == (0, 1) for one in made.rows[1:])
    assert {row(made, name).source for name in methods} == {"baseline"}
    for name in ("mint18", "magnitude", "random", "best"):
        assert row(made, name).parameters_share <= 0.3125


def test_short_distillation_says_what_it_took(made: Pipeline) -> None:
    first, distilled = row(made, "T1").search_cost, row(made, "D1").search_cost
    assert first is not None
    assert distilled is not None
    assert (first.trainings, distilled.trainings) == ((), ((2, 2),))


def test_the_elastic_teacher_counts_in_steps_of_a_student(made: Pipeline) -> None:
    spent = row(made, "best").search_cost
    assert spent is not None
    assert spent.trainings == ((2, 2), (1, 5))  # 3 steps of 6 questions are 18, in steps of 4


def test_groups_tell_all_their_plans(made: Pipeline) -> None:
    (note,) = row(made, "mint18").notes
    assert note.startswith("6 plans, shown is the first by the paper;")
    assert row(made, "mint18").plan == "C2 S3 C3"
    drawn = {str(one.plan) for name, one in made.baselines if name == "random"}
    (spread,) = [note for note in row(made, "random").notes if "plans, shown is" in note]
    assert spread.startswith(f"{len(drawn)} plans, shown is the lower median; ")
    told = dict(re.findall(r"([A-Z][^,]*?) (\d\.\d{3})", spread.split(": ")[1]))
    assert set(told) == drawn
    assert row(made, "random").plan == list(told)[len(told) // 2]
    assert list(told.values()) == sorted(told.values(), reverse=True)


@pytest.mark.parametrize("best", [0, 1, 2])
def test_of_random_draws_the_median_is_shown_wherever_it_stands(
    made: Pipeline, monkeypatch: pytest.MonkeyPatch, best: int
) -> None:
    """Three draws of which draw `best` is the best, the next one the median."""
    drawn = [one for one in made.baselines if one[0] == "random"][:3]
    plans = [str(one.plan) for _, one in drawn]
    real = made.trainer.answered

    def answered(plan: Plan, source: str, **options: Any) -> Any:
        measured, said = real(plan, source, **options)
        if source != "baseline":
            return measured, said
        rank = (plans.index(str(plan)) - best) % 3
        return replace(measured, quality=0.9 - 0.1 * rank), said

    monkeypatch.setattr(made.trainer, "answered", answered)
    rows = compare(
        made.work,
        made.trainer,
        untrained=made.untrained,
        baselines=drawn,
        study=made.study,
        chosen=made.chosen,
        passes=made.scores.passes,
    )
    (random,) = [one for one in rows if one.name == "random"]
    assert random.plan == plans[(best + 1) % 3]
    assert any("3 plans, shown is the median" in note for note in random.notes)


def test_a_training_that_fails_ends_no_comparison(
    made: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_answered, real_call = made.trainer.answered, type(made.trainer).__call__
    mint = [str(one.plan) for name, one in made.baselines if name == "mint"]
    (magnitude,) = [str(one.plan) for name, one in made.baselines if name == "magnitude"]
    first = made.untrained[0][0]
    (searched,) = [row.source for row in made.rows if row.name == "best"]

    def answered(plan: Plan, source: str, *, seed: int, **options: Any) -> Any:
        broken = str(plan) == magnitude or str(plan) == mint[1] or (plan == first and seed == 1)
        if broken and source != searched:
            raise TrainingError(f"Distillation: diverged with seed {seed}")
        return real_answered(plan, source, seed=seed, **options)

    def call(self: Any, plan: Plan, source: str) -> Any:
        if plan == first:
            raise TrainingError("Distillation: diverged at once")
        return real_call(self, plan, source)

    monkeypatch.setattr(made.trainer, "answered", answered)
    monkeypatch.setattr(type(made.trainer), "__call__", call)
    compared = compare(
        made.work,
        made.trainer,
        untrained=made.untrained,
        baselines=made.baselines,
        study=made.study,
        chosen=made.chosen,
        passes=made.scores.passes,
    )
    rows = {one.name: one for one in compared}
    assert {*rows} == {one.name for one in made.rows if one.name != "magnitude"}
    assert [one.rank for one in rows.values()] == [None, *range(1, len(rows))]
    assert rows["T1"].seeds == (0,)
    assert rows["T1"].notes == (
        "a training failed and does not count: seed 1: Distillation: diverged with seed 1",
    )
    assert rows["D1"].notes == (
        f"a training failed and does not count: {first}: Distillation: diverged at once",
    )
    assert (
        f"does not count: {mint[1]}: Distillation: diverged with seed 0" in rows["mint18"].notes[-1]
    )
    assert rows["mint18"].seeds == (0, 1)
    assert rows["best"].notes == (
        "a row is left out: magnitude: seed 0: Distillation: diverged with seed 0; "
        "seed 1: Distillation: diverged with seed 1",
    )


def test_short_trainings_that_all_fail_leave_a_note(
    made: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(self: Any, plan: Plan, source: str) -> Any:
        raise TrainingError("Distillation: diverged at once")

    monkeypatch.setattr(type(made.trainer), "__call__", call)
    compared = compare(
        made.work,
        made.trainer,
        untrained=made.untrained,
        baselines=[],
        study=made.study,
        chosen=made.chosen,
        passes=made.scores.passes,
    )
    rows = {one.name: one for one in compared}
    assert not [name for name in rows if name.startswith("D")]
    assert any("left out: D1, short distillation: " in note for note in rows["best"].notes)


def test_single_weights_say_that_they_are_zeros(made: Pipeline) -> None:
    unstructured = row(made, "magnitude-unstructured")
    assert (unstructured.parameters_share, unstructured.macs_share) == (1.0, 1.0)
    told = " ".join(table_notes(made.rows))
    assert "zeros" in told
    assert "MACs are 100 %" in told
    (proposal,) = [one for name, one in made.baselines if name == "magnitude-unstructured"]
    assert proposal.masks is not None
    build = Build(proposal.neurons, proposal.masks)
    student = made.trainer.student(proposal.plan, 0, 2, build)
    weights = dict(student.decoder.named_parameters())
    for name, kept in proposal.masks.kept.items():
        assert torch.equal(weights[name][~kept], torch.zeros(int((~kept).sum())))


def test_rows_are_read_back_with_their_notes(made: Pipeline, tmp_path: Path) -> None:
    for one in made.rows:
        assert ResultRow.from_json(one.to_json()) == one
    made.run()
    table = read_json(made.work.folder / "result.json")["rows"]
    assert [one["notes"] for one in table] == [list(one.notes) for one in made.rows]
