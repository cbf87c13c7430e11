"""Rules that look at weights and their inputs, each against a literal, slow version of it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.errors import ConfigError, InfeasibleError
from circuitsearch.core.plan import Keep, Plan
from circuitsearch.students import DistillRecipe, build_student, distill
from circuitsearch.students.baselines import BASELINES, Case, Masks, masked
from circuitsearch.students.baselines.base import by_cost, fill, remove
from circuitsearch.students.baselines.masks import matrices
from circuitsearch.students.baselines.wanda import smallest_of_rows
from circuitsearch.students.features import Features
from circuitsearch.teacher.decoders import residual_decoder
from circuitsearch.teacher.loading import Teacher
from tests.baseline_cases import (
    BUDGETS,
    each_input,
    linears,
)

# Removing under a budget


def test_the_quick_budget_is_the_exact_one(make: Callable[..., Case]) -> None:
    rng = random.Random(0)
    for budget in BUDGETS:
        case = make(budget)
        seen = set()
        for _ in range(60):
            share = rng.random()
            some = frozenset(i for i in range(len(case.units.all)) if rng.random() < share)
            some = case.units.more(frozenset(), sorted(some))
            seen.add(case.keeps_budget(some))
            assert case.keeps_budget(some) == case.fits(case.units.plan(some))
        assert seen == {True, False}


def test_removes_in_order_protects_the_page_and_takes_back(make: Callable[..., Case]) -> None:
    case = make("coarse")
    names = [unit.name for unit in case.units.all]
    order = ["C0", "C1", "C2", "C3", "M0", "S0", "S1", "S2", "S3", "M1", "M2", "M3"]
    kept, notes = remove(case, [[names.index(name)] for name in order])
    # three cross-attentions leave by order, C3 is protected; parameters then allow two attentions
    # beside the tiny feed-forwards, multiply-adds one of the cross-attentions
    assert "C3 would go next and is kept" in notes[0]
    kept_names = {names[i] for i in kept}
    gone = [name for name in order if name not in kept_names]
    for name in gone:
        assert not case.keeps_budget(case.units.more(kept, [names.index(name)]))
    assert "C3" in kept_names
    tiny = make("least", granularity="sublayers")
    with pytest.raises(InfeasibleError, match=r"'C3', does not keep the budget .*too many"):
        remove(tiny, [[names.index(name)] for name in order])


def test_by_cost_divides_by_shares_of_the_limits(make: Callable[..., Case]) -> None:
    case = make("coarse")
    shape, budget = case.teacher.shape, case.budget
    full = Plan.full(4)
    prices = []
    for unit in case.units.all:
        left, whole = (budget.slack(p, shape) for p in (full.without(unit.sublayer), full))
        prices.append(
            sum((left[one.name] - whole[one.name]) / one.maximum for one in budget.limits)
        )
    scores = [random.Random(i).random() for i in range(12)]
    expected = sorted(range(12), key=lambda i: scores[i] / prices[i])
    assert by_cost(case, scores) == [[i] for i in expected]
    # equal ratios: what runs later goes first
    assert by_cost(case, prices)[0] == [11]


def test_widths_go_and_come_from_the_end(make: Callable[..., Case]) -> None:
    units = make("fine").units
    steps = units.by_sublayer[SubLayer.parse("M1")]
    less = units.less(units.everything, [steps[0], steps[2]])
    assert units.everything - less == set(steps[-2:])
    assert units.more(less, [steps[-1]]) == units.everything - {steps[-1]}
    assert units.plan(less).keep(SubLayer.parse("M1")) == Keep(width=units.widths[-3])
    assert [units.all[i].name for i in steps] == ["M1:1", "M1:2", "M1:3", "M1:4"]


def test_fill_always_leaves_room_for_the_page(make: Callable[..., Case]) -> None:
    case = make("coarse")
    readers = sorted(case.units.readers)
    others = [i for i in range(len(case.units.all)) if i not in readers]
    for order in itertools.islice(itertools.permutations(others), 0, 40000, 400):
        kept = fill(case, frozenset(), [*order, *readers])
        assert case.keeps_budget(kept)
        assert kept & case.units.readers
        assert not any(
            case.keeps_budget(case.units.more(kept, [i])) for i in case.units.everything - kept
        )
    with pytest.raises(InfeasibleError, match="does not keep the budget"):
        fill(make("least", granularity="sublayers"), frozenset(), others)


# Magnitude


def test_magnitude_by_loops(make: Callable[..., Case], teacher: Teacher) -> None:
    scores = BASELINES["magnitude"].propose(make("fine"))[0].scores
    for name in ("S0", "C2"):
        parts = linears(teacher, SubLayer.parse(name))
        for head in range(2):
            total = 0.0
            for row in range(head * 16, head * 16 + 16):
                for one in ("q_proj", "k_proj", "v_proj"):
                    total += sum(float(w) ** 2 for w in parts[one].weight[row])
                total += sum(float(w) ** 2 for w in parts["out_proj"].weight[:, row])
            assert scores[f"{name}.H{head}"] == pytest.approx(total**0.5, rel=1e-6)
    parts = linears(teacher, SubLayer.parse("M1"))
    norms = [
        (
            parts["fc1"].weight[n].double().square().sum()
            + parts["fc2"].weight[:, n].double().square().sum()
        ).item()
        for n in range(4)
    ]
    for width, norm in zip((1, 2, 3, 4), sorted(norms, reverse=True), strict=True):
        assert scores[f"M1:{width}"] == pytest.approx(norm**0.5, rel=1e-6)
    whole = BASELINES["magnitude"].propose(make("coarse"))[0].scores
    assert whole["M1"] == pytest.approx(sum(norms) ** 0.5, rel=1e-6)


def test_magnitude_unstructured_by_matrix(make: Callable[..., Case], teacher: Teacher) -> None:
    case = make("coarse")
    masks = BASELINES["magnitude-unstructured"].propose(case)[0].masks
    assert masks is not None
    weights = sum(
        m.weight.numel() for s in teacher.decoder.sublayers for m in linears(teacher, s).values()
    )
    assert masks.weights == weights
    # 31.25 % of the weights may stay, by the paper's accounting that counts nothing else
    assert 0.6875 * weights <= masks.zeros <= 0.6875 * weights + len(masks.kept)
    matrix = linears(teacher, SubLayer.parse("C1"))["v_proj"].weight.abs()
    kept = masks.kept["model.decoder.layers.1.encoder_attn.v_proj.weight"]
    assert int((~kept).sum()) == -(-11 * kept.numel() // 16)
    assert float(matrix[~kept].max()) <= float(matrix[kept].min())


# Wanda


def test_wanda_compares_inside_each_row() -> None:
    """By hand: W = [[1, -4], [3, 2]], norms of inputs 8 and 1; S = [[8, 4], [24, 2]]."""
    weight, norms = torch.tensor([[1.0, -4.0], [3.0, 2.0]]), torch.tensor([8.0, 1.0])
    gone = smallest_of_rows(weight.abs() * norms, 1)
    assert gone.tolist() == [[False, True], [False, True]]
    # magnitude would remove the 1 of the first row


def test_wanda_unstructured_layer_by_layer(make: Callable[..., Case], teacher: Teacher) -> None:
    """The oracle prunes a Hugging Face model layer by layer, a question at a time."""
    case = make("coarse")
    masks = BASELINES["wanda-unstructured"].propose(case)[0].masks
    assert masks is not None
    weights = masks.weights
    zeros = weights - case.budget.limits[0].maximum
    oracle = build_student(teacher, Plan.full(4)).requires_grad_(False)
    for layer in range(4):
        pruned = []
        for kind in Kind:
            sublayer = SubLayer.at(layer, kind)
            inputs = each_input(case, oracle, sublayer)
            for name, linear in linears(oracle, sublayer).items():
                norms = torch.cat(inputs[name]).square().sum(dim=0).sqrt()
                scores = linear.weight.double().abs() * norms
                count = -(-zeros * scores.shape[1] // weights)
                for row, values in enumerate(scores.tolist()):
                    order = sorted(range(len(values)), key=lambda i: values[i])
                    pruned.append((linear, row, order[:count]))
        for linear, row, columns in pruned:
            linear.weight[row, columns] = 0.0
    names = dict(oracle.decoder.named_parameters())
    agreeing = sum(int((kept == (names[n] != 0)).sum()) for n, kept in masks.kept.items())
    # two routes to nearly equal scores in float32 may order a few of 33,792 weights otherwise
    assert agreeing >= weights - 8
    plain = BASELINES["magnitude-unstructured"].propose(case)[0].masks
    assert plain is not None
    assert sum(int((plain.kept[n] != kept).sum()) for n, kept in masks.kept.items()) > 1000


def test_wanda_structured_by_loops(make: Callable[..., Case], teacher: Teacher) -> None:
    case = make("fine")
    scores = BASELINES["wanda"].propose(case)[0].scores
    for name, out, units, width in (("C1", "out_proj", 2, 16), ("M2", "fc2", 4, 1)):
        sublayer = SubLayer.parse(name)
        inputs = each_input(case, teacher, sublayer)[out]
        norms = torch.cat(inputs).square().sum(dim=0).sqrt().tolist()
        weight = linears(teacher, sublayer)[out].weight.tolist()
        means = [
            sum(abs(row[j]) * norms[j] for row in weight for j in range(u * width, (u + 1) * width))
            / (len(weight) * width)
            for u in range(units)
        ]
        if name == "C1":
            found = [scores["C1.H0"], scores["C1.H1"]]
        else:
            found, means = [scores[f"M2:{w}"] for w in (1, 2, 3, 4)], sorted(means, reverse=True)
        assert found == pytest.approx(means, rel=1e-4)


# Zeros that stay


def test_zeros_stay_exact_through_the_shared_trainer(
    make: Callable[..., Case], teacher: Teacher, features: Features
) -> None:
    case = make("coarse")
    one = BASELINES["wanda-unstructured"].propose(case)[0]
    assert one.masks is not None
    student = build_student(teacher, one.plan)
    view = residual_decoder(student)
    before = {n: p.detach().clone() for n, p in student.decoder.named_parameters()}
    recipe = DistillRecipe(
        steps=5, batch=4, learning_rate=1e-2, warmup=0.0, temperature=2.0, weight_decay=0.1
    )
    with masked(view, one.masks):
        distill(view, features, recipe, seed=0)
    for name, parameter in student.decoder.named_parameters():
        if name in one.masks.kept:
            kept = one.masks.kept[name]
            assert bool((parameter[~kept] == 0).all())
            # AdamW moves every weight with a gradient by about the learning rate
            moved = (parameter.detach() - before[name]).abs()
            assert float(moved[kept].mean()) > 1e-3
        assert not parameter._backward_hooks
    distill(view, features, recipe, seed=1)  # outside the context nothing is held
    name, kept = next(iter(one.masks.kept.items()))
    assert bool((dict(student.decoder.named_parameters())[name][~kept] != 0).any())


def test_masks_of_another_decoder_are_refused(teacher: Teacher) -> None:
    student = residual_decoder(build_student(teacher, Plan.full(4)))
    name = next(iter(matrices(student).values()))[0]
    wrong = Masks({"nowhere": torch.ones(2, 2).bool(), name: torch.ones(2, 2).bool()})
    with (
        pytest.raises(ConfigError, match=r"2 problems(.|\n)*no such matrix(.|\n)*got \(2, 2\)"),
        masked(student, wrong),
    ):
        pass
    right = Masks({name: torch.ones(32, 32).bool()})
    with pytest.raises(ConfigError, match="is frozen"), masked(teacher.decoder, right):
        pass


def test_unstructured_needs_a_limit_on_parameters(make: Callable[..., Case]) -> None:
    case = make("coarse")
    budget = type(case.budget)(case.budget.limits[1:])
    with pytest.raises(InfeasibleError, match="zeros save none of it"):
        BASELINES["magnitude-unstructured"].propose(replace(case, budget=budget))
