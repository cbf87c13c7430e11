"""From findings to plans: the rule behind a hand-made student, made explicit. No torch.

Donut-MINT (arXiv 2509.26235, section 3.4) turns what it finds about a teacher into a student by
hand. The rule here does it for any decoder. Sub-layers get these roles:

    reader   two cross-attentions, those whose skipping hurts most: one finds the place that the
             question names, a second fetches what stands there (Proposition 5). Without effects:
             the last two
    path     the self-attentions that carry the keyword to the query (Proposition 4)
    case     the first feed-forward, if it lower-cases (Proposition 3). Another one is left out if
             skipping it hurts no more than skipping the median sub-layer, and added like any
             sub-layer without a role if it hurts more
    cleaner  the feed-forward behind the last cross-attention: left out if that cross-attention's
             write alone does as well (Proposition 2). The cross-attention is then kept without
             what it would be added to (`=alone`), provided nothing is kept behind it

Under a share of the decoder's parameters they are kept in the order first reader, path, second
reader, case, each if it still fits. The rest of the budget is filled with other sub-layers, the
largest effect per parameter first; without effects, cross-attention before self-attention before
feed-forward, later layers first. Where readers and path do not fit whole, heads of them are kept
instead, provided effects of heads are known: the best head of each, then the largest effect per
parameter, until no head fits.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from circuitsearch.core.budget import Budget, LimitSpec
from circuitsearch.core.components import Head, Kind, SubLayer, sublayers
from circuitsearch.core.cost import sublayer_cost, unit_costs
from circuitsearch.core.findings import Finding
from circuitsearch.core.keep import WHOLE, Keep
from circuitsearch.core.plan import Plan
from circuitsearch.core.shapes import TeacherShape

from .shared import landmarks

__all__ = ["SHARES", "DerivedPlan", "Evidence", "Role", "plans_from", "roles_of"]

SHARES = ("45%", "31.25%", "18.75%", "7%")
"""Shares of the decoder's parameters; the last three are about those of published students."""


@dataclass(frozen=True)
class Evidence:
    """What the analyses found, as the rule reads it; None or empty where nothing is known.

    Attributes:
        skips: rise of the answers' loss (nats) by the name of the sub-layer that is skipped.
        heads: the same by the name of the head that is removed.
        lowers_case: whether the first feed-forward maps tokens to lower case.
        alone_as_good: whether the last cross-attention's write alone does as well as the whole.
        minimal: names of the smallest circuit from the keyword to the query; None: not known.
    """

    skips: Mapping[str, float]
    heads: Mapping[str, float]
    lowers_case: bool | None = None
    alone_as_good: bool | None = None
    minimal: tuple[str, ...] | None = None

    @classmethod
    def of(cls, found: Mapping[str, Finding]) -> Evidence:
        """Read the values of the findings `skip`, `heads`, `case`, `cleaner` and `paths`."""
        values = {name: finding.values or {} for name, finding in found.items()}
        minimal = values.get("paths", {}).get("minimal")
        return cls(
            skips=values.get("skip", {}).get("effects") or {},
            heads=values.get("heads", {}).get("effects") or {},
            lowers_case=values.get("case", {}).get("lowers_case"),
            alone_as_good=values.get("cleaner", {}).get("alone_as_good"),
            minimal=None if minimal is None else tuple(minimal),
        )


@dataclass(frozen=True)
class Role:
    """What the rule makes of one sub-layer.

    Attributes:
        sublayer: which.
        decision: to keep it, to leave it out of every plan, or to add it by its effect.
        attends: whether it is a reader or on the path, of which heads are kept at small shares.
        why: the reason, in words.
    """

    sublayer: SubLayer
    decision: Literal["keep", "leave out", "add by effect"]
    attends: bool
    why: str


