"""The search file's recipe, and students trained by it once."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from circuitsearch.config import DistillConfig, ElasticConfig, LimitConfig, LossName, SearchConfig
from circuitsearch.core.errors import ConfigError, PlanError, TrainingError
from circuitsearch.core.plan import Plan
from circuitsearch.discovery.ablation import unit_means
from circuitsearch.discovery.sample import make_sample
from circuitsearch.progress import QuietReporter
from circuitsearch.stages import training as trainer_of_students
from circuitsearch.stages.distilling import distill_plan
from circuitsearch.stages.training import StudentTrainer
from circuitsearch.stages.weights import recipe_of
from circuitsearch.students.features import prepare_features
from circuitsearch.students.losses import LOSSES
from circuitsearch.students.plan_view import neuron_order
from circuitsearch.students.student import build_student
from circuitsearch.students.training.presets import PRESETS
from circuitsearch.students.training.recipe import DistillRecipe
from circuitsearch.teacher.decoders import residual_decoder
from circuitsearch.teacher.loading import Teacher
from circuitsearch.workspace import Workspace
from tests.student_fixtures import noise_pages


def _config(output: Path, **distill: Any) -> SearchConfig:
    limits = [LimitConfig(quantity="parameters", limit="30%")]
    return SearchConfig(
        name="training", output=output, budget=limits, distill=DistillConfig(**distill)
    )


def _recipe(**distill: Any) -> DistillRecipe:
    return recipe_of(_config(Path("unused"), **distill), steps=7, learning_rate=1e-3)


def test_the_search_file_offers_every_loss_and_preset() -> None:
    """The file's words stand in `config`, which imports no torch."""
    assert set(get_args(LossName)) == set(LOSSES)
    preset = DistillConfig.model_fields["preset"]
    assert set(get_args(preset.annotation)) == set(PRESETS)
    for name, row in PRESETS.items():
        assert _recipe(preset=name).pairs == row.losses
        assert row.source
    assert _recipe().pairs == PRESETS["donut-mint"].losses


def test_losses_and_weights_of_the_file_win_over_the_preset() -> None:
    own = {"hidden_cosine": 0.5, "forward_kl": "balanced"}
    recipe = _recipe(preset="minitron", losses=own, hidden_map=[("C0", "C1")], accumulate=4)
    assert recipe.pairs == (("hidden_cosine", 0.5), ("forward_kl", "balanced"))
    assert recipe.hidden_map == (("C0", "C1"),)
    assert recipe.accumulate == 4
    assert _recipe(kd_weight=0.25).weights == {"cross_entropy": 1.0, "forward_kl": 0.25}
    assert _recipe(losses=own, kd_weight=3).weights["forward_kl"] == 3
    with pytest.raises(ConfigError, match="kd_weight: it weighs forward_kl"):
        _recipe(preset="vlm-compression", kd_weight=1)


def test_the_precision_of_the_file_is_part_of_what_a_training_is() -> None:
    plain, mixed = _recipe(), _recipe(precision="bfloat16")
    assert mixed.precision == "bfloat16"
    assert plain.to_json() | {"precision": "bfloat16"} == mixed.to_json()
    # what was kept before the file had this word is still found
    assert plain.to_json()["precision"] == "float32"
    assert _recipe(precision="float32") == plain


