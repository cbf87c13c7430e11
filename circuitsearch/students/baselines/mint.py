"""Donut-MINT's own hand-made plans (arXiv 2509.26235, Tables 1 and 2).

The paper names no sub-layers of its students. Its parameters and multiply-adds leave M0, one
self-attention S_b, and two cross-attentions, of which C3 is named as the crucial one:

    mint31  M0 C_a S_b C3 for a < b <= 3: `M0 C2 S3 C3` and its five siblings
    mint18  the same without M0
    mint7   mint18 with 9 cross heads and 9 self heads of 16

The six heads of C3 that the paper names (4, 7-11) stay in `mint7`. Which three of C_a and nine of
S_b do is not said; its second stage keeps sharp attention, cross heads of high variance and self
heads of low entropy (`discovery.lens`, default reading). Teachers of another number of heads keep
the same shares: 18/16 of a sub-layer's heads in all, of them 9/16 in S_b and 6/16 in C3, each
rounded half up, and the rest in C_a; C3's heads are then chosen by variance as well. A budget gets
the plans of the first kind that keeps it; a decoder of less than four layers has none.
"""

from __future__ import annotations

from collections.abc import Mapping

from circuitsearch.core.components import Head, SubLayer
from circuitsearch.core.plan import Keep, Plan
from circuitsearch.discovery.lens.heads import head_statistics

from .base import Case, Proposal

__all__ = ["SIBLINGS", "hand_made", "mint"]

_PAPER_HEADS = 16
_NAMED = (4, 7, 8, 9, 10, 11)
"""Heads of C3 that retrieve the token (section 4.2)."""
_LAYERS = 4

SIBLINGS: tuple[tuple[int, int], ...] = ((2, 3), (1, 3), (0, 3), (1, 2), (0, 2), (0, 1))
"""Layers (a, b) of C_a and S_b; the default of Donut-MINT first."""


def mint(case: Case) -> tuple[Proposal, ...]:
    """Propose the plans of the largest kind that keeps the budget; none may."""
    shape = case.teacher.shape.decoder
    if shape.layers < _LAYERS:
        return ()
    plans = hand_made()
    for kind in ("mint31", "mint18"):
        found = [
            Proposal(plan.fitted(shape), label)
            for label, plan in plans.items()
            if label.startswith(kind) and case.fits(plan)
        ]
        if found:
            return tuple(found)
    return tuple(_with_heads(case))


def hand_made() -> dict[str, Plan]:
    """Return the plans of whole sub-layers by label, `mint31` first."""
    found = {}
    for name, first in (("mint31", "M0 "), ("mint18", "")):
        for cross, own in SIBLINGS:
            found[f"{name} C{cross} S{own}"] = Plan.parse(f"{first}C{cross} S{own} C3")
    return found


def _with_heads(case: Case) -> list[Proposal]:
    """Return the plans of `mint7` that keep the budget."""
    shape = case.teacher.shape.decoder
    nine, six = _share(9, shape.heads), _share(6, shape.heads)
    three = max(1, _share(18, shape.heads) - nine - six)
    note = (
        f"heads scaled from 16 to {shape.heads}: {six} of C3, {three} of the other "
        f"cross-attention, {nine} of the self-attention"
    )
    in_order = {s: tuple(range(shape.heads)) for s in case.teacher.decoder.sublayers}
    sizes = (nine, six, three)
    if not any(case.fits(_plan(pair, sizes, in_order)) for pair in SIBLINGS):
        return []
    table = head_statistics(case.teacher.decoder, case.sample)
    orders: dict[SubLayer, tuple[int, ...]] = {}
    for name in (*table.keep_order("S"), *table.keep_order("C")):
        head = Head.parse(name)
        orders[head.sublayer] = (*orders.get(head.sublayer, ()), head.index)
    if shape.heads == _PAPER_HEADS:
        orders[SubLayer.parse("C3")] = _NAMED
    found: list[Proposal] = []
    for cross, own in SIBLINGS:
        plan = _plan((cross, own), sizes, orders)
        if case.fits(plan):
            notes = () if shape.heads == _PAPER_HEADS else (note,)
            label = f"mint7 C{cross} S{own}"
            passes = 0 if found else len(case.questions)  # all go by the same statistics
            found.append(Proposal(plan.fitted(shape), label, notes=notes, passes=passes))
    return found


def _plan(
    pair: tuple[int, int], sizes: tuple[int, int, int], orders: Mapping[SubLayer, tuple[int, ...]]
) -> Plan:
    """Return the plan that keeps the first heads of three attentions."""
    nine, six, three = sizes
    cross, own = pair
    kept = {f"C{cross}": three, f"S{own}": nine, "C3": six}
    entries = []
    for name, count in kept.items():
        sublayer = SubLayer.parse(name)
        entries.append((sublayer, Keep(heads=orders[sublayer][:count])))
    return Plan(tuple(entries))


def _share(count: int, heads: int) -> int:
    """Return `count` of 16 heads as heads of another number, half up and at least one."""
    return max(1, (2 * count * heads + _PAPER_HEADS) // (2 * _PAPER_HEADS))
