"""The trainer learns, resumes bit for bit, keeps frozen what is frozen, says when it fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from circuitsearch.core.components import SubLayer, sublayers
from circuitsearch.core.errors import ConfigError, DataError, PlanError, TrainingError
from circuitsearch.core.plan import Plan
from circuitsearch.students import build_student, fit_replacements, kept_units
from circuitsearch.students.features import Features, prepare_features
from circuitsearch.students.plan_view import neuron_order
from circuitsearch.students.training.distill import (
    DistillRecipe,
    DistillResult,
    StepReport,
    distill,
)
from circuitsearch.students.training.order import DataOrder
from circuitsearch.teacher.decoders import residual_decoder
from circuitsearch.teacher.loading import Teacher
from circuitsearch.teacher.state import load_state, save_state
from tests.student_fixtures import noise_pages

PLAN = Plan.parse("M0:20 C2 S3[0-1] C3[1,3]")
RECIPE = DistillRecipe(
    steps=8, batch=4, learning_rate=3e-3, warmup=0.05, kd_weight="balanced", temperature=2.0
)


def _elastic(step: int) -> Plan:
    """Three plans in turn; C1 and M2 only in some, S0 and M3 in different forms."""
    return Plan.parse(("S0 C0 M0", "C1[1,3] M2", "S0[2] C1 M3:20")[step % 3])


def _weights(model: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.decoder.state_dict().items()}


def _equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def _trained(
    teacher: Teacher, features: Features, recipe: DistillRecipe = RECIPE, **options: Any
) -> tuple[dict[str, Tensor], DistillResult]:
    plan = Plan.full(4) if "plan_of_step" in options else PLAN
    student = build_student(teacher, plan)
    result = distill(residual_decoder(student), features, recipe, seed=1, **options)
    return _weights(student), result


def test_learns(tiny_teacher: Teacher, tiny_features: Features) -> None:
    reports: list[StepReport] = []
    recipe = replace(RECIPE, steps=60, batch=16)
    _, result = _trained(tiny_teacher, tiny_features, recipe, on_step=reports.append)
    assert [one.step for one in reports] == list(range(1, 61))
    # a random teacher's answers are noise, but 20 examples can be memorised
    assert result.loss < 0.8 * reports[0].loss
    assert result.losses["forward_kl"] < reports[0].losses["forward_kl"]
    assert result.steps == 60
    # the reported loss is that of the last 20 steps
    assert result.loss == pytest.approx(sum(one.loss for one in reports[-20:]) / 20)
    assert result.seconds > 0


@pytest.mark.parametrize("elastic", [False, True])
def test_resumes_bit_for_bit(
    tiny_teacher: Teacher, tiny_features: Features, tmp_path: Path, elastic: bool
) -> None:
    options: dict[str, Any] = {"plan_of_step": _elastic} if elastic else {}
    whole, expected = _trained(tiny_teacher, tiny_features, **options)
    state = tmp_path / "state.safetensors"

    def stop(report: StepReport) -> None:
        if report.step == 5:
            raise KeyboardInterrupt

    kept = {**options, "state_file": state, "save_every": 2}
    with pytest.raises(KeyboardInterrupt):
        _trained(tiny_teacher, tiny_features, on_step=stop, **kept)
    steps: list[int] = []
    resumed, result = _trained(
        tiny_teacher, tiny_features, on_step=lambda report: steps.append(report.step), **kept
    )
    assert steps == [5, 6, 7, 8]  # saved at step 4
    assert _equal(whole, resumed)
    assert replace(result, seconds=0.0) == replace(expected, seconds=0.0)
    # a finished run is loaded, not repeated
    steps.clear()
    again, result = _trained(
        tiny_teacher, tiny_features, on_step=lambda report: steps.append(report.step), **kept
    )
    assert steps == []
    assert _equal(whole, again)
    assert replace(result, seconds=0.0) == replace(expected, seconds=0.0)


def test_moments_come_back_beside_their_parameters(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    save_state(tmp_path / "state", {"p": parameter}, optimizer, {})
    for fused in (False, True):
        # stands for a GPU: tensors that lie elsewhere than those of the file
        moved = torch.nn.Parameter(torch.empty(3, device="meta"))
        later = torch.optim.AdamW([moved])
        later.defaults["fused"] = fused
        load_state(tmp_path / "state", {"p": moved}, later)
        places = {name: tensor.device.type for name, tensor in later.state[moved].items()}
        steps = "meta" if fused else "cpu"
        assert places == {"step": steps, "exp_avg": "meta", "exp_avg_sq": "meta"}


def test_state_of_another_run_is_refused_and_changes_nothing(
    tiny_teacher: Teacher, tiny_features: Features, tmp_path: Path
) -> None:
    state = tmp_path / "state.safetensors"
    _trained(tiny_teacher, tiny_features, state_file=state)
    # same shapes, other heads
    student = build_student(tiny_teacher, Plan.parse("M0:20 C2 S3[0-1] C3[0,3]"))
    before = _weights(student)
    with pytest.raises(DataError, match="belongs to another run"):
        distill(residual_decoder(student), tiny_features, RECIPE, seed=1, state_file=state)
    assert _equal(before, _weights(student))
    with pytest.raises(DataError, match="belongs to another run"):
        _trained(tiny_teacher, tiny_features, replace(RECIPE, steps=9), state_file=state)
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(DataError, match="not a training state"):
        _trained(tiny_teacher, tiny_features, state_file=state)


def test_only_decoder_layers_train(tiny_teacher: Teacher, tiny_features: Features) -> None:
    student = build_student(tiny_teacher, PLAN)
    before = _weights(student)
    encoder = {n: t.clone() for n, t in tiny_teacher.model.state_dict().items()}
    distill(residual_decoder(student), tiny_features, RECIPE, seed=1)
    after = _weights(student)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".layers." in name}
    for name, tensor in tiny_teacher.model.state_dict().items():
        assert torch.equal(encoder[name], tensor), name
    # the student can still be trained as a whole by its user
    assert all(p.requires_grad for p in student.decoder.parameters())
    assert all(p.grad is None for p in student.parameters())


def test_elastic_steps_move_only_what_they_keep(
    tiny_teacher: Teacher, tiny_features: Features
) -> None:
    student = build_student(tiny_teacher, Plan.full(4))
    layers = student.decoder.model.decoder.layers
    owners = {
        "S": ("self_attn", "self_attn_layer_norm"),
        "C": ("encoder_attn", "encoder_attn_layer_norm"),
        "M": ("fc1", "fc2", "final_layer_norm"),
    }

    def parameters(sublayer: SubLayer) -> Tensor:
        modules = [getattr(layers[sublayer.layer], name) for name in owners[sublayer.kind.value]]
        return torch.cat([p.detach().flatten() for m in modules for p in m.parameters()])

    seen = {one: parameters(one) for one in sublayers(4)}

    def check(report: StepReport) -> None:
        moved = {one for one in seen if not torch.equal(seen[one], parameters(one))}
        assert moved == set(_elastic(report.step - 1).sublayers)
        seen.update({one: parameters(one) for one in sublayers(4)})

    distill(
        residual_decoder(student),
        tiny_features,
        replace(RECIPE, steps=7),  # the rate of the last step of a cosine is above 0
        seed=1,
        plan_of_step=_elastic,
        on_step=check,
    )


@pytest.mark.parametrize("text", ["S0 C0 M2 C3", "S0[1,2] C0 M2:20 S3[0] C3[0,3] M3:64"])
def test_elastic_training_under_one_plan_is_training_its_student(
    tiny_teacher: Teacher, tiny_features: Features, text: str
) -> None:
    """What a plan drops takes no part: the student's weights come out."""
    plan = Plan.parse(text)
    elastic, one = _trained(tiny_teacher, tiny_features, plan_of_step=lambda _: plan)
    student = build_student(tiny_teacher, plan)
    other = distill(residual_decoder(student), tiny_features, RECIPE, seed=1)
    whole = build_student(tiny_teacher, Plan.full(4))
    whole.decoder.load_state_dict(elastic)
    units = neuron_order(tiny_teacher.decoder)
    cut = build_student(tiny_teacher, plan, source=whole.decoder, neurons=units)
    for name, tensor in _weights(student).items():
        if name.endswith("k_proj.bias"):  # no gradient but rounding (`test_equals_the_plain_loop`)
            continue
        # sub-layers kept whole: to the last bit; in part, norms add zeros in another order
        tolerance = {"atol": 1e-6, "rtol": 1e-5} if ":" in text else {"atol": 0.0, "rtol": 0.0}
        torch.testing.assert_close(_weights(cut)[name], tensor, msg=name, **tolerance)
    assert one.loss == pytest.approx(other.loss, rel=1e-6 if ":" in text else 0.0)