def test_a_student_is_trained_against_the_teachers_inside_once(
    tiny_teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = {
        split: prepare_features(tiny_teacher, noise_pages(4, seed), tmp_path / split)
        for seed, split in enumerate(("train", "select"))
    }

    def trainer(**distill: Any) -> StudentTrainer:
        config = _config(tmp_path / "search", batch=4, **distill)
        return StudentTrainer(Workspace(config, QuietReporter()), tiny_teacher, features)

    plan, ran = Plan.parse("M0 C3[1]"), []
    view: Any = tiny_teacher.decoder
    embed = view.embed
    monkeypatch.setattr(view, "embed", lambda ids: ran.append(1) or embed(ids))
    trainer(preset="puzzle").student(plan, 0, 2)
    assert len(ran) == 2
    trainer(preset="puzzle").student(plan, 0, 2)  # kept
    assert len(ran) == 2
    trainer(preset="kl").student(plan, 0, 2)  # another objective, without the teacher's inside
    assert len(ran) == 2
    objectives = [trainer(preset=name).objective(2)["distill"] for name in ("kl", "puzzle")]
    assert objectives[0]["losses"] == [["forward_kl", 1.0]]
    assert objectives[0] != objectives[1]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_training_that_runs_out_of_memory_has_failed(
    device: str, tiny_teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = {
        split: prepare_features(tiny_teacher, noise_pages(4, seed), tmp_path / split)
        for seed, split in enumerate(("train", "select"))
    }
    work = Workspace(_config(tmp_path / "search", batch=4), QuietReporter())
    trainer = StudentTrainer(work, tiny_teacher, features)
    errors = {
        "cpu": lambda: torch.empty(10**15),
        "cuda": lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory.")),
    }

    def large(*_: object, **__: object) -> None:
        next(iter(errors[device]()))

    monkeypatch.setattr(trainer_of_students, "distill", large)
    with pytest.raises(TrainingError, match=r"(?s)M0 C3.*out of memory.*distill\.accumulate"):
        trainer(Plan.parse("M0 C3"), "search")

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("another fault")

    monkeypatch.setattr(trainer_of_students, "distill", broken)
    with pytest.raises(RuntimeError, match="another fault"):
        trainer(Plan.parse("M0 C3"), "search")


def test_students_may_begin_with_the_elastic_teachers_weights(
    tiny_teacher: Teacher, tmp_path: Path
) -> None:
    features = {
        split: prepare_features(tiny_teacher, noise_pages(4, seed), tmp_path / split)
        for seed, split in enumerate(("train", "select"))
    }
    moved: Any = copy.deepcopy(tiny_teacher.model.decoder)
    with torch.no_grad():
        for parameter in moved.model.decoder.layers.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.5)

    def trainer(start: str) -> StudentTrainer:
        config = _config(tmp_path / start, batch=4, learning_rate=1e-12, start=start)
        config = config.model_copy(update={"elastic": ElasticConfig(steps=3)})
        return StudentTrainer(
            Workspace(config, QuietReporter()),
            tiny_teacher,
            features,
            elastic=lambda: residual_decoder(moved),
        )

    plan = Plan.parse("M0:3 C3[1]")
    order = neuron_order(tiny_teacher.decoder)
    for start, source in (("teacher", None), ("elastic", moved)):
        made = trainer(start).student(plan, 0, 1).decoder.state_dict()
        expected = build_student(tiny_teacher, plan, source=source, neurons=order).decoder
        for name, weights in expected.state_dict().items():
            torch.testing.assert_close(made[name], weights, atol=1e-6, rtol=0)
    assert "start" not in trainer("teacher").objective(1)
    assert trainer("elastic").objective(1)["start"]["elastic"]["steps"] == 3
    scored = trainer("elastic")
    settings = scored.config.scores.model_copy(update={"metric": "margin"})
    other = StudentTrainer(
        Workspace(scored.config.model_copy(update={"scores": settings}), QuietReporter()),
        tiny_teacher,
        features,
    )
    assert other.objective(1) != scored.objective(1)  # scores order heads and weigh units
    known = sorted((tmp_path / "elastic").rglob("*.safetensors"))
    strict = scored.config.evaluation.model_copy(update={"anls": "strict"})
    judged = StudentTrainer(
        Workspace(scored.config.model_copy(update={"evaluation": strict}), QuietReporter()),
        tiny_teacher,
        features,
        elastic=lambda: residual_decoder(moved),
    )
    assert judged.objective(1) != scored.objective(1)
    judged.student(plan, 0, 1)  # how answers are judged changes no weight: it is on file
    assert sorted((tmp_path / "elastic").rglob("*.safetensors")) == known
    with pytest.raises(ValueError, match=r"distill.start: asks for the elastic teacher"):
        SearchConfig.model_validate(
            {**trainer("elastic").config.to_json(), "elastic": {"steps": 0}, "search": {}}
        )


def test_students_may_begin_with_removed_parts_at_their_means(
    tiny_teacher: Teacher, tmp_path: Path
) -> None:
    features = {
        split: prepare_features(tiny_teacher, noise_pages(4, seed), tmp_path / split)
        for seed, split in enumerate(("train", "select"))
    }

    def trainer(compensate: bool) -> StudentTrainer:
        config = _config(tmp_path / "search", batch=4, learning_rate=1e-12, compensate=compensate)
        return StudentTrainer(Workspace(config, QuietReporter()), tiny_teacher, features)

    # fewer questions than are drawn, so that the averages are over all of them
    averages = unit_means(tiny_teacher.decoder, make_sample(tiny_teacher, noise_pages(4, 0)))
    plan = Plan.parse("M0:3 C3[1]")
    for compensate, means in ((False, None), (True, averages)):
        made = trainer(compensate).student(plan, 0, 1).decoder.state_dict()
        expected = build_student(tiny_teacher, plan, compensate=means).decoder.state_dict()
        for name, weights in expected.items():
            torch.testing.assert_close(made[name], weights, atol=1e-6, rtol=0)
    assert "averages" not in trainer(compensate=False).objective(1)
    assert trainer(compensate=False).objective(1) != trainer(compensate=True).objective(1)


def test_a_replacement_that_is_not_fitted_is_refused_with_the_key_to_set(
    tiny_teacher: Teacher, tmp_path: Path
) -> None:
    trainer = StudentTrainer(
        Workspace(_config(tmp_path / "search"), QuietReporter()), tiny_teacher, {}
    )
    for text, named in (("M0=mean C3", "mean"), ("S0=linear M0=mean C3", "linear, mean")):
        with pytest.raises(ConfigError) as refused:
            distill_plan(trainer, Plan.parse(text), tmp_path / "mine", search=Path("a.yaml"))
        assert f"set space.replacements to [{named}]" in str(refused.value)
    for text in ("", "C0=mean", "C0=mean C1=linear"):
        with pytest.raises(PlanError, match="nothing to train; keep a sub-layer"):
            distill_plan(trainer, Plan.parse(text), tmp_path / "mine", search=Path("a.yaml"))
