"""The tree of plans: every feasible plan, part by part, and how many there are.

A node decides what the first sub-layers are. Branches from which no feasible plan can be reached
are never entered, and counting merges nodes that leave the same of the budget.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from math import comb
from typing import NamedTuple

from circuitsearch.core.components import SubLayer
from circuitsearch.core.keep import Keep
from circuitsearch.core.plan import Plan

from .prices import Costs, minus, plus
from .units import Part, Selection, reads_page

__all__ = ["Bits", "PlanTree"]

Bits = tuple[int, ...]
"""One 0 or 1 per unit, in the order of `Space.units`."""


class _Node(NamedTuple):
    """What plans keep of the first sub-layers.

    Attributes:
        place: number of parts decided so far.
        kept: kept sub-layers with what is kept of them.
        remaining: what they leave of every limit.
        reads: whether a cross-attention is among them.
    """

    place: int
    kept: tuple[tuple[SubLayer, Keep], ...]
    remaining: Costs
    reads: bool


class PlanTree:
    """All feasible plans over the parts of a space."""

    def __init__(
        self,
        parts: Sequence[Part],
        columns: Sequence[Costs],
        openings: Sequence[Costs],
        capacity: Costs,
    ) -> None:
        """Bind parts, the costs of each unit, those of opening each part, and what all may cost."""
        self._parts = parts
        self._columns = columns
        self._openings = openings
        self._capacity = capacity
        # what the cheapest ways to read the page cost, for each part
        self._readers = tuple(
            tuple(
                plus(self._columns[index], self._openings[place])
                if part.free and not unit.alone
                else self._columns[index]
                for index, unit in zip(part.indices, part.units, strict=True)
                if unit.reads and unit.after is None
            )
            for place, part in enumerate(parts)
        )

    @property
    def root(self) -> _Node | None:
        """The node that decides nothing yet; None when no plan is feasible."""
        fits = self._completable(self._capacity, False, 0)
        return _Node(0, (), self._capacity, False) if fits else None

    def plans(self) -> Iterator[Plan]:
        """Yield every feasible plan in canonical order."""
        stack = [] if self.root is None else [self.root]
        while stack:
            node = stack.pop()
            if node.place == len(self._parts):
                yield Plan(node.kept)
            else:
                stack.extend(reversed(list(self._continued(node))))

    def _continued(self, node: _Node) -> Iterator[_Node]:
        """Yield, in canonical order, every choice for the next part that some plan makes."""
        place = node.place
        part = self._parts[place]
        for selection in part.selections():
            remaining, reads, kept = node.remaining, node.reads, node.kept
            if selection.keep is not None:
                if kept and selection.keep.prefix:
                    continue
                remaining = minus(remaining, self._price(place, selection))
                reads = reads or reads_page(part.sublayer, selection.keep)
                kept = (*kept, (part.sublayer, selection.keep))
            if self._completable(remaining, reads, place + 1):
                yield _Node(place + 1, kept, remaining, reads)

    def _completable(self, remaining: Costs, reads: bool, part: int) -> bool:
        """Whether parts from `part` on can be chosen so that the plan is feasible."""
        if min(remaining, default=0) < 0:
            return False
        return reads or any(
            min(minus(remaining, price), default=0) >= 0
            for prices in self._readers[part:]
            for price in prices
        )

    def _price(self, place: int, selection: Selection) -> Costs:
        """Return what one choice for a part costs under every limit."""
        part = self._parts[place]
        total = (0,) * len(self._capacity)
        opened = False
        for index, unit, bit in zip(part.indices, part.units, selection.bits, strict=True):
            if bit:
                total = plus(total, self._columns[index])
                opened = opened or not unit.alone
        return plus(total, self._openings[place]) if opened else total

    @cached_property
    def count(self) -> int:
        """The number of feasible plans, exactly, without enumerating them."""
        *_, total = self._beginnings()
        return total

    def exceeds(self, number: int) -> bool:
        """Whether there are more feasible plans than `number`.

        Counting ends as soon as that is known: every beginning leads to one plan at least.
        """
        return any(beginnings > number for beginnings in self._beginnings())

    def _beginnings(self) -> Iterator[int]:
        """Yield how many beginnings of feasible plans there are, one part longer each time."""
        # Ways to reach each state (what remains, whether the page is read), part by part. What
        # stands for a whole beginning starts from the one state in which nothing is kept.
        states: Counter[tuple[Costs, bool]] = Counter()
        if self.root is not None:
            states[self._capacity, False] = 1
        yield states.total()
        ample = self._ample()
        for place, part in enumerate(self._parts):
            choices = self._choices(place)
            following: Counter[tuple[Costs, bool]] = Counter()
            for (remaining, read), ways in states.items():
                for (price, reads), times in choices.items():
                    left = minus(remaining, price)
                    if self._completable(left, read or reads, place + 1):
                        left = tuple(map(min, left, ample[place + 1]))
                        following[left, read or reads] += ways * times
            for index, unit in zip(part.indices, part.units, strict=True):
                left = minus(self._capacity, self._columns[index])
                if unit.prefix and self._completable(left, False, place + 1):
                    left = tuple(map(min, left, ample[place + 1]))
                    following[left, False] += 1
            states = following
            yield states.total()

    def _ample(self) -> list[Costs]:
        """Return, before each part and after the last, what no choice of the rest can exceed.

        Having that much left is the same as having more: such states are counted together.
        """
        ample = [(0,) * len(self._capacity)]
        for place in reversed(range(len(self._parts))):
            prices = [price for price, _ in self._choices(place)]
            ample.append(plus(ample[-1], tuple(map(max, *prices, prices[0]))))
        return ample[::-1]

    def _choices(self, place: int) -> Counter[tuple[Costs, bool]]:
        """Return the choices for a part by cost and reading, with how often each occurs.

        Units that stand for a whole beginning are left out: they depend on the parts before.
        Free heads of one sub-layer cost the same, so their subsets are counted by binomials.
        """
        part = self._parts[place]
        counted: Counter[tuple[Costs, bool]] = Counter()
        if not part.free:
            for selection in part.selections():
                keep = selection.keep
                reads = keep is not None and reads_page(part.sublayer, keep)
                if keep is None or not keep.prefix:
                    counted[self._price(place, selection), reads] += 1
            return counted
        units = [*zip(part.indices, part.units, strict=True)]
        heads = [one for one in units if not one[1].alone]
        first, head = heads[0]
        price = self._openings[place]
        counted[(0,) * len(self._capacity), False] += 1
        for kept in range(1, len(heads) + 1):
            price = plus(price, self._columns[first])
            counted[price, head.reads] += comb(len(heads), kept)
        for index, unit in units:
            if unit.alone and not unit.prefix:
                counted[self._columns[index], unit.reads] += 1
        return counted
