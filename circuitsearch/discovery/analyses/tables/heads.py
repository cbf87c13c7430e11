"""Heads measured for the analysis of head statistics: the record, its tables and its charts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import get_args

import numpy as np

from circuitsearch.core.components import Head
from circuitsearch.core.errors import DataError
from circuitsearch.core.findings import Cell, Chart, Series, Table

from ...lens.head_rows import HeadRows
from ...lens.head_table import Average, EntropyNorm, HeadOptions, HeadStatistic, Rows, VarianceNorm
from ...tables import mean_interval
from ..measures.agreement import Agreement, rank_agreement
from ..shared import Interval, counted

__all__ = ["JUDGED", "KINDS", "MEASURES", "MeasuredHeads", "charts", "default", "tables"]

MEASURES = {"loss, skipped": ("zero", "answer_loss"), "margin, averaged": ("mean", "margin")}
"""Ablation and metric of each measure of a head's effect; the first is judged."""

JUDGED = next(iter(MEASURES))

KINDS = {"S": "self-attention", "C": "cross-attention"}

_WORDS = {
    **{"none": "nothing", "log_visible": "log of visible keys"},
    **{"one_hot": "that of one key", "uniform": "square of an even weight"},
    **{"answer": "predict an answer token", "answer_start": "predict the first answer token"},
    **{"prompt": "prompt", "all": "all"},
}
"""Norms and query rows, as tables say them."""


@dataclass(frozen=True)
class MeasuredHeads:
    """Attention rows, and the effects [examples, heads] of each measure.

    Attributes:
        rows: both statistics of every attention row.
        names: the heads, in execution order.
        effects: by measure.
        documents: [examples] document of each.
        seed: of intervals and permutations.
    """

    rows: HeadRows
    names: tuple[str, ...]
    effects: Mapping[str, np.ndarray]
    documents: tuple[str, ...]
    seed: int

    def statistic(self, options: HeadOptions) -> dict[str, HeadStatistic]:
        """Return the statistic of every head; empty where no row has it under this reading."""
        try:
            return {entry.head: entry for entry in self.rows.table(options).heads}
        except DataError:
            return {}

    def agreement(self, options: HeadOptions, group: str, measure: str) -> Agreement | None:
        """Compare a reading with effects over the heads of a kind (`S`) or sub-layer (`S0`)."""
        found = self.statistic(options)
        chosen = [i for i, name in enumerate(self.names) if group in _groups(name)]
        if not found or not chosen:
            return None
        keeps_high = (
            options.statistic_of(group[0]) == "variance" and options.variance_keeps == "high"
        )
        worth = [found[self.names[i]].value * (1 if keeps_high else -1) for i in chosen]
        return rank_agreement(worth, self.effects[measure][:, chosen], self.documents, self.seed)

    @property
    def judged(self) -> dict[str, HeadStatistic]:
        """Statistic of every head under the judged reading of its kind."""
        return {
            name: entry
            for kind in KINDS
            for name, entry in self.statistic(default(kind)).items()
            if name.startswith(kind)
        }

    @property
    def means(self) -> dict[str, float]:
        """Mean effect of every head by the judged measure."""
        return dict(zip(self.names, self.effects[JUDGED].mean(axis=0).tolist(), strict=True))

    @property
    def count(self) -> str:
        """How many questions and documents, in words."""
        return counted(len(self.documents), "questions", self.documents)

    def interval(self, measure: str) -> list[Interval]:
        """Return mean effect and its interval for every head."""
        values = self.effects[measure]
        means = [float(mean) for mean in values.mean(axis=0)]
        if len(set(self.documents)) < 2:
            return [(mean, None, None) for mean in means]
        low, high = mean_interval(values, self.documents, seed=self.seed)
        return list(zip(means, low.tolist(), high.tolist(), strict=True))


def _groups(head: str) -> tuple[str, str]:
    """Return kind and sub-layer of a head's name."""
    sublayer = Head.parse(head).sublayer
    return sublayer.kind.value, sublayer.name


def default(kind: str) -> HeadOptions:
    """Return the judged reading for heads of kind `S` or `C`."""
    # cross-attention is not to fail where no row of self-attention has a relative entropy
    return HeadOptions() if kind == "S" else HeadOptions(entropy_norm="none")


