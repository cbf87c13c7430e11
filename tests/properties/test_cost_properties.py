"""Costs: equal to a literal count, additive, never raised by removing a component."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitsearch.core.budget import Budget, LimitSpec
from circuitsearch.core.components import (
    DecoderShape,
    EncoderShape,
    Kind,
    SubLayer,
    TeacherShape,
    sublayers,
)
from circuitsearch.core.cost import (
    ACCOUNTINGS,
    QUANTITIES,
    SCOPES,
    Accounting,
    Cost,
    Generation,
    ScopeCost,
    cost,
    entry_cost,
    unit_costs,
)
from circuitsearch.core.keep import REPLACEMENTS
from circuitsearch.core.plan import Keep, Plan

small = st.integers(1, 9)
accountings = st.sampled_from(ACCOUNTINGS)
generations = st.builds(Generation, prompt=small, passes=small)
shapes = st.builds(
    TeacherShape,
    name=st.just("tiny"),
    decoder=st.builds(
        DecoderShape,
        layers=st.integers(1, 3),
        d_model=small,
        heads=st.integers(1, 4),
        head_dim=small,
        ffn=small,
        vocabulary=small,
        encoder_width=small,
        positions=st.integers(0, 9),
    ),
    encoder=st.builds(EncoderShape, parameters=small, macs=small, tokens=small, width=small),
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Plan, TeacherShape]:
    """A shape and a plan that fits it."""
    shape = draw(shapes)
    entries = []
    for sublayer in draw(st.sets(st.sampled_from(sublayers(shape.decoder.layers)))):
        if draw(st.booleans()):
            keep = Keep()
        elif draw(st.booleans()):
            names = [name for name, one in REPLACEMENTS.items() if sublayer.kind in one.kinds]
            keep = Keep(replacement=draw(st.sampled_from(names)))
        elif sublayer.kind is Kind.FEED:
            keep = Keep(width=draw(st.integers(0, shape.decoder.ffn)))
        else:
            keep = Keep(heads=tuple(draw(st.sets(st.integers(0, shape.decoder.heads - 1)))))
        entries.append((sublayer, keep))
    tables = [sublayer for sublayer, keep in entries if keep.replacement == "token"]
    entries = [entry for entry in entries if not tables or entry[0] >= max(tables)]
    return Plan(tuple(entries)), shape


def product(rows: int, inner: int, columns: int) -> int:
    """Multiply-adds of a matrix product."""
    return rows * inner * columns


def literal_macs(plan: Plan, shape: TeacherShape, cached: bool, generation: Generation) -> int:
    """Count decoder-layer MACs pass by pass and matrix product by matrix product (the oracle)."""
    d, e, h = shape.decoder.d_model, shape.decoder.encoder_width, shape.decoder.head_dim
    pages, total = shape.encoder.tokens, 0
    for step in range(generation.passes):
        context = generation.prompt + step
        rows = context if step == 0 or not cached else 1
        for sublayer, keep in plan.kept:
            units = plan.units(sublayer, shape.decoder)
            if keep.replacement == "token":
                continue  # looked up with the embedding
            if keep.replacement in ("mean", "linear"):
                total += product(rows, d, d) if keep.replacement == "linear" else 0
                continue
            if sublayer.kind is Kind.FEED:
                total += product(rows, d, units) + product(rows, units, d)
                continue
            for _ in range(units):
                total += product(rows, d, h) + product(rows, h, d)  # q and out
                keys = context if sublayer.kind is Kind.SELF else pages
                total += product(rows, h, keys) + product(rows, keys, h)
                if sublayer.kind is Kind.SELF:
                    total += 2 * product(rows, d, h)
                elif step == 0 or not cached:
                    total += 2 * product(pages, e, h)
    return total


@settings(max_examples=50)
@given(cases(), accountings, generations)
def test_macs_equal_the_literal_count(
    case: tuple[Plan, TeacherShape], accounting: Accounting, generation: Generation
) -> None:
    plan, shape = case
    spent = cost(plan, shape, accounting, generation)
    literal = literal_macs(plan, shape, accounting == "cached", generation)
    assert spent.scopes["decoder"].macs == literal


def literal_parameters(plan: Plan, shape: TeacherShape, exact: bool) -> int:
    """Count decoder-layer parameters tensor by tensor; biases and LayerNorms only if `exact`.

    What is fitted in the place of weights counts always, its bias too.
    """
    d, e = shape.decoder.d_model, shape.decoder.encoder_width
    total = 0
    for sublayer, keep in plan.kept:
        units = plan.units(sublayer, shape.decoder)
        if keep.replacement == "token":
            continue
        if keep.replacement in ("mean", "linear"):
            total += d if keep.replacement == "mean" else d * d + d + exact * 2 * d
            continue
        if sublayer.kind is Kind.FEED:
            linears = [(d, units), (units, d)]
        else:
            w, read = units * shape.decoder.head_dim, d if sublayer.kind is Kind.SELF else e
            linears = [(d, w), (read, w), (read, w), (w, d)]
        total += sum(inputs * outputs + exact * outputs for inputs, outputs in linears)
        total += exact * 2 * d
    return total


@settings(max_examples=50)
@given(cases(), accountings)
def test_parameters_equal_the_literal_count(
    case: tuple[Plan, TeacherShape], accounting: Accounting
) -> None:
    plan, shape = case
    spent = cost(plan, shape, accounting)
    literal = literal_parameters(plan, shape, accounting == "cached")
    assert spent.scopes["decoder"].parameters == literal


def removals(plan: Plan, shape: TeacherShape) -> list[Plan]:
    """All plans with one sub-layer, one head or one neuron less."""
    smaller = [plan.without(sublayer) for sublayer in plan.sublayers]
    for sublayer in plan.sublayers:
        units = plan.units(sublayer, shape.decoder)
        rest = plan.without(sublayer).kept
        if units == 0:  # replaced, there is no smaller form of it
            continue
        if sublayer.kind is Kind.FEED:
            smaller.append(Plan((*rest, (sublayer, Keep(width=units - 1)))))
            continue
        keep = plan.keep(sublayer)
        heads = tuple(range(units)) if keep is None or keep.heads is None else keep.heads
        for index in range(units):
            fewer = heads[:index] + heads[index + 1 :]
            smaller.append(Plan((*rest, (sublayer, Keep(heads=fewer)))))
    return smaller


MEANS = {(sublayer, Keep(replacement="mean")) for sublayer in sublayers(3)}
TABLES = {(sublayer, Keep(replacement="token")) for sublayer in sublayers(3)}


def quantities(spent: Cost) -> list[int]:
    """Both quantities of every scope."""
    return [getattr(spent.scopes[scope], name) for scope in SCOPES for name in QUANTITIES]


@settings(max_examples=40)
@given(cases(), accountings, generations)
def test_removing_a_component_never_raises_any_cost(
    case: tuple[Plan, TeacherShape], accounting: Accounting, generation: Generation
) -> None:
    plan, shape = case
    before = quantities(cost(plan, shape, accounting, generation))
    for smaller in removals(plan, shape):
        after = quantities(cost(smaller, shape, accounting, generation))
        gone = set(plan.kept) - set(smaller.kept)
        constant = gone <= MEANS
        if gone <= TABLES:
            assert after == before
            continue
        # Strictly less: every component has weights and, but for a constant, runs at every pass.
        assert all(new < old for new, old in zip(after[::2], before[::2], strict=True))
        assert all(
            new == old if constant else new < old
            for new, old in zip(after[1::2], before[1::2], strict=True)
        )


@settings(max_examples=40)
@given(cases(), accountings, generations)
def test_costs_add_up(
    case: tuple[Plan, TeacherShape], accounting: Accounting, generation: Generation
) -> None:
    plan, shape = case
    spent = cost(plan, shape, accounting, generation)
    alone = [
        cost(Plan((entry,)), shape, accounting, generation).scopes["decoder"] for entry in plan.kept
    ]
    assert list(spent.sublayers.values()) == alone
    assert alone == [entry_cost(*entry, shape, accounting, generation) for entry in plan.kept]
    decoder = sum(alone, ScopeCost(0, 0))
    assert spent.scopes["decoder"] == decoder
    embedded = decoder + spent.fixed["embeddings"] + spent.fixed["unembedding"]
    assert spent.scopes["decoder+embeddings"] == embedded
    assert spent.scopes["total"] == embedded + spent.fixed["encoder"]
    assert Cost.from_json(spent.to_json()) == spent


@settings(max_examples=30)
@given(shapes, accountings, generations)
def test_unit_costs_are_those_of_whole_sublayers(
    shape: TeacherShape, accounting: Accounting, generation: Generation
) -> None:
    for sublayer, unit in unit_costs(shape, accounting, generation).items():
        whole = cost(Plan.of([sublayer]), shape, accounting, generation)
        assert whole.scopes["decoder"] == unit


@settings(max_examples=30)
@given(cases(), generations)
def test_which_heads_are_kept_does_not_matter(
    case: tuple[Plan, TeacherShape], generation: Generation
) -> None:
    plan, shape = case
    first = Plan(
        tuple(
            (one, keep if keep.heads is None else Keep(heads=tuple(range(len(keep.heads)))))
            for one, keep in plan.kept
        )
    )
    for accounting in ACCOUNTINGS:
        one, other = (cost(p, shape, accounting, generation) for p in (plan, first))
        assert one.scopes == other.scopes


@settings(max_examples=30)
@given(cases(), generations)
def test_the_cached_accounting_never_costs_more_macs(
    case: tuple[Plan, TeacherShape], generation: Generation
) -> None:
    plan, shape = case
    paper, cached = (cost(plan, shape, one, generation) for one in ACCOUNTINGS)
    assert all(cached.scopes[scope].macs <= paper.scopes[scope].macs for scope in SCOPES)


specs = st.lists(
    st.builds(
        LimitSpec,
        quantity=st.sampled_from(QUANTITIES),
        limit=st.one_of(
            st.integers(0, 20_000),
            st.integers(0, 10_000).map(lambda share: f"{share // 100}.{share % 100:02}%"),
        ),
        scope=st.sampled_from(SCOPES),
        accounting=accountings,
    ),
    unique_by=lambda spec: spec.name,
    max_size=4,
)


@settings(max_examples=50)
@given(cases(), generations, specs)
def test_slack_is_what_the_cost_leaves(
    case: tuple[Plan, TeacherShape], generation: Generation, limits: list[LimitSpec]
) -> None:
    plan, shape = case
    budget = Budget.resolve(limits, shape, generation)
    slack = budget.slack(plan, shape)
    assert list(slack) == [spec.name for spec in limits]
    for spec, limit in zip(limits, budget.limits, strict=True):
        spent = cost(plan, shape, spec.accounting, generation).to_json()
        full = cost(Plan.full(shape.decoder.layers), shape, spec.accounting, generation).to_json()
        used = spent["scopes"][spec.scope][spec.quantity]
        assert slack[spec.name] == limit.maximum - used
        if isinstance(spec.limit, str):
            # The share in hundredths of a percent: the literal floor in integers.
            hundredths = int(spec.limit.rstrip("%").replace(".", ""))
            assert limit.maximum == full["scopes"][spec.scope][spec.quantity] * hundredths // 10_000
        else:
            assert limit.maximum == spec.limit
    assert budget.admits(plan, shape) == all(left >= 0 for left in slack.values())


@settings(max_examples=30)
@given(cases(), generations, specs)
def test_whatever_is_removed_from_an_admitted_plan_it_stays_admitted(
    case: tuple[Plan, TeacherShape], generation: Generation, limits: list[LimitSpec]
) -> None:
    plan, shape = case
    budget = Budget.resolve(limits, shape, generation)
    if budget.admits(plan, shape):
        assert all(budget.admits(smaller, shape) for smaller in removals(plan, shape))


@pytest.mark.parametrize("field", ["vocabulary", "positions", "layers"])
def test_the_decoder_scope_ignores_embeddings_and_skipped_layers(field: str) -> None:
    decoder = DecoderShape(2, 8, 2, 4, 6, 11, 8, 5)
    shape = TeacherShape("tiny", decoder, EncoderShape(7, 7, 3, 8))
    larger = replace(shape, decoder=replace(decoder, **{field: getattr(decoder, field) + 1}))
    plan = Plan.of([SubLayer(0), SubLayer(4), SubLayer(5)])
    for accounting in ACCOUNTINGS:
        one, other = (cost(plan, each, accounting) for each in (shape, larger))
        assert one.scopes["decoder"] == other.scopes["decoder"]
