"""Each published rule against a literal, slow version of it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from circuitsearch.core.components import Kind, SubLayer
from circuitsearch.core.errors import ConfigError, InfeasibleError
from circuitsearch.core.plan import Keep, Plan
from circuitsearch.students import DistillRecipe, build_student, distill, rank_neurons
from circuitsearch.students.baselines import BASELINES, Case, Masks, masked
from circuitsearch.students.baselines.base import by_cost, fill, proposal, remove
from circuitsearch.students.baselines.distances import DISTANCES, PlanDistances
from circuitsearch.students.baselines.evopress import evolved
from circuitsearch.students.baselines.masks import matrices
from circuitsearch.students.baselines.minitron import statistics
from circuitsearch.students.baselines.mint import hand_made
from circuitsearch.students.baselines.puzzle import puzzle_worths
from circuitsearch.students.baselines.shortgpt import layer_influence, sublayer_influence
from circuitsearch.students.baselines.wanda import smallest_of_rows
from circuitsearch.students.features import Features, prepare_features
from circuitsearch.teacher.decoders import residual_decoder
from circuitsearch.teacher.loading import Teacher
from tests.baseline_cases import BUDGETS, make_case, small_teacher, space_of
from tests.student_fixtures import noise_pages

MODULES = {"S": "self_attn", "C": "encoder_attn"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return small_teacher(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def features(teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> Features:
    return prepare_features(teacher, noise_pages(5), tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def make(teacher: Teacher, features: Features) -> Callable[..., Case]:
    return lambda budget, **options: make_case(teacher, features, budget, **options)


def linears(teacher: Any, sublayer: SubLayer) -> dict[str, Any]:
    """The Linear modules of a sub-layer by Hugging Face's names."""
    layer = getattr(teacher, "model", teacher).decoder.model.decoder.layers[sublayer.layer]
    if sublayer.kind is Kind.FEED:
        return {"fc1": layer.fc1, "fc2": layer.fc2}
    attention = getattr(layer, MODULES[sublayer.kind.value])
    return {n: getattr(attention, n) for n in ("q_proj", "k_proj", "v_proj", "out_proj")}


def each_input(case: Case, model: Any, sublayer: SubLayer) -> dict[str, list[Tensor]]:
    """What each Linear reads, question by question without padding: [tokens, in], by hooks."""
    found: dict[str, list[Tensor]] = {}
    hooks = []
    for name, linear in linears(model, sublayer).items():

        def hook(_: Any, given: Any, __: Any, name: str = name) -> None:
            found.setdefault(name, []).append(given[0][0].detach().double())

        hooks.append(linear.register_forward_hook(hook))
    for index in case.questions:
        ask(case, model, index)
    for one in hooks:
        one.remove()
    return found


def ask(case: Case, model: Any, index: int, **options: Any) -> Any:
    """Hugging Face's forward on one question."""
    example = case.features.examples[index]
    with torch.no_grad():
        return getattr(model, "model", model).decoder(
            input_ids=torch.tensor([example.ids])[:, :-1],
            encoder_hidden_states=case.features.states([example.page]),
            use_cache=False,
            **options,
        )


def answer_logits(case: Case, model: Any, index: int) -> Tensor:
    """Logits [n, V] at the answer tokens of one question."""
    logits: Tensor = ask(case, model, index).logits[0]
    return logits[case.features.examples[index].prompt - 1 :].double()


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


def test_puzzle_scores_one_replacement_at_a_time(
    make: Callable[..., Case], teacher: Teacher
) -> None:
    full = Plan.full(4)
    case = make("fine")
    worths, _ = puzzle_worths(case, "kl")
    m1 = [full.without(SubLayer.parse("M1"))]
    m1 += [Plan((*m1[0].kept, (SubLayer.parse("M1"), Keep(width=width)))) for width in (1, 2, 3)]
    head = Plan(
        (*full.without(SubLayer.parse("C2")).kept, (SubLayer.parse("C2"), Keep(heads=(0,))))
    )
    measured = []
    for plan in (*m1, head):
        student = build_student(teacher, plan)
        each = [
            LITERAL["kl"](answer_logits(case, teacher, i), answer_logits(case, student, i))
            for i in case.questions
        ]
        measured.append(sum(each) / len(each))
    # steps that are kept add up to the score of what they replace; 1e-6: float32 sums of KL
    for width in (1, 2, 3, 4):
        total = sum(worths[f"M1:{step}"] for step in range(width, 5))
        assert total == pytest.approx(measured[width - 1], rel=1e-3, abs=1e-6)
    assert worths["C2.H1"] == pytest.approx(measured[4], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("score", ["kl", "cosine"])
def test_puzzle_is_the_best_of_all_plans_by_added_scores(
    score: str, make: Callable[..., Case], teacher: Teacher
) -> None:
    case = make("coarse")
    worths, _ = puzzle_worths(case, score)
    name = "puzzle" if score == "kl" else "puzzle-cosine"
    plan = BASELINES[name].propose(case)[0].plan

    def added(one: Plan) -> float:
        return sum(worths[s.name] for s in one.sublayers)

    best = max(map(added, space_of(teacher, *BUDGETS["coarse"]).enumerate()))
    assert added(plan) == pytest.approx(best, rel=1e-9)
    if score == "cosine":
        skipped = build_student(teacher, Plan.full(4).without(SubLayer.parse("S1")))
        turned = []
        for index in case.questions:
            x, y = (
                ask(case, one, index, output_hidden_states=True).hidden_states[-1][0]
                for one in (teacher, skipped)
            )
            turned += [1 - float(a @ b / (a.norm() * b.norm())) for a, b in zip(x, y, strict=True)]
        assert worths["S1"] == pytest.approx(sum(turned) / len(turned), rel=1e-3)


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
    cut = build_student(teacher, one.plan, ranking=one.neurons).decoder.model.decoder.layers[1]
    whole = linears(teacher, feed)["fc1"].weight
    assert torch.equal(cut.fc1.weight, whole[sorted(ranks[:2])])
