"""The space: enumeration, counting and legality against the literal filter of all bits."""

from __future__ import annotations

import itertools
import json
import math

import pytest

from circuitsearch.core.budget import Budget, LimitSpec
from circuitsearch.core.errors import ConfigError, InfeasibleError, PlanError
from circuitsearch.core.plan import Plan
from circuitsearch.core.shapes import known_shape
from circuitsearch.search.space import Space
from circuitsearch.search.units import Choices
from tests.search_fixtures import limit, make_space, teacher_shape

BUDGETS = {
    "none": (),
    "parameters": ("31.25%",),
    "both": ("40%", limit("50%", "macs")),
    "cached total": (limit("97%", "macs", "total", "cached"), limit("60%", "parameters", "total")),
    "everything": ("100%",),
}


def literal_plans(space: Space) -> list[Plan]:
    """Every plan, one by one, judged by the budget's own arithmetic (the oracle)."""
    plans = []
    for bits in itertools.product((0, 1), repeat=len(space.units)):
        plan = Plan.of([unit.name for unit, bit in zip(space.units, bits, strict=True) if bit])
        reads = any(unit.name.startswith("C") for unit in plan.sublayers)
        if reads and space.budget.admits(plan, space.shape):
            plans.append(plan)
    return plans


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_enumeration_equals_the_literal_filter_in_canonical_order(budget: str, layers: int) -> None:
    space = make_space(*BUDGETS[budget], layers=layers)
    plans = list(space.enumerate())
    assert plans == literal_plans(space)
    assert [space.bits(plan) for plan in plans] == sorted(space.bits(plan) for plan in plans)
    assert space.count() == len(plans)


def test_donut_counts_agree_with_the_published_arithmetic() -> None:
    shape = known_shape("donut-base")
    specs = [LimitSpec("parameters", "40%"), LimitSpec("macs", "50%")]
    space = Space(shape, Budget.resolve(specs, shape))
    # donut.md 8.4: 970 of the 4,096 subsets fit; those without any cross-attention are not legal.
    silent = [
        Plan.of([*self_attentions, *feeds])
        for n in range(5)
        for m in range(5)
        for self_attentions in itertools.combinations(["S0", "S1", "S2", "S3"], n)
        for feeds in itertools.combinations(["M0", "M1", "M2", "M3"], m)
    ]
    fitting = sum(space.budget.admits(plan, shape) for plan in silent)
    assert space.count() + fitting == 970
    assert space.feasible(Plan.parse("M0 C2 S3 C3"))


def test_a_deep_decoder_is_counted_without_enumeration() -> None:
    layers = 16
    # Without limits every subset with at least one of the 16 cross-attentions is legal.
    assert make_space(layers=layers).count() == (2**layers - 1) * 2 ** (2 * layers)
    assert make_space(layers=layers).exceeds(10**12)
    # S and C cost one share of 4 d^2, M costs two; three shares buy these, counted by hand.
    few = make_space(limit(3 * 4 * 32 * 32), layers=layers)
    one_read = layers * (1 + layers + math.comb(layers, 2) + layers)
    two_reads = math.comb(layers, 2) * (1 + layers)
    assert few.count() == one_read + two_reads + math.comb(layers, 3)
    assert sum(1 for _ in few.enumerate()) == few.count()


def test_rows_are_exact_to_the_last_parameter() -> None:
    plan = Plan.parse("S0 C2 M3")
    spent = (
        make_space("100%").remaining((0,) * 12)[0]
        - make_space("100%").remaining(make_space("100%").bits(plan))[0]
    )
    assert make_space(limit(spent)).feasible(plan)
    assert not make_space(limit(spent - 1)).feasible(plan)


FORMS = {
    "counts": Choices(attention="counts", heads={"C0": (2, 0, 3, 1), "S1": (3,)}),
    "heads": Choices(attention="heads"),
    "widths": Choices(widths=(32, 96)),
    "replacements": Choices(replacements=("linear", "mean", "alone")),
    "tokens": Choices(replacements=("token", "mean")),
    "everything": Choices("heads", (64,), ("mean", "alone", "token")),
    "within": Choices("counts", (64,), ("token",), within=("M0", "S1", "C1")),
    "heads within": Choices("heads", (64,), ("mean", "token"), within=("C0", "M1")),
}