def _readings(kind: str) -> Iterator[HeadOptions]:
    """Yield every reading of a kind, the judged one first, then the other statistic."""
    base = default(kind)
    norms = get_args(EntropyNorm) if kind == "S" else (base.entropy_norm,)
    for norm, rows, average in product(norms, get_args(Rows), get_args(Average)):
        yield replace(base, entropy_norm=norm, rows=rows, average=average)
    if kind == "C":
        yield replace(base, variance_keeps="low")
        yield replace(base, cross_statistic="entropy")
        return
    for relative in get_args(VarianceNorm):
        yield replace(base, self_statistic="variance", variance_norm=relative)


def _cells(found: Agreement | None) -> tuple[Cell, ...]:
    if found is None:
        return (None,) * 5
    return found.rho, found.low, found.high, found.p, found.n


def tables(measured: MeasuredHeads) -> tuple[Table, ...]:
    """Return agreements of the judged reading, of every reading, and the heads themselves."""
    return _agreements(measured), _all_readings(measured), _heads(measured)


def _agreements(measured: MeasuredHeads) -> Table:
    groups = sorted(
        {group for name in measured.names for group in _groups(name)},
        key=lambda group: (group[0] != "S", len(group) > 1, int(group[1:] or 0)),
    )
    rows = tuple(
        (group, measure, *_cells(measured.agreement(default(group[0]), group, measure)))
        for group in groups
        for measure in MEASURES
    )
    caption = (
        "Spearman's correlation of statistic and effect, judged reading, 95 % interval; S and C: "
        f"all layers; {measured.count}"
    )
    head = ("heads", "effect", "correlation", "low", "high", "p", "number of heads")
    return Table(caption, head, rows)


def _all_readings(measured: MeasuredHeads) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for kind in KINDS:
        for one in _readings(kind):
            statistic = one.statistic_of(kind)
            norm = one.entropy_norm if statistic == "entropy" else one.variance_norm
            keeps = one.variance_keeps if statistic == "variance" else "low"
            cells = _cells(measured.agreement(one, kind, JUDGED))
            words = (_WORDS[norm], _WORDS[one.rows], one.average)
            rows.append((kind, statistic, keeps, *words, *cells))
    head = ("heads", "statistic", "kept if", "divided by", "query rows", "mean over")
    caption = (
        "Every reading against the judged effect: Spearman's correlation with 95 % interval; "
        f"{measured.count}"
    )
    return Table(
        caption, (*head, "correlation", "low", "high", "p", "number of heads"), tuple(rows)
    )


def _heads(measured: MeasuredHeads) -> Table:
    statistic = measured.judged
    columns = [measured.interval(measure) for measure in MEASURES]
    rows: list[tuple[Cell, ...]] = []
    for name, *intervals in zip(measured.names, *columns, strict=True):
        entry = statistic.get(name)
        own = (None, None) if entry is None else (entry.value, entry.value_sd)
        rows.append((name, *own, *(end for interval in intervals for end in interval)))
    ends = [
        word for measure in MEASURES for word in (measure, f"{measure}: low", f"{measure}: high")
    ]
    caption = (
        "Each head: statistic of the judged reading (S: relative entropy, C: variance) with its "
        "standard deviation over questions, and its effect by both measures (nats per token; "
        f"logits) with 95 % intervals; {measured.count}"
    )
    return Table(caption, ("head", "statistic", "deviation", *ends), tuple(rows))


def charts(measured: MeasuredHeads) -> Iterator[Chart]:
    """Yield maps of statistic and effect, sub-layer by head."""
    statistic = {name: entry.value for name, entry in measured.judged.items()}
    means = measured.means
    units = {"S": "entropy of attention (1 = even)", "C": "variance of attention"}
    for kind, word in KINDS.items():
        for values, unit in ((statistic, units[kind]), (means, "rise of the answers' loss (nats)")):
            lines: dict[str, dict[int, float | None]] = {}
            for name in measured.names:
                if name.startswith(kind):
                    head = Head.parse(name)
                    lines.setdefault(head.sublayer.name, {})[head.index] = values.get(name)
            if lines:
                series = tuple(Series(n, tuple(line.values())) for n, line in lines.items())
                heads = tuple(f"H{i}" for i in next(iter(lines.values())))
                yield Chart(
                    f"{word.capitalize()} heads: {unit}", "heat", heads, "head", unit, series
                )
