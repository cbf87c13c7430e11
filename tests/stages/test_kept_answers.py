"""Answers are kept beside measurements, and every use of the final pages is counted once."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from circuitsearch import stages
from circuitsearch.config import SearchConfig
from circuitsearch.core.answers import read_answers
from circuitsearch.core.cost import Generation, cost
from circuitsearch.core.errors import ConfigError, DataError
from circuitsearch.core.measurement import Measurement
from circuitsearch.core.plan import Plan
from circuitsearch.core.speed import Speed
from circuitsearch.progress import QuietReporter
from circuitsearch.stages.kept_answers import FINAL_USES, FinalUses, weights_of
from circuitsearch.stages.training import StudentTrainer
from circuitsearch.students.features import Features, prepare_features
from circuitsearch.students.saving.checkpoint import load_student, save_student
from circuitsearch.students.scoring import scores_of
from circuitsearch.students.student import build_student
from circuitsearch.teacher.loading import Teacher, load_teacher
from circuitsearch.workspace import Workspace
from tests.student_fixtures import noise_pages
from tests.tiny import tiny_checkpoint

PLAN, OTHER = Plan.parse("C1 C3"), Plan.parse("M0 C3")
STEPS = 2


@pytest.fixture(scope="module")
def features(
    tiny_teacher: Teacher, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Features]:
    folder = tmp_path_factory.mktemp("features")
    return {
        name: prepare_features(tiny_teacher, noise_pages(4, seed=seed), folder)
        for seed, name in enumerate(("train", "select", "final"))
    }


def trainer(
    folder: Path, teacher: Teacher, features: dict[str, Features], **changes: object
) -> StudentTrainer:
    """What a newly started process has."""
    config = SearchConfig.model_validate(
        {
            "name": "small",
            "output": folder,
            "budget": [{"quantity": "parameters", "limit": "50%"}],
            "distill": {"steps": STEPS, "batch": 4},
            **changes,
        }
    )
    return StudentTrainer(Workspace(config, QuietReporter()), teacher, features)


def final(one: StudentTrainer, plan: Plan = PLAN, seed: int = 0) -> Measurement:
    return one.measured(plan, "user", seed=seed, steps=STEPS, split="final", phase="full")


def used(folder: Path) -> list[tuple[str, int, str]]:
    return [(u["plan"], u["seed"], u["command"]) for u in FinalUses(folder).lines()]


def test_uses_are_counted_once_also_after_a_restart(
    tmp_path: Path, tiny_teacher: Teacher, features: dict[str, Features]
) -> None:
    first = trainer(tmp_path, tiny_teacher, features)
    first.answered_teacher()
    first.measured(PLAN, "user", seed=0, steps=STEPS, split="select", phase="short")
    assert used(tmp_path) == []  # neither the teacher nor other pages count
    made = final(first)
    again = trainer(tmp_path, tiny_teacher, features)
    assert final(again) == made
    assert used(tmp_path) == [("C1 C3", 0, "run")]
    final(again, seed=1)
    assert FinalUses(tmp_path).plans() == 1  # another seed of the same plan
    final(again, OTHER)
    assert used(tmp_path) == [("C1 C3", 0, "run"), ("C1 C3", 1, "run"), ("M0 C3", 0, "run")]
    assert FinalUses(tmp_path).plans() == 2
    assert FinalUses(tmp_path).plans(besides=[OTHER.hash, "older"]) == 3


def test_who_proposed_a_student_asks_it_no_second_time(
    tmp_path: Path, tiny_teacher: Teacher, features: dict[str, Features]
) -> None:
    one = trainer(tmp_path, tiny_teacher, features)
    about = {"seed": 0, "steps": STEPS, "split": "final", "phase": "full"}
    made, answers = one.answered(PLAN, "baseline", **about)  # type: ignore[arg-type]
    files = sorted(tmp_path.rglob("measurements/*"))
    other, same = one.answered(PLAN, "search", **about)  # type: ignore[arg-type]
    assert (made.source, other.source) == ("baseline", "search")
    assert other == replace(made, source="search")
    assert same == answers
    assert one.measured(PLAN, "exhaustive", **about).source == "exhaustive"  # type: ignore[arg-type]
    assert sorted(tmp_path.rglob("measurements/*")) == files
    assert len(used(tmp_path)) == 1


def test_a_line_is_there_before_its_result(
    tmp_path: Path,
    tiny_teacher: Teacher,
    features: dict[str, Features],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed between the two, the measurement is made again and counted again: never too few."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    one = trainer(tmp_path, tiny_teacher, features)
    with monkeypatch.context() as patch:
        patch.setattr("circuitsearch.stages.training.write_answers", killed)
        with pytest.raises(KeyboardInterrupt):
            final(one)
    assert used(tmp_path) == [("C1 C3", 0, "run")]
    final(trainer(tmp_path, tiny_teacher, features))
    assert len(used(tmp_path)) == 2
    assert FinalUses(tmp_path).plans() == 1


def test_a_checkpoint_that_was_measured_is_served_from_file(
    tmp_path: Path, tiny_teacher: Teacher, features: dict[str, Features]
) -> None:
    one = trainer(tmp_path / "out", tiny_teacher, features)
    made = final(one)
    student = one.student(PLAN, 0, STEPS)
    folder = save_student(student, tiny_teacher, tmp_path / "student")
    assert weights_of(load_student(folder)) == weights_of(student)
    whole = one.student(Plan.parse("S1 C1 M1 S3 C3 M3"), 0, STEPS)
    stock = save_student(whole, tiny_teacher, tmp_path / "stock", stock="auto")
    assert weights_of(load_student(stock, stock=True)) == weights_of(whole) != weights_of(student)
    found, answers = stages.evaluate(one, str(folder), "final")
    assert found == made
    assert len(used(tmp_path / "out")) == 1
    assert (answers.plan, answers.seed, answers.steps, answers.split) == (
        "C1 C3",
        0,
        STEPS,
        "final",
    )
    # another training of the plan is another student, but no other plan
    other = save_student(one.student(PLAN, 7, STEPS), tiny_teacher, tmp_path / "other")
    measured, _ = stages.evaluate(one, str(other), "final")
    assert measured.source == "checkpoint"
    assert stages.evaluate(one, str(other), "final")[0] == measured
    assert used(tmp_path / "out") == [("C1 C3", 0, "run"), ("C1 C3", 0, "evaluate")]
    assert FinalUses(tmp_path / "out").plans() == 1


def test_answers_are_kept_beside_the_measurement_and_made_again_when_lost(
    tmp_path: Path, tiny_teacher: Teacher, features: dict[str, Features]
) -> None:
    one = trainer(tmp_path, tiny_teacher, features)
    made, answers = one.answered(PLAN, "user", seed=0, steps=STEPS, split="select", phase="short")
    (path,) = (tmp_path / "work" / "measurements").glob("*.jsonl")
    assert path.with_suffix(".json").exists()
    assert read_answers(path) == (answers,)
    assert [row.question for row in answers.rows] == [
        example.question.id for example in features["select"].examples
    ]
    assert (answers.teacher, answers.pages) == (tiny_teacher.fingerprint, features["select"].key)
    assert answers.decoding == {"method": "greedy", "max_length": tiny_teacher.tokens.max_length}
    for damage in (path.unlink, lambda: path.write_text("{")):
        damage()
        again = one.answered(PLAN, "user", seed=0, steps=STEPS, split="select", phase="short")
        assert again == (made, answers)


def test_strict_anls_is_another_measurement_and_needs_no_other_answers(
    tmp_path: Path, tiny_teacher: Teacher, features: dict[str, Features]
) -> None:
    usual = trainer(tmp_path / "a", tiny_teacher, features)
    strict = trainer(tmp_path / "b", tiny_teacher, features, evaluation={"anls": "strict"})
    assert "anls" not in usual.objective(STEPS)  # keeps the keys of earlier versions
    assert strict.objective(STEPS)["anls"] == "strict"
    made, answers = stages.evaluate(usual, "teacher", "select", "strict")
    assert made.speed  # like a student's, on whichever pages
    assert answers.rule == "strict"
    scores = scores_of(answers.rows)
    assert {name: getattr(made, name) for name in scores} == scores
    direct, said = strict.answered_teacher("select")
    assert said == answers
    assert direct.quality == made.quality
    # how a student is judged does not change what it has learnt
    for judge in (
        usual,
        trainer(tmp_path / "a", tiny_teacher, features, evaluation={"anls": "strict"}),
    ):
        judge.student(PLAN, 0, STEPS)
    assert len(list((tmp_path / "a" / "work" / "students").glob("*.safetensors"))) == 1


def test_a_damaged_count_is_refused_not_overwritten(
    tmp_path: Path, tiny_teacher: Teacher, features: dict[str, Features]
) -> None:
    path = tmp_path / FINAL_USES
    for bad in ("{", json.dumps({"plan": "C1"}), "[]"):
        path.write_text(f"{bad}\n")
        with pytest.raises(DataError, match="line 1"):
            final(trainer(tmp_path, tiny_teacher, features))
        assert path.read_text() == f"{bad}\n"


def test_a_checkpoint_measured_on_other_pages_is_known_by_seed_and_steps(
    tmp_path: Path, tiny_teacher: Teacher, features: dict[str, Features]
) -> None:
    """`distill` measures on the pages to choose on; several seeds are then compared on others."""
    one = trainer(tmp_path / "out", tiny_teacher, features)
    for seed in (0, 4):
        one.measured(PLAN, "user", seed=seed, steps=STEPS, split="select", phase="full")
        folder = save_student(one.student(PLAN, seed, STEPS), tiny_teacher, tmp_path / str(seed))
        made, answers = stages.evaluate(one, str(folder), "final")
        assert (made.seed, made.steps) == (answers.seed, answers.steps) == (seed, STEPS)
        assert made.source == "checkpoint"
    assert [seed for _, seed, _ in used(tmp_path / "out")] == [0, 4]


def test_a_student_of_another_teacher_is_refused(
    tmp_path: Path, tiny_teacher: Teacher, features: dict[str, Features]
) -> None:
    """Its own encoder would never be asked: the states are cached."""
    one = trainer(tmp_path / "out", tiny_teacher, features)
    student = copy.deepcopy(one.student(PLAN, 0, STEPS))
    with torch.no_grad():
        next(student.encoder.parameters()).add_(1.0)
    folder = save_student(student, tiny_teacher, tmp_path / "student")
    with pytest.raises(ConfigError, match="its encoder is not that of the search's teacher"):
        stages.evaluate(one, str(folder), "select")
    wide = load_teacher(str(tiny_checkpoint(tmp_path / "wide", d_model=64)))
    folder = save_student(build_student(wide, PLAN), wide, tmp_path / "of the other")
    with pytest.raises(ConfigError, match="width of the decoder") as refused:
        stages.evaluate(one, str(folder), "select")
    assert "its encoder" in str(refused.value)  # both faults at once


def test_costs_are_those_of_the_search_files_generation(
    tmp_path: Path, tiny_teacher: Teacher, features: dict[str, Features]
) -> None:
    """A measurement that was kept for answers of another length is not served."""
    short = {"prompt": 10, "passes": 5}
    for generation in (Generation(), Generation(**short), Generation()):
        told = {"prompt": generation.prompt, "passes": generation.passes}
        one = trainer(tmp_path, tiny_teacher, features, generation=told)
        made = one.measured(PLAN, "user", seed=0, steps=STEPS, split="select", phase="short")
        assert made.cost["paper"] == cost(PLAN, tiny_teacher.shape, "paper", generation).to_json()


def test_a_checkpoint_costs_what_this_searchs_generation_says(
    tmp_path: Path, tiny_teacher: Teacher, features: dict[str, Features]
) -> None:
    """Its answers are served from file; how long a prompt is counted is no part of them."""
    for passes in (20, 5):
        told = {"prompt": 10, "passes": passes}
        one = trainer(tmp_path / "out", tiny_teacher, features, generation=told)
        folder = save_student(one.student(PLAN, 0, STEPS), tiny_teacher, tmp_path / "student")
        made, _ = stages.evaluate(one, str(folder), "select")
        expected = cost(PLAN, tiny_teacher.shape, "cached", Generation(**told))
        assert made.cost["cached"] == expected.to_json()
        assert made.speed is not None
        assert Speed.from_json(made.speed).generation == Generation(**told)
