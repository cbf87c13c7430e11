"""Which students follow from the findings (Donut-MINT, arXiv 2509.26235, section 3.4).

The paper reads its analyses and builds students by hand: from Donut-base it keeps M0, two
cross-attentions, one self-attention, and later heads of these. `plan_rule` says how findings become
plans for any decoder; this analysis applies it to what the others found here.
"""

from __future__ import annotations

from circuitsearch.core.budget import Budget, LimitSpec
from circuitsearch.core.components import sublayers
from circuitsearch.core.cost import ACCOUNTINGS, Accounting, Cost, cost, unit_costs
from circuitsearch.core.errors import ConfigError
from circuitsearch.core.findings import Answer, Cell, Chart, Finding, Series, Table, Verdict
from circuitsearch.core.plan import Plan
from circuitsearch.core.shapes import TeacherShape

from .material import Material
from .plan_rule import DerivedPlan, Evidence, Role, plans_from, roles_of
from .shared import cannot

__all__ = ["plans_analysis"]

_LAYERS, _SHARE, _PAPER = 4, "31.25%", Plan.of(["M0", "C2", "S3", "C3"])
"""Layers of the paper's decoder, and share and default reading of its first student."""

_LIMIT = LimitSpec("parameters", _SHARE)

_ASKS = (
    "What a teacher is found to do should say which parts a student needs. The paper went from one "
    "to the other by hand; here a fixed rule does, for this teacher. Its plans are a guess to "
    "start a search from: how good they are shows only after distillation."
)
_METHOD = (
    "No measurement of its own: the rule reads what the other analyses found. It keeps the two "
    "cross-attentions whose skipping hurts most, the self-attentions that carry a keyword to the "
    "query and the first feed-forward if it lower-cases. It drops a first feed-forward that does "
    "not and that matters no more than the median sub-layer, and the feed-forward behind the last "
    "cross-attention if that one's write alone does as well. The rest of the budget goes to the "
    "largest measured effect per parameter; where readers and path do not fit whole, their heads "
    "are chosen by effect. The paper does not say which sub-layers its students keep; the default "
    "reading is M0, C2, S3, C3."
)
_CLAIM = "Section 3.4"
_SAYS = "The findings lead to a student of M0, C2, S3 and C3 at 31 % of the decoder's parameters."
_PUBLISHED = "20M of 64M parameters: one feed-forward, two cross-attentions, one self-attention"
_RULE = (
    "A rule applied to means, so there is no interval. Shown: the plan for 31.25 % keeps exactly "
    "those four; partly: at least three of them; not shown: fewer. Asked of decoders with four "
    "layers where those fit that share, with measured effects of skipping"
)


def plans_analysis(material: Material) -> Finding:
    """Apply the rule to the findings `skip`, `cleaner`, `case`, `paths` and `heads`.

    Returns:
        A finding of 0 examples with `values["plans"]`, a list of share, plan, the same `plain`
        (without the replacement `alone`) and why, and `values["missing"]`, the analyses that the
        rule had to do without.
    """
    shape, evidence = material.teacher.shape, Evidence.of(material.found)
    missing = _missing(evidence)
    notes = [f"The rule had to do without: {', '.join(missing)}."] if missing else []
    try:
        plans = plans_from(shape, evidence)
    except ConfigError as error:
        plans, notes = (), [*notes, f"No plan can be priced: {error}"]
    return Finding(
        analysis="plans",
        title="Students that follow from the findings",
        asks=_ASKS,
        method=_METHOD,
        examples=0,
        tables=(_roles(roles_of(shape, evidence)), *([_plans(plans, material)] if plans else [])),
        charts=(_chart(shape, evidence),) if plans and evidence.skips else (),
        verdicts=(_verdict(shape, evidence, plans, missing),),
        notes=(*notes, _NOTE),
        values={
            "plans": [
                {"share": p.share, "plan": str(p.plan), "plain": str(p.plain), "why": p.why}
                for p in plans
            ],
            "missing": missing,
        },
    )