def test_elastic_heads_and_neurons_that_are_dropped_keep_their_weights_at_first(
    tiny_teacher: Teacher, tiny_features: Features
) -> None:
    """No gradient reaches them; before they have moments only weight decay moves them."""
    plan = Plan.parse("C0[1] M0:20")
    before = _weights(build_student(tiny_teacher, Plan.full(4)))
    recipe = replace(RECIPE, weight_decay=0.0)
    after, _ = _trained(tiny_teacher, tiny_features, recipe, plan_of_step=lambda _: plan)
    units = kept_units(tiny_teacher.model.decoder, plan, tiny_teacher.shape.decoder)
    width = tiny_teacher.shape.decoder.head_dim
    rows = {
        "encoder_attn.v_proj": [
            width * head + i for head in units[SubLayer.parse("C0")] for i in range(width)
        ],
        "fc1": list(units[SubLayer.parse("M0")]),
    }
    for module, kept in rows.items():
        name = f"model.decoder.layers.0.{module}.weight"
        moved = (before[name] != after[name]).any(dim=1)
        assert moved.nonzero().flatten().tolist() == sorted(kept)


def test_elastic_training_with_replacements_is_training_the_student(
    tiny_teacher: Teacher, tiny_features: Features
) -> None:
    plan = Plan.parse("S0=linear C0 M0=mean S1 C3=alone M3")
    fitted = fit_replacements(tiny_teacher.decoder, tiny_features, tiny_teacher.decoder.sublayers)
    with pytest.raises(ConfigError, match="nothing is fitted for S0=linear"):
        _trained(tiny_teacher, tiny_features, plan_of_step=lambda _: plan)
    still = replace(RECIPE, learning_rate=1e-12, steps=2)
    _, one = _trained(
        tiny_teacher, tiny_features, still, plan_of_step=lambda _: plan, replacements=fitted
    )
    student = build_student(tiny_teacher, plan, replacements=fitted)
    other = distill(residual_decoder(student), tiny_features, still, seed=1)
    assert one.loss == pytest.approx(other.loss, rel=1e-6)


