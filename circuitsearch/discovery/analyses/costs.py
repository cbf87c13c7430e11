"""What each part of the teacher costs (Donut-MINT, arXiv 2509.26235, Table 1).

The table lists parameters and multiply-adds (MACs) of Donut-base by sub-layer, from which follows
where pruning pays. It is worked out here for the teacher at hand and, to check the arithmetic, for
Donut-base itself, from shapes alone; `core.cost` holds the formulas of both accountings.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import NamedTuple

from circuitsearch.core.components import Kind
from circuitsearch.core.cost import ACCOUNTINGS, Accounting, Cost, Generation, cost
from circuitsearch.core.errors import ConfigError
from circuitsearch.core.findings import Answer, Cell, Chart, Finding, Series, Table, Verdict
from circuitsearch.core.plan import Plan
from circuitsearch.core.shapes import TeacherShape, known_shape

from .material import Material
from .shared import cannot

__all__ = ["costs_analysis"]

_CLOSE = 0.02
"""Relative difference up to which a published figure counts as reproduced but for rounding."""

_MI, _M, _G, _T = 2**20, 10**6, 10**9, 10**12

_KINDS = {
    Kind.SELF: "self-attention",
    Kind.CROSS: "cross-attention",
    Kind.FEED: "feed-forward",
}

_ASKS = (
    "Which parts of the model hold its numbers, and which do its arithmetic? A student is only "
    "smaller or faster where something dear is left out, and the two need not be the same: a "
    "cross-attention projects every patch of the page, so it may hold few numbers and still do "
    "most of the work."
)
_SAYS = {
    "Table 1": "Parameters and MACs of Donut-base's parts follow from its shape.",
    "Table 1, bottleneck": "Cross-attention does most of the decoder's arithmetic.",
}
_RULES = {
    "Table 1": (
        "exact integers, no interval. Shown: each of our figures gives the published one when "
        f"rounded to as many digits; partly: each is within {_CLOSE:.0%} of it; not shown otherwise"
    ),
    "Table 1, bottleneck": (
        "exact integers, no interval. Shown: without a cache, the cross-attentions together take "
        "more than half of the decoder's MACs; not shown otherwise"
    ),
}
_PAPER_BOTTLENECK = "4 x 366.11 G of 1.57 T, 93 %"


class _Figure(NamedTuple):
    """One published figure and ours, both in the published unit."""

    part: str
    quantity: str
    published: str
    unit: str
    ours: float

    @property
    def equal(self) -> bool:
        """Whether ours gives the published one when rounded to its digits."""
        published = Decimal(self.published)
        return Decimal(self.ours).quantize(published) == published

    @property
    def off(self) -> float:
        """Relative difference; a published zero allows none."""
        published = float(self.published)
        return self.ours / published - 1 if published else float(self.ours != 0)


def costs_analysis(material: Material) -> Finding:
    """Count the teacher's parts, and Donut-base's against the published table.

    Returns:
        A finding of 0 examples. `values` has the published figures beside ours, and the share of
        the teacher's decoder MACs that its cross-attentions take (None where the teacher cannot be
        counted).
    """
    figures = _published(cost(Plan.full(4), known_shape("donut-base"), "paper", Generation()))
    shape, notes = material.teacher.shape, [_UNITS]
    try:
        costs = {name: _whole(shape, name, material.generation) for name in ACCOUNTINGS}
    except ConfigError as error:
        costs = {}
        notes.append(f"The teacher at hand is not in the tables: {error}")
    here = (_teacher_table(costs),) if costs else ()
    return Finding(
        analysis="costs",
        title="What each part costs",
        asks=_ASKS,
        method=_method(material.generation),
        examples=0,
        tables=(*here, _donut_table(figures)),
        charts=(_chart(costs),) if costs else (),
        verdicts=(_table_verdict(figures), _bottleneck_verdict(costs)),
        notes=tuple(notes),
        values={
            "donut-base": [
                {**figure._asdict(), "equal": figure.equal, "off": figure.off} for figure in figures
            ],
            "cross_share": _share(costs["paper"], Kind.CROSS, "macs") if costs else None,
        },
    )


_UNITS = (
    "A MAC is one multiplication with its addition, two floating-point operations; the paper's "
    "FLOPs are MACs. Its M means 2^20 for parts of the decoder and 10^6 elsewhere; its total is "
    "the sum of both; the output projection, which is the embedding again, is counted twice."
)


def _method(generation: Generation) -> str:
    return (
        "Counted from shapes; nothing is run. Two accountings: `paper` generates without a cache, "
        "so every pass reads the whole sequence and projects all encoder tokens again, and counts "
        "weights only; `cached` is what deployment pays, biases and norms included. MACs of the "
        f"teacher at hand are for {generation.prompt} prompt tokens and {generation.passes} "
        "decoder passes, those of Donut-base for 42 and 34, which reproduce the published ones."
    )


def _whole(shape: TeacherShape, accounting: Accounting, generation: Generation) -> Cost:
    return cost(Plan.full(shape.decoder.layers), shape, accounting, generation)


def _published(spent: Cost) -> list[_Figure]:
    """Return Table 1, figure by figure."""
    rows = (
        ("Donut-base", spent.scopes["total"], ("257", "M", _M), ("2.99", "T", _T)),
        ("encoder", spent.fixed["encoder"], ("75", "M", _M), ("1.30", "T", _T)),
        ("embedding", spent.fixed["embeddings"], ("59", "M", _M), ("0", "", 1)),
        ("unembedding", spent.fixed["unembedding"], ("59", "M", _M), ("117.17", "G", _G)),
        ("decoder", spent.scopes["decoder"], ("64", "Mi", _MI), ("1.57", "T", _T)),
        ("self-attention", spent.sublayers["S0"], ("4", "Mi", _MI), ("8.58", "G", _G)),
        ("cross-attention", spent.sublayers["C0"], ("4", "Mi", _MI), ("366.11", "G", _G)),
        ("feed-forward", spent.sublayers["M0"], ("8", "Mi", _MI), ("16.69", "G", _G)),
    )
    return [
        _Figure(part, quantity, text, unit, amount / size)
        for part, one, parameters, macs in rows
        for quantity, amount, (text, unit, size) in (
            ("parameters", one.parameters, parameters),
            ("MACs", one.macs, macs),
        )
    ]


def _donut_table(figures: list[_Figure]) -> Table:
    rows = tuple(
        (
            f"{one.part}, {one.quantity}",
            f"{one.published} {one.unit}".strip(),
            f"{one.ours:.4f} {one.unit}".strip(),
            round(100 * one.off, 3),
            "yes" if one.equal else "no",
        )
        for one in figures
    )
    head = ("part", "published", "ours", "difference (%)", "equal when rounded")
    return Table("Donut-base: published figures and ours, accounting `paper`", head, rows)


def _teacher_table(costs: Mapping[Accounting, Cost]) -> Table:
    """Return one row per part of the teacher, parameters and MACs in both accountings."""
    paper, cached = costs["paper"], costs["cached"]

    def row(name: str, pick: str, where: str) -> tuple[Cell, ...]:
        one, other = getattr(paper, where)[pick], getattr(cached, where)[pick]
        return name, one.parameters, other.parameters, one.macs, other.macs

    rows = [row(f"each {word}", f"{kind}0", "sublayers") for kind, word in _KINDS.items()]
    rows += [row(scope, scope, "scopes") for scope in paper.scopes]
    rows += [row(part, part, "fixed") for part in paper.fixed]
    counted = [f"{what} ({name})" for what in ("parameters", "MACs") for name in costs]
    return Table("This teacher: parameters, and MACs per answer", ("part", *counted), tuple(rows))


def _share(spent: Cost, kind: Kind, quantity: str) -> float:
    """Return the share of a kind of sub-layer in the decoder."""
    own = [getattr(one, quantity) for name, one in spent.sublayers.items() if name[0] == kind]
    return float(sum(own) / getattr(spent.scopes["decoder"], quantity))


def _chart(costs: Mapping[Accounting, Cost]) -> Chart:
    bars: tuple[tuple[str, Accounting, str], ...] = (
        ("parameters", "paper", "parameters"),
        ("MACs, paper", "paper", "macs"),
        ("MACs, cached", "cached", "macs"),
    )
    return Chart(
        "Share of the decoder by kind of sub-layer",
        "bars",
        tuple(_KINDS.values()),
        "all sub-layers of a kind",
        "share of the decoder (%)",
        tuple(
            Series(name, tuple(100 * _share(costs[counting], kind, what) for kind in _KINDS))
            for name, counting, what in bars
        ),
    )


def _table_verdict(figures: list[_Figure]) -> Verdict:
    equal = sum(one.equal for one in figures)
    worst = max(figures, key=lambda one: abs(one.off))
    answer: Answer = "partly" if abs(worst.off) <= _CLOSE else "not shown"
    return Verdict(
        "Table 1",
        _SAYS["Table 1"],
        "257M parameters, 2.99T; decoder 64M, 1.57T; C 4M, 366.11G; S 4M, 8.58G; M 8M, 16.69G",
        f"Donut-base by our formulas: {equal} of {len(figures)} figures equal when rounded; the "
        f"farthest, {worst.quantity} of {worst.part}, is {abs(worst.off):.1%} off",
        "shown" if equal == len(figures) else answer,
        _RULES["Table 1"],
    )


def _bottleneck_verdict(costs: Mapping[Accounting, Cost]) -> Verdict:
    claim = "Table 1, bottleneck"
    if not costs:
        why = "the formulas do not fit this decoder; see the notes"
        return cannot(claim, _SAYS[claim], _PAPER_BOTTLENECK, why, _RULES[claim])
    without, cached = (_share(costs[name], Kind.CROSS, "macs") for name in ("paper", "cached"))
    numbers = _share(costs["paper"], Kind.CROSS, "parameters")
    return Verdict(
        claim,
        _SAYS[claim],
        _PAPER_BOTTLENECK,
        f"{without:.1%} of the decoder's MACs without a cache ({cached:.1%} with one), "
        f"{numbers:.1%} of its parameters",
        "shown" if without > 0.5 else "not shown",
        _RULES[claim],
    )