_NOTE = (
    "`=alone`: the cross-attention's write becomes the stream instead of being added to it; a "
    "search that does not offer this replacement takes the plan without."
)


def _missing(evidence: Evidence) -> list[str]:
    known = {
        "skip": bool(evidence.skips),
        "cleaner": evidence.alone_as_good is not None,
        "case": evidence.lowers_case is not None,
        "paths": evidence.minimal is not None,
        "heads": bool(evidence.heads),
    }
    return [name for name, there in known.items() if not there]


def _roles(roles: tuple[Role, ...]) -> Table:
    rows = tuple((str(one.sublayer), one.decision, one.why) for one in roles)
    caption = "What the findings say about single sub-layers, in the order in which they are kept"
    return Table(caption, ("sub-layer", "decision", "because"), rows)


def _plans(plans: tuple[DerivedPlan, ...], material: Material) -> Table:
    shape = material.teacher.shape
    full = {name: _spent(Plan.full(shape.decoder.layers), name, material) for name in ACCOUNTINGS}

    def row(one: DerivedPlan) -> tuple[Cell, ...]:
        spent = {name: _spent(one.plan, name, material) for name in ACCOUNTINGS}
        paper, whole = spent["paper"].scopes["decoder"], full["paper"].scopes["decoder"]
        cached = spent["cached"].scopes["decoder"].macs / full["cached"].scopes["decoder"].macs
        return (
            one.share,
            str(one.plan),
            paper.parameters,
            100 * paper.parameters / whole.parameters,
            100 * paper.macs / whole.macs,
            100 * cached,
            one.why,
        )

    head = ("share", "plan", "parameters", "of the decoder's (%)")
    macs = ("MACs without cache (%)", "MACs with cache (%)")
    caption = (
        "Plans that follow, by share of the decoder's parameters (weights, accounting `paper`)"
    )
    return Table(caption, (*head, *macs, "because"), tuple(row(one) for one in plans))


def _spent(plan: Plan, accounting: Accounting, material: Material) -> Cost:
    return cost(plan, material.teacher.shape, accounting, material.generation)


def _chart(shape: TeacherShape, evidence: Evidence) -> Chart:
    units = unit_costs(shape, "paper")
    names = tuple(one.name for one in sublayers(shape.decoder.layers))
    worth = tuple(
        evidence.skips.get(one.name, 0.0) / (spent.parameters / 1e6) for one, spent in units.items()
    )
    label = "rise of loss per million parameters (nats)"
    series = (Series("skipped", worth),)
    return Chart("Effect per parameter", "bars", names, "sub-layer", label, series)


def _verdict(
    shape: TeacherShape, evidence: Evidence, plans: tuple[DerivedPlan, ...], missing: list[str]
) -> Verdict:
    chosen = next((one for one in plans if one.share == _SHARE), None)
    why = ""
    if shape.decoder.layers != _LAYERS:
        why = f"the published plan is for {_LAYERS} layers, this decoder has {shape.decoder.layers}"
    elif not evidence.skips:
        why = "no effects of skipping sub-layers were measured, on which the rule rests"
    elif chosen is None or not Budget.resolve([_LIMIT], shape).admits(_PAPER, shape):
        why = f"the published plan does not fit {_SHARE} of this decoder's parameters"
    if why or chosen is None:
        return cannot(_CLAIM, _SAYS, _PUBLISHED, why, _RULE)
    shared = set(chosen.plan.sublayers) & set(_PAPER.sublayers)
    without = f"; without findings of {', '.join(missing)}" if missing else ""
    here = (
        f"{chosen.plan} at {_SHARE}, {len(shared)} of the published four kept; at the other "
        f"shares: {', '.join(f'{p.plan} ({p.share})' for p in plans if p != chosen)}{without}"
    )
    answer: Answer = "partly" if len(shared) >= len(_PAPER.kept) - 1 else "not shown"
    if set(chosen.plan.sublayers) == set(_PAPER.sublayers):
        answer = "shown"
    return Verdict(_CLAIM, _SAYS, _PUBLISHED, here, answer, _RULE)