def _plain_loop(teacher: Teacher, features: Features, recipe: DistillRecipe) -> dict[str, Tensor]:
    """The oracle: pixels, teacher and Hugging Face student at every step, textbook AdamW."""
    student = build_student(teacher, PLAN)
    named = [(n, p) for n, p in student.decoder.named_parameters() if ".layers." in n]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for _, p in named if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for _, p in named if p.ndim == 1], "weight_decay": 0.0},
        ],
        foreach=False,
    )
    lengths = [len(e.ids) for e in features.examples]
    order = DataOrder(lengths, [e.page for e in features.examples], recipe.batch, seed=1)
    for step in range(recipe.steps):
        batch = features.read(order.indices(step)).batch
        pixels = teacher.pixel_values([features.pages[int(i)].image() for i in batch.pages])
        with torch.no_grad():
            said = teacher.model(pixel_values=pixels, decoder_input_ids=batch.ids).logits
        logits = student(pixel_values=pixels, decoder_input_ids=batch.ids).logits
        answers = batch.labels != -100
        logits, said = logits[answers], said[answers]
        ce = F.cross_entropy(logits, batch.labels[answers])
        t = recipe.temperature
        kd = (
            t
            * t
            * F.kl_div((logits / t).log_softmax(-1), (said / t).softmax(-1), reduction="batchmean")
        )
        loss = ce + float(recipe.weights["forward_kl"]) * kd
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in named], recipe.clip)
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(step)
        optimizer.step()
    return _weights(student)


def test_equals_the_plain_loop_on_pixels(tiny_teacher: Teacher, tiny_features: Features) -> None:
    recipe = replace(RECIPE, kd_weight=0.7, steps=5)
    expected = _plain_loop(tiny_teacher, tiny_features, recipe)
    got, _ = _trained(tiny_teacher, tiny_features, recipe)
    # A constant added to all scores changes no softmax, so a key bias has no gradient but rounding,
    # which Adam blows up to full steps.
    kept = [name for name in got if not name.endswith("k_proj.bias")]
    for name in kept:
        # Adam divides by the root of tiny second moments: rounding of 1e-7 grows to a share of a
        # step of 3e-3
        torch.testing.assert_close(got[name], expected[name], atol=3e-4, rtol=1e-3, msg=name)
    start = _weights(build_student(tiny_teacher, PLAN))
    moved = sum(float((got[n] - start[n]).abs().sum()) for n in kept)
    off = sum(float((got[n] - expected[n]).abs().sum()) for n in kept)
    assert off < 1e-3 * moved