def literal_forms(space: Space, choices: Choices) -> set[Plan]:
    """Every product of what each sub-layer may be, judged by the budget's own arithmetic."""
    shape = space.shape.decoder
    options = []
    for layer in range(shape.layers):
        for kind in "SCM":
            name = f"{kind}{layer}"
            forms = ["", name]
            if kind == "M":
                forms += [f"{name}:{width}" for width in choices.widths]
            elif choices.attention == "heads":
                subsets = itertools.chain.from_iterable(
                    itertools.combinations(range(4), size) for size in (1, 2, 3)
                )
                forms += [f"{name}[{','.join(map(str, subset))}]" for subset in subsets]
            elif choices.attention == "counts":
                order = list(choices.heads.get(name, ()))
                order += [head for head in range(4) if head not in order]
                forms += [f"{name}[{','.join(map(str, order[:count]))}]" for count in (1, 2, 3)]
            forms += [
                f"{name}={one}" for one in choices.replacements if one != "alone" or kind == "C"
            ]
            options.append(forms if not choices.within or name in choices.within else [""])
    plans = set()
    for entries in itertools.product(*options):
        ends = [place for place, entry in enumerate(entries) if entry.endswith("=token")]
        if ends and any(entries[: ends[-1]]):
            continue
        plan = Plan.of([entry for entry in entries if entry])
        reads = any(
            entry.startswith("C") and not entry.endswith(("=mean", "=linear", "=token"))
            for entry in entries
        )
        if reads and space.budget.admits(plan, space.shape):
            plans.add(plan)
    return plans


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("budget", ["none", "tight"])
def test_every_form_of_units_is_enumerated_counted_and_read_back(form: str, budget: str) -> None:
    limits = ("30%", limit("45%", "parameters", "decoder", "cached")) if budget == "tight" else ()
    layers = 1 if form in ("everything", "heads") else 2
    space = make_space(*limits, layers=layers, choices=FORMS[form])
    plans = list(space.enumerate())
    assert set(plans) == literal_forms(space, FORMS[form])
    assert len(set(plans)) == len(plans) == space.count()
    assert space.exceeds(len(plans) - 1)
    assert not space.exceeds(len(plans))
    bits = [space.bits(plan) for plan in plans]
    assert bits == sorted(bits)
    assert [space.plan(one) for one in bits] == plans
    assert all(space.obeys_rules(one) for one in bits)
    for plan, one in zip(plans, bits, strict=True):
        # What the rows leave is what the budget's own arithmetic leaves.
        assert space.remaining(one) == tuple(space.budget.slack(plan, space.shape).values())
    again = Space.from_json(json.loads(json.dumps(space.to_json())))
    assert again.to_json() == space.to_json()
    assert list(again.enumerate()) == plans


def test_bits_that_break_the_rules_are_told() -> None:
    space = make_space("100%", choices=Choices("counts", (64,), ("mean",)))
    names = {name: place for place, name in enumerate(space.names)}

    def bits(*kept: str) -> list[int]:
        return [int(name in kept) for name in names]

    assert space.obeys_rules(bits("C0:1", "C0:2", "M1:64"))
    assert not space.obeys_rules(bits("C0:2"))  # the second step without the first
    assert not space.obeys_rules(bits("C0:1", "C0=mean"))


def test_choices_that_the_decoder_does_not_have_are_refused_together() -> None:
    wrong = Choices(
        "whole",
        (64, 32, 999),
        ("mean", "median", "mean"),
        {"M0": (1,), "C0": (1, 1)},
        ("S9",),
    )
    with pytest.raises(ConfigError) as caught:
        make_space("100%", choices=wrong)
    message = str(caught.value)
    for part in (
        "widths: got [64, 32, 999]",
        "'median'",
        "name each once",
        "'M0'",
        "heads of C0",
        "S9",
    ):
        assert part in message
    with pytest.raises(ConfigError, match="attention"):
        make_space("100%", choices=Choices("head"))  # type: ignore[arg-type]


