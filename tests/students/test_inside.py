"""Losses of streams and attention: against hooks on Hugging Face's eager modules, one question at
a time; the layer map; heads matched by the plan; the teacher's pass."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from circuitsearch.core.components import SubLayer
from circuitsearch.core.errors import ConfigError, DataError, TrainingError
from circuitsearch.core.plan import Plan
from circuitsearch.students import build_student, fit_replacements
from circuitsearch.students.features import Features
from circuitsearch.students.losses import LOSSES
from circuitsearch.students.plan_view import PlanView
from circuitsearch.students.training.distill import (
    DistillRecipe,
    DistillResult,
    StepReport,
    distill,
)
from circuitsearch.students.training.inside import kept_heads
from circuitsearch.students.training.presets import PRESETS
from circuitsearch.students.training.trainer import Trainer, only_layers_train
from circuitsearch.teacher.decoders import residual_decoder
from circuitsearch.teacher.loading import Teacher, load_teacher
from tests.tiny import tiny_checkpoint

PLAN = Plan.parse("S0[1-2] C0 M0:20 S2 C2[3] M2 C3[0,2]")
INSIDE = ("hidden_mse", "hidden_cosine", "self_attention_kl", "cross_attention_kl")
# one step on all examples that moves nothing: the result is the loss of the student as built
STILL = DistillRecipe(
    steps=1,
    batch=1000,
    learning_rate=1e-12,
    warmup=0,
    temperature=2.0,
    losses=dict.fromkeys(INSIDE, 1.0),
)


def _losses(
    source: Teacher, features: Features, plan: Plan, recipe: DistillRecipe = STILL, **options: Any
) -> dict[str, float]:
    student = build_student(source, plan, replacements=options.pop("fitted", None))
    view = residual_decoder(student)
    given = {"teacher": source.decoder, **options}
    return dict(distill(view, features, recipe, seed=0, **given).losses)


def _literal(model: Any, teacher: Teacher, features: Features) -> list[dict[str, Tensor]]:
    """What every LayerNorm of a decoder reads and every attention weighs, at answer tokens.

    One question at a time, without padding, from pixels, by hooks on Hugging Face's modules.
    """
    names = {
        "self_attn_layer_norm": "S",
        "encoder_attn_layer_norm": "C",
        "final_layer_norm": "M",
        "self_attn": "S",
        "encoder_attn": "C",
    }
    seen: dict[str, Tensor] = {}
    hooks = []
    stack = model.decoder.model.decoder
    for i, layer in enumerate(stack.layers):
        for name, kind in names.items():
            module = getattr(layer, name)
            if module is None:
                continue
            key = f"{kind}{i}"
            if name.endswith("norm"):
                hook = module.register_forward_pre_hook(
                    lambda _, args, key=key: seen.update({f"stream {key}": args[0][0]})
                )
            else:
                hook = module.register_forward_hook(
                    lambda _, __, out, key=key: seen.update({f"weights {key}": out[1][0]})
                )
            hooks.append(hook)
    hooks.append(
        stack.layer_norm.register_forward_pre_hook(
            lambda _, args: seen.update({"stream end": args[0][0]})
        )
    )
    found = []
    before = model.decoder.config._attn_implementation
    model.decoder.set_attn_implementation("eager")
    try:
        for example in features.examples:
            seen.clear()
            pixels = teacher.pixel_values([features.pages[example.page].image()])
            ids = torch.tensor([example.ids[:-1]])
            with torch.no_grad():
                model(pixel_values=pixels, decoder_input_ids=ids, use_cache=False)
            rows = slice(example.prompt - 1, None)
            found.append({k: x[rows] if "stream" in k else x[:, rows] for k, x in seen.items()})
    finally:
        model.decoder.set_attn_implementation(before)
        for hook in hooks:
            hook.remove()
    return found


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL of weights [T, K], row by row over the keys that the teacher sees: [T]."""
    rows = []
    for q, p in zip(student, teacher, strict=True):
        rows.append(sum(b * torch.log(b / a) for a, b in zip(q, p, strict=True) if b > 0))
    return torch.stack(rows)