@dataclass(frozen=True)
class DerivedPlan:
    """A plan that follows from findings.

    Attributes:
        share: of the decoder's parameters, e.g. `31.25%`.
        plan: the plan.
        plain: the same without a replacement, for spaces that offer none.
        why: what was kept for which reason, in words.
    """

    share: str
    plan: Plan
    plain: Plan
    why: str


def plans_from(
    shape: TeacherShape, evidence: Evidence, shares: Iterable[str] = SHARES
) -> tuple[DerivedPlan, ...]:
    """Return one plan per share; shares that not even one head of a reader meets are left out.

    Args:
        shape: the teacher's sizes.
        evidence: what was found.
        shares: of the decoder's parameters, weights alone (`core.cost`, accounting `paper`).

    Raises:
        ConfigError: the decoder cannot be counted, or a share is none.
    """
    roles = roles_of(shape, evidence)
    found = []
    for share in shares:
        limit = Budget.resolve([LimitSpec("parameters", share)], shape).limits[0].maximum
        made = _whole(shape, evidence, roles, limit) or _heads(shape, evidence, roles, limit)
        if made is not None:
            plain, why = made
            plan = _alone(shape, evidence, plain)
            why += [f"{plan.sublayers[-1]} without what it is added to"] if plan != plain else []
            found.append(DerivedPlan(share, plan, plain, "; ".join(why)))
    return tuple(found)


def roles_of(shape: TeacherShape, evidence: Evidence) -> tuple[Role, ...]:
    """Return the sub-layers that have a role, in the order in which they are kept."""
    everything = sublayers(shape.decoder.layers)
    readers, path = _readers(everything, evidence), _path(everything, evidence)
    roles = [*readers[:1], *path, *readers[1:]]
    marks = landmarks(everything)
    if marks.feed_behind is not None and evidence.alone_as_good:
        why = f"{marks.last_cross}'s write alone does as well as the whole"
        roles.append(Role(marks.feed_behind, "leave out", False, why))
    if marks.first_feed is not None and all(one.sublayer != marks.first_feed for one in roles):
        roles += _case(marks.first_feed, evidence)
    return tuple(roles)


def _readers(everything: Sequence[SubLayer], evidence: Evidence) -> list[Role]:
    crosses = [one for one in reversed(everything) if one.kind is Kind.CROSS]
    if not evidence.skips:
        return [Role(one, "keep", True, "among the last to read the page") for one in crosses[:2]]
    # sorting is stable, so of equal effects the later one is taken
    crosses.sort(key=lambda one: -evidence.skips.get(one.name, 0.0))
    words = ("of cross-attentions, skipping it hurts most", "second to it")
    return [
        Role(one, "keep", True, f"{word}{_nats(one, evidence)}")
        for one, word in zip(crosses, words, strict=False)
    ]


def _path(everything: Sequence[SubLayer], evidence: Evidence) -> list[Role]:
    named = evidence.minimal or ()
    path = [one for one in reversed(everything) if one.kind is Kind.SELF and one.name in named]
    path.sort(key=lambda one: -evidence.skips.get(one.name, 0.0))
    return [Role(one, "keep", True, "carries the keyword to the query") for one in path]


def _case(first: SubLayer, evidence: Evidence) -> list[Role]:
    """Return the first feed-forward's role; none where nothing is known of it."""
    if evidence.lowers_case:
        return [Role(first, "keep", False, "maps tokens to lower case")]
    if first.name in evidence.skips:
        hurts = evidence.skips[first.name] > statistics.median(evidence.skips.values())
        word = "more" if hurts else "no more"
        why = f"skipping it hurts {word} than the median sub-layer{_nats(first, evidence)}"
        return [Role(first, "add by effect" if hurts else "leave out", False, why)]
    if evidence.lowers_case is None:
        return []
    return [Role(first, "leave out", False, "does not map tokens to lower case")]


def _nats(sublayer: SubLayer, evidence: Evidence) -> str:
    effect = evidence.skips.get(sublayer.name)
    return "" if effect is None else f" ({effect:.2f} nats)"


