"""What baselines remove: units of a decoder, and the plans that sets of kept units stand for.

At granularity `sublayers` a unit is a sub-layer. At `heads` it is a head of an attention (`C3.H11`)
or one of up to 16 equal steps of a feed-forward's width: `M1:512` is the step that ends at the
512th neuron of the ranking in use. The steps of a feed-forward are kept in order, so removing any
of them removes the last one that is kept. Names are those of the search space.

A set of kept units is a frozenset of indices into `Units.all`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from circuitsearch.core.components import Kind, SubLayer, sublayers
from circuitsearch.core.errors import ConfigError, choice_problem
from circuitsearch.core.plan import WHOLE, Keep, Plan
from circuitsearch.core.shapes import DecoderShape

__all__ = ["GRANULARITIES", "Granularity", "Kept", "Unit", "Units", "widths"]

Granularity = Literal["sublayers", "heads"]
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)

Kept = frozenset[int]
"""Kept units, as indices into `Units.all`."""

_STEPS = 16


def widths(shape: DecoderShape) -> tuple[int, ...]:
    """Return the widths that baselines may give a feed-forward, ascending; the last is all of it.

    They are sixteenths of the whole, as many as there are heads in Donut.
    """
    return tuple(sorted({shape.ffn * step // _STEPS for step in range(1, _STEPS + 1)} - {0}))


@dataclass(frozen=True)
class Unit:
    """What can be removed at a time.

    Attributes:
        name: `C3`, `C3.H11` or `M1:512`.
        sublayer: whose part it is.
        head: the head; None for a sub-layer or a step of a feed-forward.
        step: which step of the feed-forward's width, from 0; None for a sub-layer or a head.
    """

    name: str
    sublayer: SubLayer
    head: int | None = None
    step: int | None = None


class Units:
    """The units of a decoder.

    Attributes:
        shape: the decoder's sizes.
        granularity: `sublayers` or `heads`.
        widths: widths of a feed-forward at `heads`.
        all: the units, in execution order.
    """

    def __init__(self, shape: DecoderShape, granularity: Granularity) -> None:
        """List the units.

        Raises:
            ConfigError: the granularity is unknown.
        """
        if granularity not in GRANULARITIES:
            raise ConfigError(choice_problem("granularity", granularity, GRANULARITIES))
        self.shape = shape
        self.granularity = granularity
        self.widths = widths(shape)
        self.all: tuple[Unit, ...] = tuple(
            unit for one in sublayers(shape.layers) for unit in self._of(one)
        )

    def _of(self, sublayer: SubLayer) -> list[Unit]:
        """Return the units of a sub-layer."""
        if self.granularity == "sublayers":
            return [Unit(sublayer.name, sublayer)]
        if sublayer.kind is Kind.FEED:
            return [
                Unit(f"{sublayer}:{width}", sublayer, step=step)
                for step, width in enumerate(self.widths)
            ]
        heads = range(self.shape.heads)
        return [Unit(f"{sublayer}.H{head}", sublayer, head=head) for head in heads]

    @cached_property
    def everything(self) -> Kept:
        """All units."""
        return frozenset(range(len(self.all)))

    @cached_property
    def readers(self) -> Kept:
        """Units that read the page."""
        return frozenset(i for i, u in enumerate(self.all) if u.sublayer.kind is Kind.CROSS)

    @cached_property
    def by_sublayer(self) -> dict[SubLayer, tuple[int, ...]]:
        """Units of each sub-layer, in order."""
        found: dict[SubLayer, tuple[int, ...]] = {}
        for index, unit in enumerate(self.all):
            found[unit.sublayer] = (*found.get(unit.sublayer, ()), index)
        return found

    def sizes(self, sublayer: SubLayer) -> tuple[int, ...]:
        """Return how many heads or neurons one unit of a sub-layer holds, two units, ..."""
        shape, feed = self.shape, sublayer.kind is Kind.FEED
        if self.granularity == "sublayers":
            return (shape.ffn if feed else shape.heads,)
        return self.widths if feed else tuple(range(1, shape.heads + 1))

    def plan(self, kept: Collection[int]) -> Plan:
        """Return the plan of some kept units, canonical for the decoder."""
        entries: dict[SubLayer, Keep] = {}
        for index in sorted(kept):
            unit = self.all[index]
            if unit.head is not None:
                before = entries.get(unit.sublayer, WHOLE).heads or ()
                entries[unit.sublayer] = Keep(heads=(*before, unit.head))
            elif unit.step is not None:
                entries[unit.sublayer] = Keep(width=self.widths[unit.step])
            else:
                entries[unit.sublayer] = WHOLE
        return Plan(tuple(entries.items())).fitted(self.shape)

    def less(self, kept: Kept, units: Iterable[int]) -> Kept:
        """Return what stays when units go; of a feed-forward's steps the last kept one goes."""
        left = set(kept)
        for index in units:
            chain = self._chain(index)
            gone = [one for one in chain if one in left][-1:] if chain else [index]
            left.difference_update(gone)
        return frozenset(left)

    def more(self, kept: Kept, units: Iterable[int]) -> Kept:
        """Return what is kept when units come; of a feed-forward's steps the next one comes."""
        grown = set(kept)
        for index in units:
            chain = self._chain(index)
            grown.update([one for one in chain if one not in grown][:1] if chain else [index])
        return frozenset(grown)

    def removable(self, kept: Kept) -> list[int]:
        """Return the kept units that can go one by one, in order: of a width the last step only."""
        return [index for index in sorted(kept) if self.less(kept, [index]) == kept - {index}]

    def names(self, units: Iterable[int]) -> str:
        """Return the names of some units for a note."""
        return ", ".join(self.all[index].name for index in units)

    def _chain(self, index: int) -> Sequence[int]:
        """Return the steps of a unit's feed-forward; nothing for other units."""
        unit = self.all[index]
        return () if unit.step is None else self.by_sublayer[unit.sublayer]
