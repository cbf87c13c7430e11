"""What the transcription analysis measured, and its tables and chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from circuitsearch.core.findings import Cell, Chart, Series, Table

from ..shared import Interval, counted, mean_interval, share_interval

__all__ = ["ORDERS", "Choices", "Lens", "Patches", "Reads", "chart", "percent", "tables"]

ORDERS = ("highest variance", "lowest variance", "random")
"""Orders in which heads are kept; the first is the default reading, the second the other one."""


@dataclass(frozen=True)
class Choices:
    """The heads of the last cross-attention, and which of them are chosen.

    Attributes:
        sublayer: its name.
        variances: variance of attention by head.
        order: heads, highest variance first.
        draws: random orders of the heads.
        kept: how many heads are chosen.
    """

    sublayer: str
    variances: Mapping[int, float]
    order: tuple[int, ...]
    draws: tuple[tuple[int, ...], ...]
    kept: int

    def of(self, order: str, count: int) -> tuple[tuple[int, ...], ...]:
        """Return the choices of `count` heads by the name of an order; several for `random`."""
        orders = {ORDERS[0]: (self.order,), ORDERS[1]: (self.order[::-1],), ORDERS[2]: self.draws}
        return tuple(dict.fromkeys(tuple(sorted(one[:count])) for one in orders[order]))

    @property
    def words(self) -> str:
        """The chosen heads, e.g. `C3 heads 1, 4, 7`."""
        return f"{self.sublayer} heads {', '.join(map(str, self.of(ORDERS[0], self.kept)[0]))}"


class Lens(NamedTuple):
    """All heads of one cross-attention, on K patches with text.

    Attributes:
        sublayer: the cross-attention.
        norm: `none` or `final`.
        hits: [K] 1 where the patch is read right.
        sure: [K] of bool: among the quarter of its page's tokens of lowest entropy.
    """

    sublayer: str
    norm: str
    hits: np.ndarray
    sure: np.ndarray


class Reads(NamedTuple):
    """Answer tokens that heads retrieve: heads in words, hits [n], document [n] of each."""

    heads: str
    hits: np.ndarray
    documents: tuple[str, ...]


@dataclass(frozen=True)
class Patches:
    """What was read on the K patches with text.

    Attributes:
        documents: [K] document of each.
        lenses: every cross-attention without and with the final norm, in execution order.
        chosen: by order and norm, [choices, K] hits of the chosen heads.
        curve: by order, [choices, K] hits for 1, 2, ... heads.
        single: by head, [K] hits of it alone.
        commonest: [K] hits of always saying the commonest character.
        fitted: [K] hits of the linear map fitted on other pages; None without such pages.
        fitted_on: patches that it was fitted on.
        seed: of the intervals.
    """

    documents: tuple[str, ...]
    lenses: tuple[Lens, ...]
    chosen: Mapping[tuple[str, str], np.ndarray]
    curve: Mapping[str, tuple[np.ndarray, ...]]
    single: Mapping[int, np.ndarray]
    commonest: np.ndarray
    fitted: np.ndarray | None
    fitted_on: int
    seed: int

    @property
    def own(self) -> np.ndarray:
        """[K] hits of all heads of the last cross-attention by the paper's formula."""
        return next(one.hits for one in reversed(self.lenses) if one.norm == "none")

    @property
    def count(self) -> str:
        """How many patches and documents, in words."""
        return counted(len(self.documents), "patches with text", self.documents)

    def share(self, hits: np.ndarray) -> Interval:
        """Return share and interval of hits [K], or of their mean over choices [choices, K]."""
        if hits.ndim > 1 and len(hits) > 1:
            return mean_interval(hits.mean(axis=0), self.documents, self.seed)
        return share_interval(hits.reshape(-1), self.documents, self.seed)

    def gain(self, hits: np.ndarray, base: np.ndarray) -> Interval:
        """Return mean and interval of the difference of two hits, patch by patch."""
        means = [values.reshape(-1, len(self.documents)).mean(axis=0) for values in (hits, base)]
        return mean_interval(means[0] - means[1], self.documents, self.seed)


def tables(patches: Patches, choices: Choices) -> tuple[Table, ...]:
    """Return shares of patches: by cross-attention, by choice of heads, and head by head."""
    return _lenses(patches), _chosen(patches, choices), _single(patches, choices)


def _lenses(patches: Patches) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for one in patches.lenses:
        kept = [d for d, sure in zip(patches.documents, one.sure, strict=True) if sure]
        among: Sequence[float | None] = (None, None, None)
        if kept:
            among = share_interval(one.hits[one.sure], kept, patches.seed)
        cells = (*percent(patches.share(one.hits)), *percent(among), len(kept))
        rows.append((one.sublayer, one.norm, *cells))
    controls = [("always the commonest character", patches.commonest)]
    if patches.fitted is not None:
        name = f"linear map fitted on {patches.fitted_on} patches of other pages"
        controls.append((name, patches.fitted))
    empty = (None,) * 4
    rows += [(name, "", *percent(patches.share(hits)), *empty) for name, hits in controls]
    sure = [f"{word} of the surest quarter" for word in ("right", "low", "high", "patches")]
    head = ("read by", "norm", "right", "low", "high", *sure)
    caption = (
        f"Patches read right by all heads (%, 95 % interval); {patches.count}. Surest quarter: the "
        "patches among the encoder tokens of lowest entropy, page by page"
    )
    return Table(caption, head, tuple(rows))


def _chosen(patches: Patches, choices: Choices) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for (order, norm), hits in patches.chosen.items():
        several = order == "random"
        which = choices.of(order, choices.kept)
        heads = f"{len(which)} draws" if several else ", ".join(map(str, which[0]))
        each = hits.mean(axis=1)
        spread = (100 * float(each.min()), 100 * float(each.max())) if several else (None, None)
        base = next(o.hits for o in reversed(patches.lenses) if o.norm == norm)
        gain = percent(patches.gain(hits, base))
        rows.append((order, heads, norm, *percent(patches.share(hits)), *gain, *spread))
    head = ("order", "heads", "norm", "right", "low", "high")
    more = ("against all heads", "low", "high", "worst draw", "best draw")
    caption = (
        f"{choices.sublayer}: patches read right by {choices.kept} of {len(choices.order)} heads, "
        f"and the difference to all heads (%, 95 % intervals); {patches.count}"
    )
    return Table(caption, (*head, *more), tuple(rows))


def _single(patches: Patches, choices: Choices) -> Table:
    rows = tuple(
        (f"{choices.sublayer}.H{head}", choices.variances[head], *percent(patches.share(hits)))
        for head, hits in patches.single.items()
    )
    caption = f"Each head alone: patches read right (%, 95 % interval); {patches.count}"
    return Table(caption, ("head", "variance of attention", "right", "low", "high"), rows)


def chart(patches: Patches, choices: Choices) -> Chart:
    """Return the share of patches read right over the number of heads, order by order."""
    lines = []
    for order, curve in patches.curve.items():
        found = [percent(patches.share(hits)) for hits in curve]
        ends = all(None not in one for one in found)
        lines.append(Series(order, *zip(*(one if ends else one[:1] for one in found), strict=True)))
    places = tuple(float(count + 1) for count in range(len(choices.order)))
    title = f"Patches read right with part of the heads of {choices.sublayer}"
    return Chart(title, "lines", places, "heads kept", "patches read right (%)", tuple(lines))


def percent(interval: Sequence[float | None]) -> tuple[float | None, ...]:
    """Return shares as percent."""
    return tuple(None if value is None else 100 * value for value in interval)