def test_problems_name_the_numbers() -> None:
    space = make_space("31.25%", limit("40%", "macs"))
    assert space.problems(Plan.parse("C0")) == []
    # 64 Ki parameters in all, 31.25 % are 20 Ki; S 4 Ki, M 8 Ki each.
    silent = space.problems(Plan.parse("S0 M0 M1 M2"))
    assert silent == [
        "decoder parameters (paper): the plan needs 28,672, the limit '31.25%' allows 20,480 "
        "(8,192 too many)",
        "no cross-attention is kept, so the student cannot read the page",
    ]
    assert not space.reads_page(Plan.parse("S0 M0"))
    assert space.reads_page(Plan.full(4))
    assert not space.feasible(Plan.full(4))
    assert len(space.problems(Plan.full(4))) == 2


def test_plans_outside_the_space_are_refused() -> None:
    space = make_space("50%")
    with pytest.raises(PlanError, match=r"C3\[0-1\] is no choice of this space; its units are C3"):
        space.bits(Plan.parse("C0 C3[0-1]"))
    with pytest.raises(PlanError, match="the decoder has 4 layers"):
        space.problems(Plan.parse("C0 S4"))
    # All heads named one by one are the whole sub-layer.
    assert space.bits(Plan.parse("C3[0-3]")) == space.bits(Plan.parse("C3"))


def test_a_composition_leaves_out_the_others_and_needs_a_reader_of_the_page() -> None:
    space = make_space(choices=Choices("counts", within=("S0", "C3")))
    assert space.count() == (4 + 1) * 4  # S0 with up to four heads, C3 with one to four
    with pytest.raises(PlanError, match="S1 is no choice of this space"):
        space.bits(Plan.parse("S1 C3"))
    with pytest.raises(ConfigError, match="S0 M0, which holds no cross-attention"):
        make_space(choices=Choices(within=("S0", "M0")))
    # a study of an earlier version has no such entry
    assert "within" not in Choices().to_json()
    assert Choices.from_json(Choices().to_json()) == Choices()


def test_the_least_budget_is_accepted_and_one_below_is_refused() -> None:
    plan, costs = make_space("100%").smallest()
    assert str(plan) == "C0"
    least = costs["decoder parameters (paper)"]
    space = make_space(limit(least))
    space.check()
    assert [str(one) for one in space.enumerate()] == ["C3", "C2", "C1", "C0"]
    beyond = make_space(limit(least - 1))
    assert list(beyond.enumerate()) == []
    assert beyond.count() == 0
    with pytest.raises(InfeasibleError, match=rf"allows {least - 1:,}.*'C0' needs {least:,}"):
        beyond.check()


def test_an_impossible_budget_names_every_impossible_limit_and_no_other() -> None:
    space = make_space(limit("1k"), limit("90%", "macs"), limit("2k", "macs", "total", "cached"))
    with pytest.raises(InfeasibleError) as caught:
        space.check()
    message = str(caught.value)
    assert "decoder parameters (paper): the limit '1k' allows 1,000" in message
    assert "total macs (cached): the limit '2k' allows 2,000" in message
    assert "decoder macs" not in message
    assert "Raise these limits" in message
    assert caught.value.exit_code == 3


def test_fixed_costs_count_in_wider_scopes() -> None:
    # The smallest student in scope "total" pays for encoder and embeddings too.
    _, costs = make_space(limit("100%", "parameters", "total", "cached")).smallest()
    shape = teacher_shape()
    assert costs["total parameters (cached)"] > shape.encoder.parameters


def test_spaces_compare_by_what_the_limits_mean_not_how_they_are_written() -> None:
    share, number = make_space("31.25%"), make_space(limit(20_480))
    assert share.to_json() == number.to_json()
    assert share.to_json() != make_space(limit(20_481)).to_json()
    assert share.to_json() != make_space("31.25%", layers=3).to_json()
    assert "12 units" in repr(share)