def test_equals_hooks_on_eager_modules(tiny_teacher: Teacher, tiny_features: Features) -> None:
    # S1 is gone from the student: its place is what S2, the next one there, reads; behind M2 comes
    # C3; the teacher has them all
    places = (("end", "end"), ("S1", "C1"), ("M2", "M2"))
    read = (("end", "end"), ("S2", "M1"), ("C3", "S3"))
    got = _losses(tiny_teacher, tiny_features, PLAN, replace(STILL, hidden_map=places))
    student = build_student(tiny_teacher, PLAN)
    ours = _literal(student, tiny_teacher, tiny_features)
    theirs = _literal(tiny_teacher.model, tiny_teacher, tiny_features)
    heads = {"S0": (1, 2), "S2": (0, 1, 2, 3), "C0": (0, 1, 2, 3), "C2": (3,), "C3": (0, 2)}

    def mean(values: list[Tensor]) -> Tensor:
        return torch.cat([value.flatten() for value in values]).mean()

    mse, cosine = [], []
    for place, other in read:
        pairs = [
            (a[f"stream {place}"], b[f"stream {other}"]) for a, b in zip(ours, theirs, strict=True)
        ]
        mse.append(mean([((s - t) ** 2).mean(dim=1) for s, t in pairs]))
        cosine.append(mean([1 - (s * t).sum(1) / s.norm(dim=1) / t.norm(dim=1) for s, t in pairs]))
    # float32: fused attention here, eager there
    assert got["hidden_mse"] == pytest.approx(float(torch.stack(mse).mean()), rel=1e-4)
    assert got["hidden_cosine"] == pytest.approx(float(torch.stack(cosine).mean()), rel=1e-4)
    for kind, name in (("S", "self_attention_kl"), ("C", "cross_attention_kl")):
        each = []
        for key, kept in heads.items():
            if key.startswith(kind):
                rows = [
                    _kl(a[f"weights {key}"][mine], b[f"weights {key}"][head])
                    for a, b in zip(ours, theirs, strict=True)
                    for mine, head in enumerate(kept)
                ]
                each.append(mean(rows))
        assert got[name] == pytest.approx(float(torch.stack(each).mean()), rel=1e-4, abs=1e-6)
        assert got[name] > 1e-3


def test_a_student_that_sees_what_its_teacher_sees_has_no_loss(
    tiny_teacher: Teacher, tiny_features: Features
) -> None:
    """Only the last attention and what follows differ; its heads 1 and 3 look as they did."""
    plan = Plan.parse(str(Plan.full(4)).replace("C3", "C3[1,3]"))
    recipe = replace(STILL, hidden_map=(("S3", "S3"),))
    got = _losses(tiny_teacher, tiny_features, plan, recipe)
    # rounding alone; heads matched in order, 0 and 1, would give more than 1e-2
    assert all(abs(value) < 1e-5 for value in got.values()), got
    assert _losses(tiny_teacher, tiny_features, plan)["hidden_mse"] > 1e-3
    # behind C3 itself, the streams differ
    behind = replace(STILL, hidden_map=(("C3", "C3"),))
    assert _losses(tiny_teacher, tiny_features, plan, behind)["hidden_mse"] > 1e-3


def test_places_in_front_of_everything_and_crosswise(
    tiny_teacher: Teacher, tiny_features: Features
) -> None:
    recipe = replace(STILL, losses={"hidden_mse": 1.0, "forward_kl": 1.0})
    # S0 to C2 are gone, so all their places are the embedding: equal for all of them
    plan = Plan.parse("M2 C3")
    values = [
        _losses(tiny_teacher, tiny_features, plan, replace(recipe, hidden_map=((place, "M1"),)))
        for place in ("S0", "M1", "C2")
    ]
    assert len({value["hidden_mse"] for value in values}) == 1
    # the mean of the pairs
    both = _losses(
        tiny_teacher,
        tiny_features,
        plan,
        replace(recipe, hidden_map=(("S0", "M1"), ("end", "end"))),
    )
    end = _losses(tiny_teacher, tiny_features, plan, recipe)
    expected = (values[0]["hidden_mse"] + end["hidden_mse"]) / 2
    assert both["hidden_mse"] == pytest.approx(expected)


@pytest.mark.parametrize("elastic", [False, True])
def test_parts_of_a_batch_add_up_to_its_gradient(
    tiny_teacher: Teacher, tiny_features: Features, elastic: bool
) -> None:
    """One question at a time, without padding or company, against all in one padded batch."""
    plan = Plan.full(4) if elastic else PLAN
    everything = {name: 0.1 + i for i, name in enumerate(LOSSES)}
    found = []
    for parts in (1, 3, len(tiny_features.examples), 1000):
        recipe = replace(STILL, clip=1e9, losses=everything, accumulate=parts)
        view = residual_decoder(build_student(tiny_teacher, plan))
        with only_layers_train(view) as named:
            trainer = Trainer(
                view,
                tiny_features,
                recipe,
                0,
                (lambda _: PLAN) if elastic else None,
                named,
                teacher=tiny_teacher.decoder,
            )
            report = trainer.step(0, trainer.weights())
            found.append((report, {n: p.grad for n, p in named.items() if p.grad is not None}))
    whole, gradients = found[0]
    assert whole["loss"] == pytest.approx(sum(everything[name] * whole[name] for name in LOSSES))
    scale = max(float(g.abs().max()) for g in gradients.values())
    for report, others in found[1:]:
        assert report == pytest.approx(whole, rel=1e-5)  # float32 sums in another order
        assert others.keys() == gradients.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(
                others[name], gradient, atol=1e-5 * scale, rtol=1e-3, msg=name
            )