def _literal_step(view: Any, features: Features, indices: list[int]) -> tuple[Tensor, Tensor]:
    """Cross-entropy and KL at temperature 2 of one batch, written out."""
    read = features.read(indices)
    answers = read.batch.labels != -100
    memory = view.memory(read.states, read.rows)
    x = view.embed(read.batch.ids)
    for sublayer in view.sublayers:
        x = x + view.project(sublayer, view.units(sublayer, x, memory))
    logits = view.readout(x[answers])
    said = (read.teacher.logits / 2.0).log_softmax(dim=-1)
    ours = (logits / 2.0).log_softmax(dim=-1)
    kd = (said.exp() * (said - ours)).sum(dim=-1).mean() * 2.0**2
    return F.cross_entropy(logits, read.batch.labels[answers]), kd


def test_the_default_recipe_equals_its_literal_loop_bit_for_bit(
    tiny_teacher: Teacher, tiny_features: Features
) -> None:
    student = build_student(tiny_teacher, PLAN)
    view = residual_decoder(student)
    named = [(n, p) for n, p in student.decoder.named_parameters() if ".layers." in n]
    groups = [
        {"params": [p for _, p in named if p.ndim > 1], "weight_decay": RECIPE.weight_decay},
        {"params": [p for _, p in named if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, fused=True)
    examples = tiny_features.examples
    order = DataOrder([len(e.ids) for e in examples], [e.page for e in examples], 4, seed=1)
    with torch.no_grad():
        first = [_literal_step(view, tiny_features, order.indices(step)) for step in range(4)]
    weight = sum(float(ce) for ce, _ in first) / sum(float(kd) for _, kd in first)
    for step in range(RECIPE.steps):
        ce, kd = _literal_step(view, tiny_features, order.indices(step))
        optimizer.zero_grad()
        (ce + weight * kd).backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in named], RECIPE.clip)
        for group in optimizer.param_groups:
            group["lr"] = RECIPE.rate(step)
        optimizer.step()
    got, result = _trained(tiny_teacher, tiny_features)
    assert result.weights == {"cross_entropy": 1.0, "forward_kl": weight}
    assert _equal(_weights(student), got)


def test_balanced_weight_is_the_ratio_of_the_first_losses(
    tiny_teacher: Teacher, tiny_features: Features
) -> None:
    reports: list[StepReport] = []
    recipe = replace(RECIPE, steps=4, learning_rate=1e-12)  # stands still
    _, result = _trained(tiny_teacher, tiny_features, recipe, on_step=reports.append)
    labels = sum(one.losses["cross_entropy"] for one in reports)
    teacher = sum(one.losses["forward_kl"] for one in reports)
    weight = result.weights["forward_kl"]
    assert weight == pytest.approx(labels / teacher, rel=1e-4)  # weights move by 1e-12
    assert result.weights["cross_entropy"] == 1.0
    assert reports[0].loss == pytest.approx(
        reports[0].losses["cross_entropy"] + weight * reports[0].losses["forward_kl"]
    )


def test_a_student_that_starts_as_its_teacher_gets_a_finite_weight(
    tiny_teacher: Teacher, tiny_features: Features
) -> None:
    student = build_student(tiny_teacher, Plan.full(4))
    result = distill(residual_decoder(student), tiny_features, replace(RECIPE, steps=1), seed=1)
    assert result.weights == {"cross_entropy": 1.0, "forward_kl": 100.0}


@pytest.mark.parametrize(
    ("losses", "reference"),
    [
        ({"forward_kl": "balanced"}, "forward_kl"),
        ({"reverse_kl": "balanced", "jensen_shannon": "balanced"}, "reverse_kl"),
        ({"jensen_shannon": "balanced", "forward_kl": 0.5}, "forward_kl"),
        ({"forward_kl": 2, "cross_entropy": 3, "reverse_kl": "balanced"}, "cross_entropy"),
        ({"cross_entropy": 0, "forward_kl": 2, "reverse_kl": "balanced"}, "forward_kl"),
        ({"reverse_kl": "balanced", "cross_entropy": "balanced"}, "cross_entropy"),
    ],
)
def test_balanced_losses_start_as_large_as_the_reference(
    tiny_teacher: Teacher, tiny_features: Features, losses: dict[str, Any], reference: str
) -> None:
    recipe = replace(RECIPE, steps=1, losses=losses, learning_rate=1e-12)
    assert recipe.reference == reference
    _, result = _trained(tiny_teacher, tiny_features, recipe)
    assert tuple(result.losses) == tuple(result.weights) == tuple(losses)
    terms = {name: result.weights[name] * result.losses[name] for name in losses}
    assert result.loss == pytest.approx(sum(terms.values()))
    for name, weight in losses.items():
        if weight != "balanced":
            assert result.weights[name] == weight
        else:
            assert terms[name] == pytest.approx(terms[reference])
    if losses[reference] == "balanced":
        assert result.weights[reference] == 1.0


