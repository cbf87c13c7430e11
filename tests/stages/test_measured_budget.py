"""A search under measured limits, through the pipeline, on the tiny teacher."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from circuitsearch import stages
from circuitsearch.api import join_study
from circuitsearch.config import SearchConfig
from circuitsearch.core.errors import ConfigError, InfeasibleError
from circuitsearch.core.files import read_json
from circuitsearch.core.plan import Plan
from circuitsearch.core.speed import Speed
from circuitsearch.pipeline import Pipeline
from circuitsearch.progress import QuietReporter
from circuitsearch.show.rows import result_rows
from circuitsearch.stages import speeds
from circuitsearch.stages.speeds import StudentSpeeds, admission, write_speeds
from circuitsearch.students.speed import speed_of
from circuitsearch.workspace import Workspace

LATENCY, MEMORY = "decoder latency (measured)", "total memory (measured)"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each plan's student is really measured."""
    seen: Counter[str] = Counter()

    def counted(teacher, plan, *args, **options):  # type: ignore[no-untyped-def]
        seen[str(plan)] += 1
        return speed_of(teacher, plan, *args, **options, repetitions=3)

    monkeypatch.setattr(speeds, "speed_of", counted)
    return seen


def pipeline(
    folder: Path,
    teacher: Path,
    *budget: dict[str, str],
    trainings: int = 3,
    baselines: tuple[str, ...] = (),
) -> Pipeline:
    config = SearchConfig.model_validate(
        {
            "name": "quick",
            "output": folder / "out",
            "teacher": str(teacher),
            "data": {"source": "rendered", "train": 8, "score": 4, "select": 3, "final": 3},
            "budget": list(budget),
            "generation": {"prompt": 6, "passes": 5},
            "elastic": {"steps": 0},
            "distill": {"steps": 2, "batch": 4},
            "exhaustive": {"top": 1},
            "search": {"trainings": trainings, "warm_edges": 0},
            "baselines": list(baselines),
        }
    )
    return Pipeline(Workspace(config, QuietReporter()))


def test_a_search_under_a_latency_limit(
    tmp_path: Path, tiny_folder: Path, measured: Counter[str]
) -> None:
    limits = [
        {"quantity": "latency", "limit": "90%"},
        {"quantity": "memory", "limit": "99%", "scope": "total"},
        {"quantity": "parameters", "limit": "60%"},
    ]
    made = pipeline(tmp_path, tiny_folder, *limits)
    space, study = made.space, made.study
    whole = StudentSpeeds(made.work, made.teacher).of(Plan.full(4)).amounts()
    maxima = {limit.name: limit.maximum for limit in space.budget.limits}
    assert maxima[LATENCY] == whole[LATENCY] * 90 // 100
    assert maxima[MEMORY] == whole[MEMORY] * 99 // 100
    # parameters are part of the memory and add up exactly, so its prediction can only be good
    assert space.predictions[MEMORY].error < 0.05
    trials = study.trials()
    assert [one.state for one in trials] == ["measured"] * 3
    for trial in trials:
        verdict = study.speed(Plan.parse(trial.plan))
        assert verdict is not None
        assert verdict.amounts[LATENCY] <= maxima[LATENCY]
        assert verdict.amounts[MEMORY] <= maxima[MEMORY]
    assert set(measured.values()) == {1}
    # Going on reads figures from folder and study, even without what can be made again.
    shutil.rmtree(made.work.config.work)
    again = pipeline(tmp_path, tiny_folder, *limits, trainings=4)
    assert again.study.status().measured == 4
    assert again.space.to_json() == space.to_json()
    assert set(measured.values()) == {1}
    # The report's own figures are those of the same measurement.
    (final, _), best = again.trainer.answered_teacher(), study.best()
    assert best is not None
    rows = result_rows({"teacher": final, "best": best})
    write_speeds(again.work, again.teacher, rows)
    told = read_json(again.work.folder / "speed.json")
    assert list(told) == sorted(row.name for row in rows)
    assert Speed.from_json(told["teacher"]).amounts() == whole
    assert (again.work.folder / "speed.md").read_text().count("\n| ") == len(rows) + 1
    assert Speed.from_json(dict(final.speed)).amounts() == whole
    assert set(measured.values()) == {1}


def test_a_worker_takes_the_limits_of_the_study(
    tmp_path: Path, tiny_folder: Path, measured: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pipeline(tmp_path, tiny_folder, {"quantity": "latency", "limit": "90%"})
    space, study = made.space, made.study
    monkeypatch.setattr(Pipeline, "trainer", property(lambda line: line))
    monkeypatch.setattr(stages, "join", lambda work, study, line: line.space)
    database = made.work.config.database
    joined = join_study(database, study.name, output=tmp_path / "worker", quiet=True)
    assert joined.to_json() == space.to_json()  # type: ignore[attr-defined]
    assert measured[str(Plan.full(4))] == 1  # not by the worker again


def test_what_no_student_can_meet_is_refused_before_anything_runs(
    tmp_path: Path, tiny_folder: Path, measured: Counter[str]
) -> None:
    made = pipeline(tmp_path, tiny_folder, {"quantity": "latency", "limit": "3us"})
    with pytest.raises(
        InfeasibleError, match=r"the limit '3us' allows 3 us, the smallest legal st"
    ):
        _ = made.space
    assert not (made.work.folder / "study.db").exists()
    # what arithmetic refuses is refused without measuring anything
    measured.clear()
    limits = {"quantity": "latency", "limit": "90%"}, {"quantity": "parameters", "limit": "1"}
    with pytest.raises(InfeasibleError, match="parameters"):
        _ = pipeline(tmp_path / "a", tiny_folder, *limits).space
    assert not measured
    with pytest.raises(ValueError, match="a number with unit ns us ms s"):
        pipeline(tmp_path / "b", tiny_folder, {"quantity": "latency", "limit": "3"})


def test_figures_of_another_machine_are_not_compared(
    tmp_path: Path, tiny_folder: Path, measured: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pipeline(tmp_path, tiny_folder, {"quantity": "memory", "limit": "90%"})
    assert admission(made.work, made.teacher, made.space) is not None
    monkeypatch.setattr(speeds, "where", lambda device: "another machine")
    with pytest.raises(ConfigError, match="this is another machine, whose figures are not compar"):
        admission(made.work, made.teacher, made.space)


def test_baselines_are_compared_under_the_limits_that_shapes_decide(
    tmp_path: Path, tiny_folder: Path, measured: Counter[str]
) -> None:
    limits = [{"quantity": "memory", "limit": "99%"}, {"quantity": "parameters", "limit": "60%"}]
    made = pipeline(tmp_path, tiny_folder, *limits, baselines=("magnitude",))
    rows = {row.name: row for row in made.rows}
    assert set(rows) == {"teacher", "T1", "magnitude", "best"}
    assert rows["magnitude"].parameters_share <= 0.6
    bare = pipeline(tmp_path / "bare", tiny_folder, limits[0])
    assert bare.baselines == []
