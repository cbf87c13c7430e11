"""Plans: whatever the order or form it was written in, one plan has one text and one hash."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from circuitsearch.core.components import DecoderShape, Kind, SubLayer, parse_component, sublayers
from circuitsearch.core.errors import PlanError
from circuitsearch.core.keep import REPLACEMENTS
from circuitsearch.core.plan import Keep, Plan

SHAPE = DecoderShape(
    layers=3, d_model=16, heads=4, head_dim=4, ffn=6, vocabulary=11, encoder_width=16
)


@st.composite
def keeps(draw: st.DrawFn, sublayer: SubLayer) -> Keep:
    """How much of a sub-layer is kept: all, a part, or nothing."""
    if draw(st.booleans()):
        return Keep()
    if draw(st.booleans()):
        names = [name for name, one in REPLACEMENTS.items() if sublayer.kind in one.kinds]
        return Keep(replacement=draw(st.sampled_from(names)))
    if sublayer.kind is Kind.FEED:
        return Keep(width=draw(st.integers(0, SHAPE.ffn)))
    return Keep(heads=tuple(draw(st.permutations(draw(st.sets(st.integers(0, 3)).map(sorted))))))


@st.composite
def entries(draw: st.DrawFn) -> list[tuple[SubLayer, Keep]]:
    """Entries of a plan for SHAPE, in any order."""
    chosen = draw(st.lists(st.sampled_from(sublayers(SHAPE.layers)), unique=True))
    written = [(sublayer, draw(keeps(sublayer))) for sublayer in chosen]
    tables = [sublayer for sublayer, keep in written if keep.replacement == "token"]
    return [entry for entry in written if not tables or entry[0] >= max(tables)]


def item_text(sublayer: SubLayer, keep: Keep, draw: st.DrawFn) -> str:
    """One of the ways to write an entry: heads one by one and shuffled, or as printed."""
    if keep.heads is not None and draw(st.booleans()):
        heads = draw(st.permutations(keep.heads))
        return f"{sublayer}[{', '.join(str(head) for head in heads)}]"
    return f"{sublayer}{keep}"


def item_json(sublayer: SubLayer, keep: Keep, draw: st.DrawFn) -> object:
    """One of the ways to write an entry in JSON: an object with or without nulls, or text."""
    form = draw(st.sampled_from(["text", "object", "nulls"]))
    if form == "text":
        return item_text(sublayer, keep, draw)
    values = {
        "heads": None if keep.heads is None else list(keep.heads),
        "width": keep.width,
        "replacement": keep.replacement,
    }
    given_values = {k: v for k, v in values.items() if v is not None or form == "nulls"}
    return {**given_values, "sublayer": sublayer.name}


@settings(max_examples=50)
@given(entries(), st.data())
def test_one_plan_has_one_form(written: list[tuple[SubLayer, Keep]], data: st.DataObject) -> None:
    plan = Plan(tuple(written))
    shuffled = data.draw(st.permutations(written))
    separator = data.draw(st.sampled_from([" ", ", ", ",", "\n", "  "]))
    texts = [item_text(sublayer, keep, data.draw) for sublayer, keep in shuffled]
    from_text = Plan.parse(separator.join(texts))
    items = [item_json(sublayer, keep, data.draw) for sublayer, keep in shuffled]
    from_json = Plan.from_json(json.loads(json.dumps(items)))
    assert plan == from_text == from_json == Plan(tuple(shuffled))
    assert len({str(one) for one in (plan, from_text, from_json)}) == 1
    assert len({one.hash for one in (plan, from_text, from_json)}) == 1


@settings(max_examples=50)
@given(entries())
def test_text_and_json_round_trip(written: list[tuple[SubLayer, Keep]]) -> None:
    plan = Plan(tuple(written))
    assert Plan.parse(str(plan)) == plan
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert Plan.from_json(json.loads(json.dumps(str(plan)))) == plan


def kept_units(plan: Plan) -> set[tuple[str, int]]:
    """The literal meaning of a plan: every head and neuron rank that is kept."""
    units = set()
    for sublayer, keep in plan.kept:
        if keep.replacement in ("mean", "linear", "token"):
            continue
        if sublayer.kind is Kind.FEED:
            ranks = range(SHAPE.ffn if keep.width is None else keep.width)
        else:
            ranks = range(SHAPE.heads) if keep.heads is None else keep.heads  # type: ignore[assignment]
        units.update((sublayer.name, rank) for rank in ranks)
    return units


def stand_ins(plan: Plan) -> set[tuple[str, str]]:
    """Which sub-layers are replaced, by what."""
    return {(one.name, keep.replacement) for one, keep in plan.kept if keep.replacement}


@settings(max_examples=50)
@given(entries(), entries())
def test_fitted_plans_are_equal_exactly_when_they_keep_the_same(
    one: list[tuple[SubLayer, Keep]], other: list[tuple[SubLayer, Keep]]
) -> None:
    first, second = Plan(tuple(one)), Plan(tuple(other))
    same = kept_units(first) == kept_units(second) and stand_ins(first) == stand_ins(second)
    assert (first.fitted(SHAPE) == second.fitted(SHAPE)) == same
    assert (first.fitted(SHAPE).hash == second.fitted(SHAPE).hash) == same


@settings(max_examples=50)
@given(entries())
def test_fitting_keeps_the_meaning_and_is_done_once(
    written: list[tuple[SubLayer, Keep]],
) -> None:
    plan = Plan(tuple(written))
    fitted = plan.fitted(SHAPE)
    assert kept_units(fitted) == kept_units(plan)
    assert stand_ins(fitted) == stand_ins(plan)
    assert fitted.fitted(SHAPE) == fitted
    counted = sum(plan.units(sublayer, SHAPE) for sublayer in sublayers(SHAPE.layers))
    assert counted == len(kept_units(plan))


@settings(max_examples=50)
@given(st.sets(st.integers(0, 40)))
def test_head_lists_are_as_short_as_ranges_allow(heads: set[int]) -> None:
    text = str(Keep(heads=tuple(heads)))
    gaps = sum(head + 1 not in heads for head in heads)
    assert text.count(",") == max(gaps - 1, 0)


@settings(max_examples=50)
@given(st.text(alphabet="SCM0123[]-,:= .H(xmean\n", max_size=20))
def test_any_text_is_a_plan_or_a_plan_error(text: str) -> None:
    try:
        plan = Plan.parse(text)
    except PlanError:
        return
    assert Plan.parse(str(plan)) == plan


@settings(max_examples=50)
@given(st.text(alphabet="SCM0123.H ", max_size=8))
def test_any_text_is_a_component_or_a_plan_error(text: str) -> None:
    try:
        component = parse_component(text)
    except PlanError:
        return
    assert str(component) == text
