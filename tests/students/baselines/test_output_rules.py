"""Rules that run the decoder, search, or follow a paper, each against a literal version of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.plan import Keep, Plan
from circuitsearch.students import build_student, rank_neurons
from circuitsearch.students.baselines import BASELINES, Case
from circuitsearch.students.baselines.base import proposal
from circuitsearch.students.baselines.distances import DISTANCES, PlanDistances
from circuitsearch.students.baselines.evopress import evolved
from circuitsearch.students.baselines.minitron import statistics
from circuitsearch.students.baselines.mint import hand_made
from circuitsearch.students.baselines.puzzle import puzzle_menus
from circuitsearch.students.baselines.shortgpt import layer_influence, sublayer_influence
from circuitsearch.teacher.loading import Teacher
from tests.baseline_cases import (
    BUDGETS,
    answer_logits,
    ask,
    each_input,
    linears,
    menu_space,
    space_of,
)

# Distances and greedy removal


LITERAL: dict[str, Callable[[Tensor, Tensor], float]] = {
    "norm": lambda z, s: float(torch.linalg.matrix_norm(z - s)),
    "angular": lambda z, s: float(
        torch.stack(
            [
                (a @ b / (a.norm() * b.norm())).clamp(0, 1).arccos()
                for a, b in zip(z, s, strict=True)
            ]
        ).mean()
    ),
    "kl": lambda z, s: float(
        torch.distributions.kl_divergence(
            torch.distributions.Categorical(logits=z), torch.distributions.Categorical(logits=s)
        ).mean()
    ),
}


def _js(z: Tensor, s: Tensor) -> float:
    p, q = z.softmax(-1), s.softmax(-1)
    m = (p + q) / 2
    return float(((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)).mean() / 2)


LITERAL["js"] = _js


@pytest.mark.parametrize("name", LITERAL)
def test_distances_are_those_of_built_students(
    name: str, make: Callable[..., Case], teacher: Teacher
) -> None:
    case = make("coarse")
    plans = [Plan.parse(text) for text in ("C3", "S0 C1 M1 C3 M3", "S0 C0[1] M0:3 S3 C3")]
    found = PlanDistances(case, name)(plans, case.questions)
    for plan, value in zip(plans, found, strict=True):
        student = build_student(teacher, plan)
        each = [
            LITERAL[name](answer_logits(case, teacher, i), answer_logits(case, student, i))
            for i in case.questions
        ]
        # arccos has slope 1 / sin at small angles, and cached logits are those of another batch
        assert value == pytest.approx(sum(each) / len(each), rel=2e-3)
    assert set(DISTANCES) == {*LITERAL, "loss"}


def test_finercut_is_the_greedy_over_built_students(
    make: Callable[..., Case], teacher: Teacher
) -> None:
    case = make("coarse", most_questions=3)
    one = BASELINES["finercut-js"].propose(case)[0]
    kept, removed, asked = list(teacher.decoder.sublayers), [], 0
    while not case.fits(Plan.of(kept)):
        values = {}
        for sublayer in kept:
            student = build_student(teacher, Plan.of(kept).without(sublayer))
            each = [
                _js(answer_logits(case, teacher, i), answer_logits(case, student, i))
                for i in case.questions
            ]
            values[sublayer] = sum(each) / len(each)
        asked += len(kept)
        crossing = [s for s in kept if s.kind is Kind.CROSS]
        allowed = [s for s in kept if crossing != [s]]
        worst = min(allowed, key=lambda s: values[s])
        assert one.scores[worst.name] == pytest.approx(values[worst], rel=1e-3)
        kept.remove(worst)
        removed.append(worst)
    for sublayer in reversed(removed):
        if case.fits(Plan.of([*kept, sublayer])):
            kept.append(sublayer)
    assert one.plan == Plan.of(kept)
    assert list(one.scores) == [sublayer.name for sublayer in removed]
    assert one.passes == asked * len(case.questions)


# Block influence and Minitron's statistics


def test_block_influence_by_hand(make: Callable[..., Case], teacher: Teacher) -> None:
    case = make("coarse")
    layers = {layer: [] for layer in range(4)}
    for index in case.questions:
        streams = ask(case, teacher, index, output_hidden_states=True).hidden_states
        for layer in range(3):  # Hugging Face's last state is behind the final norm
            for x, y in zip(streams[layer][0], streams[layer + 1][0], strict=True):
                layers[layer].append(1 - float(x @ y / (x.norm() * y.norm())))
    found = layer_influence(case)
    for layer in range(3):
        expected = sum(layers[layer]) / len(layers[layer])
        assert found[layer] == pytest.approx(expected, rel=1e-4)
    view, sums = teacher.decoder, dict.fromkeys(teacher.decoder.sublayers, 0.0)
    tokens = 0
    for index in case.questions:
        read = case.features.read([index])
        memory = view.memory(read.states, read.rows)
        x = view.embed(read.batch.ids)
        tokens += x.shape[1]
        for sublayer in view.sublayers:
            y = x + view.project(sublayer, view.units(sublayer, x, memory))
            for a, b in zip(x[0], y[0], strict=True):
                sums[sublayer] += 1 - float(a @ b / (a.norm() * b.norm()))
            x = y
    single = sublayer_influence(case)
    assert {s: v / tokens for s, v in sums.items()} == pytest.approx(single, rel=1e-4)


def test_shortgpt_deletes_the_lowest_layers(make: Callable[..., Case]) -> None:
    influence = layer_influence(make("coarse"))
    best = max(influence, key=lambda layer: influence[layer])
    plan = BASELINES["shortgpt"].propose(make("coarse"))[0].plan
    assert {s.layer for s in plan.sublayers if s.kind is Kind.CROSS} == {best}
    assert all(SubLayer.at(best, kind) in plan for kind in Kind)


def test_minitron_statistics_by_loops(make: Callable[..., Case], teacher: Teacher) -> None:
    case = make("fine")
    found = statistics(case)
    for name, out in (("S2", "out_proj"), ("M0", "fc2")):
        sublayer = SubLayer.parse(name)
        squares = [0.0] * linears(teacher, sublayer)[out].in_features
        for x in each_input(case, teacher, sublayer)[out]:
            for j in range(len(squares)):
                squares[j] += (sum(abs(float(v)) for v in x[:, j]) / len(x)) ** 2
        if name == "M0":
            assert found.neurons[sublayer].tolist() == pytest.approx(
                [v**0.5 for v in squares], rel=1e-4
            )
        else:
            heads = [sum(squares[h * 16 : h * 16 + 16]) ** 0.5 for h in range(2)]
            assert found.heads[sublayer].tolist() == pytest.approx(heads, rel=1e-4)


def test_minitron_is_homogeneous_and_takes_the_best_of_ten(
    make: Callable[..., Case], teacher: Teacher
) -> None:
    case = make("fine")
    one = BASELINES["minitron"].propose(case)[0]
    by_layer: dict[int, list[tuple[Kind, int]]] = {}
    for sublayer, _ in one.plan.kept:
        entry = (sublayer.kind, one.plan.units(sublayer, teacher.shape.decoder))
        by_layer.setdefault(sublayer.layer, []).append(entry)
    shapes = list(by_layer.values())
    assert all(shape == shapes[0] for shape in shapes)
    assert [kind for kind, _ in shapes[0]] == list(Kind)
    assert shapes[0][0][1] == shapes[0][1][1]
    assert len(one.passes.__str__()) > 0
    assert one.passes <= 11 * len(case.questions)
    assert one.passes > len(case.questions)


# Evolution, program, random plans


@pytest.mark.parametrize("budget", ["coarse", "fine"])
def test_evolution_never_gets_worse_or_infeasible(budget: str, make: Callable[..., Case]) -> None:
    case = make(budget, most_generations=8)
    met: list[Plan] = []

    class Watched(PlanDistances):
        def __call__(self, plans: Sequence[Plan], questions: Sequence[int]) -> list[float]:
            met.extend(plans)
            assert len(set(plans)) == len(plans)
            return super().__call__(plans, questions)

    kept, trace = evolved(case, Watched(case, "kl"))
    assert trace == sorted(trace, reverse=True)
    if budget == "fine":  # of whole sub-layers so few fit that the first draws hold the best plan
        assert trace[-1] < trace[0]
    assert all(case.fits(plan) for plan in met)
    assert all(any(s.kind is Kind.CROSS for s in plan.sublayers) for plan in met)
    again = PlanDistances(case, "kl")([case.units.plan(kept)], case.questions)
    assert trace[-1] == pytest.approx(again[0], rel=1e-4)


def _literal_kl(case: Case, teacher: Teacher, plan: Plan) -> float:
    student = build_student(teacher, plan)
    each = [
        LITERAL["kl"](answer_logits(case, teacher, i), answer_logits(case, student, i))
        for i in case.questions
    ]
    return sum(each) / len(each)


def _with(sublayer: str, keep: Keep | None) -> Plan:
    """The whole decoder with another alternative for one sub-layer."""
    one = SubLayer.parse(sublayer)
    left = Plan.full(4).without(one)
    return left if keep is None else Plan((*left.kept, (one, keep)))


def test_puzzle_scores_one_replacement_at_a_time(
    make: Callable[..., Case], teacher: Teacher
) -> None:
    case = make("fine")
    menus, passes = puzzle_menus(case, "kl")
    m1 = menus[SubLayer.parse("M1")]
    for k, keep in enumerate([None, *(Keep(width=width) for width in (1, 2, 3))]):
        expected = _literal_kl(case, teacher, _with("M1", keep))
        # 1e-6: float32 sums of KL
        assert m1.scores[k] == pytest.approx(expected, rel=1e-3, abs=1e-6)
    c2 = menus[SubLayer.parse("C2")]
    alone = [_literal_kl(case, teacher, _with("C2", Keep(heads=(head,)))) for head in (0, 1)]
    best = 0 if alone[0] < alone[1] else 1  # the decoder that lacks the other loses less
    assert [case.units.all[unit].head for unit in c2.order] == [best, 1 - best]
    assert c2.scores[1] == pytest.approx(alone[best], rel=1e-3, abs=1e-6)
    # none of an attention is an alternative of its own, not the sum of its heads
    gone = _literal_kl(case, teacher, _with("C2", None))
    assert c2.scores[0] == pytest.approx(gone, rel=1e-3, abs=1e-6)
    assert all(menu.scores[-1] == 0.0 for menu in menus.values())
    # four widths below the whole and none; of two heads either alone, and none
    assert passes == (4 * 4 + 8 * 3) * len(case.questions)


@pytest.mark.parametrize("budget", ["coarse", "least"])
@pytest.mark.parametrize("score", ["kl", "cosine"])
def test_puzzle_is_the_best_of_all_plans_by_added_scores(
    score: str, budget: str, make: Callable[..., Case], teacher: Teacher
) -> None:
    case = make(budget)
    menus, _ = puzzle_menus(case, score)
    name = "puzzle" if score == "kl" else "puzzle-cosine"
    found = BASELINES[name].propose(case)[0]
    sizes = {"coarse": {0, 1}, "least": {0, 1, 2, 3, 4}}[budget]

    def added(one: Plan) -> float:
        total = 0.0
        for sublayer, menu in menus.items():
            keep = one.keep(sublayer)
            if keep is None:
                size = 0
            elif keep.heads is not None:
                size = len(keep.heads)
            else:
                size = len(menu.order) if keep.width is None else keep.width
            assert size in sizes
            total += menu.scores[size]
        return total

    granularity, limits = BUDGETS[budget]
    all_plans = (
        space_of(teacher, granularity, limits)
        if granularity == "sublayers"
        else menu_space(teacher, limits)
    )
    least = min(map(added, all_plans.enumerate()))
    assert added(found.plan) == pytest.approx(least, rel=1e-9)
    for sublayer, keep in found.plan.kept:
        if keep.heads is not None:  # its best ones
            order = [case.units.all[unit].head for unit in menus[sublayer].order]
            assert set(keep.heads) == set(order[: len(keep.heads)])
    if score == "cosine" and budget == "coarse":
        skipped = build_student(teacher, Plan.full(4).without(SubLayer.parse("S1")))
        turned = []
        for index in case.questions:
            x, y = (
                ask(case, one, index, output_hidden_states=True).hidden_states[-1][0]
                for one in (teacher, skipped)
            )
            turned += [1 - float(a @ b / (a.norm() * b.norm())) for a, b in zip(x, y, strict=True)]
        assert found.scores["S1"] == pytest.approx(sum(turned) / len(turned), rel=1e-3)


def test_random_plans_are_a_distribution(make: Callable[..., Case]) -> None:
    found = BASELINES["random"].propose(make("coarse"))
    assert [one.label for one in found] == [f"random {i}" for i in range(20)]
    assert len({one.plan.hash for one in found}) == 20
    kept: Mapping[str, int] = {
        name: sum(SubLayer.parse(name) in one.plan for one in found)
        for name in ("C0", "C1", "C2", "C3", "S0", "S3")
    }
    assert all(count > 0 for count in kept.values())


# Taylor and hand-made plans


def test_taylor_keeps_what_has_the_largest_scores(make: Callable[..., Case]) -> None:
    """The formulas have their oracle in discovery's tests; here: units, steps and order."""
    for name in ("taylor", "taylor-gate"):
        fine, coarse = (BASELINES[name].propose(make(b))[0] for b in ("fine", "coarse"))
        if name == "taylor":  # sums over weights: heads sum to their sub-layer, so do steps
            for one in ("C1", "S2"):
                total = sum(fine.scores[f"{one}.H{head}"] for head in range(2))
                assert total == pytest.approx(coarse.scores[one], rel=1e-5)
            total = sum(fine.scores[f"M3:{width}"] for width in (1, 2, 3, 4))
            assert total == pytest.approx(coarse.scores["M3"], rel=1e-5)
        steps = [fine.scores[f"M0:{width}"] for width in (1, 2, 3, 4)]
        assert steps == sorted(steps, reverse=True)