def test_trains_on_the_best_tokens_alone(tiny_teacher: Teacher, tmp_path: Path) -> None:
    features = prepare_features(tiny_teacher, noise_pages(4), tmp_path, best_tokens=8)
    _trained(tiny_teacher, features, replace(RECIPE, steps=2))
    with pytest.raises(ConfigError, match="temperature: got 3"):
        _trained(tiny_teacher, features, replace(RECIPE, temperature=3.0))


def test_bfloat16_stays_near_float32(tiny_teacher: Teacher, tiny_features: Features) -> None:
    _, exact = _trained(tiny_teacher, tiny_features)
    weights, mixed = _trained(tiny_teacher, tiny_features, replace(RECIPE, precision="bfloat16"))
    assert mixed.loss == pytest.approx(exact.loss, rel=0.05)  # 8 bits of mantissa
    assert mixed.loss != exact.loss
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


def test_a_loss_that_is_not_finite_stops_the_trial(
    tiny_teacher: Teacher, tiny_features: Features
) -> None:
    student = build_student(tiny_teacher, PLAN)
    with torch.no_grad():
        student.decoder.model.decoder.layers[0].fc2.bias[0] = torch.nan
    recipe = replace(RECIPE, kd_weight=1.0)
    with pytest.raises(TrainingError, match=r"loss is nan at step 1 \(cross_entropy nan"):
        distill(residual_decoder(student), tiny_features, recipe, seed=1)
    with pytest.raises(TrainingError, match="not finite before the first step"):
        distill(residual_decoder(student), tiny_features, RECIPE, seed=1)


def test_a_gradient_that_is_not_finite_updates_nothing(
    tiny_teacher: Teacher, tiny_features: Features
) -> None:
    student = build_student(tiny_teacher, PLAN)
    weight = student.decoder.model.decoder.layers[2].encoder_attn.v_proj.weight
    weight.register_hook(lambda gradient: gradient * torch.inf)
    before = _weights(student)
    with pytest.raises(TrainingError, match=r"gradient's norm is (inf|nan) at step 1"):
        distill(residual_decoder(student), tiny_features, RECIPE, seed=1)
    assert _equal(before, _weights(student))


@pytest.mark.parametrize(("step", "stops"), [(35, True), (16, False)])
def test_a_loss_that_diverges_stops_the_trial(
    tiny_teacher: Teacher, tiny_features: Features, step: int, stops: bool
) -> None:
    """A rise in the warm-up, which a student that starts as its teacher may need, does not."""
    student = build_student(tiny_teacher, Plan.full(4))
    weight = student.decoder.model.decoder.layers[3].fc2.weight
    recipe = replace(RECIPE, steps=60, losses={"forward_kl": 1.0}, learning_rate=1e-12, warmup=0.5)

    def blow_up(report: StepReport) -> None:
        if report.step == step:
            weight.data.mul_(10.0)

    def train() -> DistillResult:
        view = residual_decoder(student)
        return distill(view, tiny_features, recipe, seed=1, on_step=blow_up)

    if stops:
        with pytest.raises(TrainingError, match=r"it diverged: .* at step 36, at most"):
            train()
    else:
        assert train().loss > 0.1


def test_a_teacher_is_never_trained(tiny_teacher: Teacher, tiny_features: Features) -> None:
    with pytest.raises(ConfigError, match="no layer that may be trained"):
        distill(tiny_teacher.decoder, tiny_features, RECIPE, seed=1)
    empty = build_student(tiny_teacher, Plan())
    with pytest.raises(ConfigError, match="no layer that may be trained"):
        distill(residual_decoder(empty), tiny_features, RECIPE, seed=1)


def test_an_elastic_step_without_sublayers_is_refused(
    tiny_teacher: Teacher, tiny_features: Features
) -> None:
    with pytest.raises(ConfigError, match=r"plan_of_step\(0\) keeps no sub-layer"):
        _trained(tiny_teacher, tiny_features, plan_of_step=lambda _: Plan())
    with pytest.raises(PlanError, match="the decoder has 4 layers"):
        _trained(tiny_teacher, tiny_features, plan_of_step=lambda _: Plan.parse("C7"))