def test_an_elastic_step_compares_as_the_student_of_its_plan(
    tiny_teacher: Teacher, tiny_features: Features
) -> None:
    plan = Plan.parse("S0=linear C0[1] M1=mean S2[0,3] C3=alone M3:9")
    fitted = fit_replacements(tiny_teacher.decoder, tiny_features, tiny_teacher.decoder.sublayers)
    student = _losses(tiny_teacher, tiny_features, plan, fitted=fitted)
    elastic = _losses(
        tiny_teacher,
        tiny_features,
        Plan.full(4),
        plan_of_step=lambda _: plan,
        replacements=fitted,
    )
    assert elastic == pytest.approx(student, rel=1e-5)
    built = residual_decoder(build_student(tiny_teacher, plan, replacements=fitted))
    for view in (PlanView(tiny_teacher.decoder, plan, replacements=fitted), built):
        heads = {name: kept_heads(view, SubLayer.parse(name)) for name in ("S0", "C0", "C1")}
        assert heads == {"S0": (), "C0": (1,), "C1": ()}
        assert kept_heads(view, SubLayer.parse("S2")) == (0, 3)
        assert kept_heads(view, SubLayer.parse("C3")) == (0, 1, 2, 3)


def test_nothing_shared_is_no_loss_and_no_training_on_it_alone(
    tiny_teacher: Teacher, tiny_features: Features
) -> None:
    plan = Plan.parse("M0 C3")
    recipe = replace(STILL, losses={"forward_kl": 1.0, "self_attention_kl": "balanced"})
    assert _losses(tiny_teacher, tiny_features, plan, recipe)["self_attention_kl"] == 0.0
    alone = replace(STILL, losses={"self_attention_kl": 1.0})
    with pytest.raises(TrainingError, match="at step 1 no loss depends on what trains"):
        _losses(tiny_teacher, tiny_features, plan, alone)