def test_hand_made_plans_and_their_siblings(make: Callable[..., Case], teacher: Teacher) -> None:
    plans = hand_made()
    assert str(plans["mint31 C2 S3"]) == str(Plan.parse("M0 C2 S3 C3"))
    assert len({plan.hash for plan in plans.values()}) == 12
    assert all(
        {s.kind for s in plan.sublayers} == ({*Kind} if "31" in label else {Kind.SELF, Kind.CROSS})
        for label, plan in plans.items()
    )
    found = BASELINES["mint"].propose(make("most"))
    assert [one.label for one in found] == list(plans)[:6]  # the first kind that fits
    fine = BASELINES["mint"].propose(make("fine"))
    assert len(fine) == 6
    assert {one.label[:5] for one in fine} == {"mint7"}
    # shares of two heads: 9/16 and 6/16 are one head each, 3/16 at least one
    for one in fine:
        assert [one.plan.units(s, teacher.shape.decoder) for s in one.plan.sublayers] == [1, 1, 1]
        assert "heads scaled from 16 to 2" in one.notes[0]


def test_rankings_are_what_students_are_cut_by(make: Callable[..., Case], teacher: Teacher) -> None:
    case, feed = make("fine"), SubLayer.parse("M1")
    ranks = rank_neurons(teacher.model.decoder, feed)[::-1]
    narrow = case.units.less(case.units.everything, case.units.by_sublayer[feed][-2:])
    one = proposal(case, narrow, ranking=dict.fromkeys(case.units.by_sublayer, ranks))
    assert one.ranking == {"M1": tuple(ranks)}
    cut = build_student(teacher, one.plan, neurons=one.neurons).decoder.model.decoder.layers[1]
    whole = linears(teacher, feed)["fc1"].weight
    assert torch.equal(cut.fc1.weight, whole[sorted(ranks[:2])])