Made = tuple[Plan, list[str]]


def _whole(
    shape: TeacherShape, evidence: Evidence, roles: Sequence[Role], limit: int
) -> Made | None:
    """Return a plan of whole sub-layers, or None where heads are to be kept instead."""
    costs = {one: spent.parameters for one, spent in unit_costs(shape, "paper").items()}
    least = sum(costs[role.sublayer] for role in roles if role.attends)
    if costs[roles[0].sublayer] > limit or (least > limit and evidence.heads):
        return None
    kept, why, added = [], [], []
    for role in roles:
        one = role.sublayer
        if role.decision == "leave out":
            why.append(f"{one} left out: {role.why}")
        elif role.decision == "keep" and costs[one] <= limit:
            why.append(f"{one}: {role.why}")
            kept.append(one)
            limit -= costs[one]
        elif role.decision == "keep":
            why.append(f"{one} does not fit")
    settled = {role.sublayer for role in roles if role.decision != "add by effect"}
    for one in _rest((one for one in costs if one not in settled), evidence, costs):
        if costs[one] <= limit:
            added.append(one)
            limit -= costs[one]
    by = "by effect per parameter" if evidence.skips else "later layers first, C before S before M"
    why += [f"{', '.join(map(str, added))} added {by}"] if added else []
    return Plan(tuple((one, WHOLE) for one in (*kept, *added))), why


def _rest(
    others: Iterable[SubLayer], evidence: Evidence, costs: Mapping[SubLayer, int]
) -> list[SubLayer]:
    """Return sub-layers without a role, the one to add first in front."""
    if evidence.skips:
        return sorted(
            others, key=lambda one: (-evidence.skips.get(one.name, 0.0) / costs[one], one)
        )
    kinds = (Kind.CROSS, Kind.SELF, Kind.FEED)
    return sorted(others, key=lambda one: (kinds.index(one.kind), -one.layer))


def _heads(
    shape: TeacherShape, evidence: Evidence, roles: Sequence[Role], limit: int
) -> Made | None:
    """Return a plan of heads of readers and path; None where not one head of a reader fits."""
    owners = [role.sublayer for role in roles if role.attends]
    prices = {one: sublayer_cost(one.kind, 1, shape, "paper").parameters for one in owners}
    if not evidence.heads or prices[owners[0]] > limit:
        return None

    def worth(head: Head) -> tuple[float, Head]:
        return -evidence.heads.get(head.name, 0.0) / prices[head.sublayer], head

    ranked = [
        sorted((Head(one, index) for index in range(shape.decoder.heads)), key=worth)
        for one in owners
    ]
    firsts = [heads[0] for heads in ranked]
    others = sorted((head for heads in ranked for head in heads[1:]), key=worth)
    kept: dict[SubLayer, list[int]] = {}
    for head in (*firsts, *others):
        if prices[head.sublayer] <= limit:
            kept.setdefault(head.sublayer, []).append(head.index)
            limit -= prices[head.sublayer]
    plan = Plan(tuple((one, Keep(heads=tuple(indices))) for one, indices in kept.items()))
    why = [f"{one} in part: {role.why}" for role in roles if (one := role.sublayer) in kept]
    why.append(f"{sum(map(len, kept.values()))} heads by effect per parameter, one of each first")
    return plan.fitted(shape.decoder), why


def _alone(shape: TeacherShape, evidence: Evidence, plan: Plan) -> Plan:
    """Return the plan with the last cross-attention on its own, where that was found to do."""
    last = landmarks(sublayers(shape.decoder.layers)).last_cross
    whole = last is not None and plan.keep(last) == WHOLE
    if last is None or not whole or not evidence.alone_as_good or plan.sublayers[-1] != last:
        return plan
    return Plan((*plan.without(last).kept, (last, Keep(replacement="alone"))))