def test_the_teacher_runs_once_per_step_and_only_when_read(
    tiny_teacher: Teacher, tiny_features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    view: Any = tiny_teacher.decoder
    embed = view.embed
    monkeypatch.setattr(
        view, "embed", lambda ids: calls.append(torch.is_grad_enabled()) or embed(ids)
    )
    three = replace(STILL, steps=3)
    _losses(tiny_teacher, tiny_features, PLAN, three)
    assert len(calls) == 3
    _losses(tiny_teacher, tiny_features, PLAN, replace(three, losses=PRESETS["kl"].losses))
    assert len(calls) == 3
    assert not any(calls)
    assert all(p.grad is None for p in tiny_teacher.model.parameters())


def test_a_teacher_that_is_missing_or_does_not_fit_is_refused(
    tiny_teacher: Teacher, tiny_features: Features, tmp_path: Path
) -> None:
    def refused(match: str, **options: Any) -> None:
        with pytest.raises(ConfigError, match=match):
            _losses(tiny_teacher, tiny_features, PLAN, **options)

    refused("hidden_mse, .*: reads the inside of the teacher's decoder", teacher=None)
    wide = load_teacher(str(tiny_checkpoint(tmp_path, d_model=16))).decoder
    refused(r"got a teacher of \(layers, width, heads\) \(4, 16, 4\)", teacher=wide)
    far = replace(STILL, hidden_map=(("M7", "end"), ("end", "C4")))
    refused(r"(?s)got M7, the decoder has layers 0 to 3.*got C4", recipe=far)
    view = residual_decoder(build_student(tiny_teacher, PLAN))
    with pytest.raises(ConfigError, match="as its own teacher"):
        distill(view, tiny_features, STILL, seed=0, teacher=residual_decoder(view.model))


SHORT = DistillRecipe(steps=3, batch=4, learning_rate=1e-3, warmup=0, temperature=2.0)


@pytest.mark.parametrize("name", sorted(PRESETS))
@pytest.mark.parametrize("elastic", [False, True])
def test_presets_train(
    tiny_teacher: Teacher, tiny_features: Features, name: str, elastic: bool
) -> None:
    student = build_student(tiny_teacher, Plan.full(4) if elastic else PLAN)
    before = {n: p.detach().clone() for n, p in student.decoder.named_parameters()}
    recipe = replace(SHORT, losses=PRESETS[name].losses)
    result = distill(
        residual_decoder(student),
        tiny_features,
        recipe,
        seed=0,
        teacher=tiny_teacher.decoder,
        plan_of_step=(lambda step: Plan.parse(("S0 C0[1] M0", "C3")[step % 2]))
        if elastic
        else None,
    )
    assert list(result.losses) == [loss for loss, _ in PRESETS[name].losses]
    moved = {n for n, p in student.decoder.named_parameters() if not torch.equal(p, before[n])}
    assert "model.decoder.layers.0.encoder_attn.v_proj.weight" in moved
    assert all(".layers." in one for one in moved)
    for loss, weight in PRESETS[name].losses:
        if weight != "balanced":
            assert result.weights[loss] == weight


def test_inside_losses_resume_bit_for_bit(
    tiny_teacher: Teacher, tiny_features: Features, tmp_path: Path
) -> None:
    recipe = replace(
        SHORT,
        steps=6,
        accumulate=2,
        losses={"forward_kl": 1.0} | dict.fromkeys(INSIDE, "balanced"),
        hidden_map=(("M0", "M1"), ("end", "end")),
    )

    def train(**options: Any) -> tuple[dict[str, Tensor], DistillResult]:
        student = build_student(tiny_teacher, PLAN)
        given = {"teacher": tiny_teacher.decoder, **options}
        result = distill(residual_decoder(student), tiny_features, recipe, seed=0, **given)
        return student.decoder.state_dict(), replace(result, seconds=0.0)

    def stop(report: StepReport) -> None:
        if report.step == 4:
            raise KeyboardInterrupt

    kept = {"state_file": tmp_path / "state.safetensors", "save_every": 3}
    whole, expected = train()
    with pytest.raises(KeyboardInterrupt):
        train(on_step=stop, **kept)
    # the state was made under another teacher: its logits are in the features, its inside is not
    other = load_teacher(str(tiny_checkpoint(tmp_path / "other", seed=1))).decoder
    with pytest.raises(DataError, match="belongs to another run"):
        train(teacher=other, **kept)
    resumed, result = train(**kept)
    assert result == expected
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_bfloat16_stays_near_float32(tiny_teacher: Teacher, tiny_features: Features) -> None:
    exact = _losses(tiny_teacher, tiny_features, PLAN)
    mixed = _losses(tiny_teacher, tiny_features, PLAN, replace(STILL, precision="bfloat16"))
    assert mixed == pytest.approx(exact, rel=0.05, abs=1e-3)  # 8 bits of mantissa
    assert mixed != exact


def test_tensorboard_is_asked_for_by_name(
    tiny_teacher: Teacher,
    tiny_features: Features,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        _losses(tiny_teacher, tiny_features, PLAN, SHORT, log_dir=tmp_path)
    written: list[tuple[str, float, int]] = []
    closed: list[str] = []

    begun: list[int] = []

    def writer(folder: str, purge_step: int) -> Any:
        begun.append(purge_step)
        return SimpleNamespace(
            add_scalar=lambda *scalar: written.append(scalar), close=lambda: closed.append(folder)
        )

    fake: Any = ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    _losses(tiny_teacher, tiny_features, PLAN, SHORT, log_dir=tmp_path)
    assert [(name, step) for name, _, step in written] == [
        (name, step)
        for step in (1, 2, 3)
        for name in ("cross_entropy", "forward_kl", "loss", "learning_rate")
    ]
    assert closed == [str(tmp_path)]
    assert begun == [1]

    # killed behind its last saved state, a training says some steps again: the first are dropped
    state: dict[str, Any] = {"log_dir": tmp_path, "state_file": tmp_path / "state", "save_every": 2}

    def killed(report: StepReport) -> None:
        if report.step == 3:
            raise KeyboardInterrupt

    longer = replace(SHORT, steps=5)
    with pytest.raises(KeyboardInterrupt):
        _losses(tiny_teacher, tiny_features, PLAN, longer, on_step=killed, **state)
    written.clear()
    _losses(tiny_teacher, tiny_features, PLAN, longer, **state)
    assert begun == [1, 1, 3]
    assert {step for _, _, step in written} == {3, 4, 5}
