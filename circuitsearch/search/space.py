"""The search space: which plans may be evaluated, as bits with integer costs.

A plan is one bit per *unit* (`units`: whole sub-layers, heads, widths, replacements), in execution
order, and every limit of the budget is one linear row:

    sum over kept units of cost[limit, unit] + sum over open parts of opening[limit, part]
        <=  capacity[limit] = maximum - fixed cost

Of parameters and MACs this is exact, because the residual width is fixed and the costs of units
therefore add up; the fixed cost is what the scope counts whatever the plan keeps (embeddings,
encoder). A part of free heads is *open* when any of them stays. All sums run over Python integers,
so a plan that meets its limit to the last parameter is feasible and one beyond it is not. Of
measured limits (latency, memory) the row is a prediction with a tolerance (`predictions`): it
decides what may be proposed, and the study measures what is proposed before it becomes a trial.

A plan is *legal* when its bits obey the rules of the units and it keeps at least one
cross-attention: nothing else reads the page. It is *feasible* when it is legal and every limit
holds. The *canonical order* of plans is the lexicographic order of their bits, skipped before kept.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from circuitsearch.core.amounts import shown
from circuitsearch.core.budget import Budget
from circuitsearch.core.errors import InfeasibleError, PlanError, raise_together
from circuitsearch.core.keep import Keep
from circuitsearch.core.plan import Plan
from circuitsearch.core.shapes import TeacherShape

from .predictions import Prediction
from .prices import Costs, Prices, minus, plus
from .tree import Bits, PlanTree
from .units import Choices, Part, Unit, parts_of, reads_page

__all__ = ["Bits", "Space"]


class Space:
    """All plans over the units of one decoder under one budget.

    Attributes:
        shape: the teacher's sizes.
        budget: the limits; without any, every legal plan is feasible.
        choices: what a plan may choose per sub-layer.
        predictions: what units are predicted to cost under each measured limit, by its name.
        parts: the units by sub-layer, in execution order.
        units: all units, in the order of the bits.
        names: one name per unit, the parameter names in the study.
        limits: one name per limit, e.g. "decoder parameters (paper)".
        allowed: how much a plan may cost under each limit: the maximum, with the tolerance where
            costs are predicted.
        costs: integers, shape [limits, units].
        openings: what a part costs as soon as any of its units stays; shape [limits, parts].
        capacity: what the units of a plan may cost together, one integer per limit.
        required: indices of the units that read the page by themselves; a legal plan keeps one.
    """

    def __init__(
        self,
        shape: TeacherShape,
        budget: Budget,
        choices: Choices | None = None,
        predictions: Mapping[str, Prediction] | None = None,
    ) -> None:
        """Work out the costs of all units; runs nothing and refuses no budget (see `check`).

        Raises:
            ConfigError: the choices do not fit the decoder, it cannot be counted, or a measured
                limit has no prediction.
        """
        self.shape = shape
        self.budget = budget
        self.choices = choices or Choices()
        self.predictions = dict(predictions or {})
        prices = Prices(shape, budget, self.predictions)
        self.parts: tuple[Part, ...] = parts_of(shape.decoder, self.choices)
        self.units: tuple[Unit, ...] = tuple(unit for part in self.parts for unit in part.units)
        self.names: tuple[str, ...] = tuple(unit.name for unit in self.units)
        self.required: tuple[int, ...] = tuple(
            index for index, unit in enumerate(self.units) if unit.reads and unit.after is None
        )
        self.limits: tuple[str, ...] = tuple(limit.name for limit in budget.limits)
        self.allowed: Costs = prices.allowed()
        self.capacity: Costs = minus(self.allowed, prices.fixed())
        # Python integers, one tuple per unit or part: exact and fast to add up.
        self._openings: tuple[Costs, ...] = tuple(prices.opening(part) for part in self.parts)
        self._columns: tuple[Costs, ...] = tuple(
            column for part in self.parts for column in prices.columns(part)
        )
        self._part: tuple[int, ...] = tuple(
            place for place, part in enumerate(self.parts) for _ in part.units
        )
        self.costs: NDArray[np.int64] = _table(self._columns, len(self.limits))
        self.openings: NDArray[np.int64] = _table(self._openings, len(self.limits))

    def __repr__(self) -> str:
        """Say the number of units and the limits."""
        return f"Space({self.shape.name!r}, {len(self.units)} units, limits {list(self.limits)})"

    # Costs

    def part_of(self, unit: int) -> int:
        """Return the index of the part that a unit belongs to."""
        return self._part[unit]

    def price(self, unit: int, bits: Sequence[int]) -> Costs:
        """Return what keeping one unit more costs, given the bits that are kept so far."""
        part = self.parts[self._part[unit]]
        column = self._columns[unit]
        if not part.free or self.units[unit].alone or any(bits[i] for i in part.indices):
            return column
        return plus(column, self._openings[self._part[unit]])

    def remaining(self, bits: Sequence[int]) -> Costs:
        """Return what is left of every limit after paying for the kept units; negative if over."""
        left = self.capacity
        for unit, bit in enumerate(bits):
            if bit:
                left = minus(left, self._columns[unit])
        for place, part in enumerate(self.parts):
            if part.free and any(
                bits[index] and not self.units[index].alone for index in part.indices
            ):
                left = minus(left, self._openings[place])
        return left

    # Plans and bits

    def plan(self, bits: Sequence[int]) -> Plan:
        """Return the plan that `bits` stand for; they must obey the rules of the units."""
        entries = []
        for part in self.parts:
            keep = part.keep(bits[part.first : part.first + len(part.units)])
            if keep is not None:
                entries.append((part.sublayer, keep))
        return Plan(tuple(entries))

    def bits(self, plan: Plan) -> Bits:
        """Return the bits of `plan`.

        Raises:
            PlanError: the plan does not fit the decoder, or keeps of a sub-layer what is no choice
                of this space; all faults together.
        """
        fitted = plan.fitted(self.shape.decoder)
        bits: list[int] = []
        problems = []
        for part in self.parts:
            keep = fitted.keep(part.sublayer)
            chosen = _bits_of(part, keep)
            if chosen is None:
                problems.append(
                    f"{part.sublayer}{keep} is no choice of this space; its units are "
                    f"{', '.join(unit.name for unit in part.units)}"
                )
            bits += chosen or (0,) * len(part.units)
        raise_together(problems, PlanError, f"Plan {str(plan)!r} is outside the search space")
        return tuple(bits)

    def obeys_rules(self, bits: Sequence[int]) -> bool:
        """Whether the bits obey the rules of the units (chains, replacements alone)."""
        kept = [unit for unit, bit in enumerate(bits) if bit]
        if any(self.units[u].prefix and kept[0] < self.parts[self._part[u]].first for u in kept):
            return False
        return all(
            part.obeys_rules(bits[part.first : part.first + len(part.units)]) for part in self.parts
        )

    def reads_page(self, plan: Plan) -> bool:
        """Whether `plan` keeps at least one cross-attention that reads the page."""
        return any(reads_page(sublayer, keep) for sublayer, keep in plan.kept)

    def feasible(self, plan: Plan) -> bool:
        """Whether `plan` is legal and meets every limit."""
        return not self.problems(plan)

    def problems(self, plan: Plan) -> list[str]:
        """Describe, with numbers, why `plan` is not feasible; empty when it is.

        Raises:
            PlanError: the plan does not belong to this space.
        """
        left = self.remaining(self.bits(plan))
        problems = []
        for limit, allowed, rest in zip(self.budget.limits, self.allowed, left, strict=True):
            needs = limit.shown(allowed - rest)
            if rest < 0 and limit.measured:
                problems.append(
                    f"{limit.name}: the plan is predicted to need {needs}, the limit "
                    f"{limit.text!r} allows {limit.shown(limit.maximum)}"
                )
            elif rest < 0:
                problems.append(
                    f"{limit.name}: the plan needs {needs}, the limit {limit.text!r} allows "
                    f"{limit.maximum:,} ({-rest:,} too many)"
                )
        if not self.reads_page(plan):
            problems.append("no cross-attention is kept, so the student cannot read the page")
        return problems

    def within(self, percent: int) -> Space:
        """Return the same space under a part of its budget.

        Args:
            percent: share of what units may cost together, of every limit, in percent.
        """
        smaller = copy.copy(self)
        smaller.__dict__.pop("_tree", None)  # it depends on the capacity
        smaller.capacity = tuple(left * percent // 100 for left in self.capacity)
        spared = zip(self.allowed, self.capacity, smaller.capacity, strict=True)
        smaller.allowed = tuple(allowed - (left - rest) for allowed, left, rest in spared)
        return smaller

    @cached_property
    def _tree(self) -> PlanTree:
        return PlanTree(self.parts, self._columns, self._openings, self.capacity)

    def enumerate(self) -> Iterator[Plan]:
        """Yield every feasible plan in canonical order, without visiting the infeasible ones."""
        return self._tree.plans()

    def count(self) -> int:
        """Return the number of feasible plans, exactly, without enumerating them."""
        return self._tree.count

    def exceeds(self, number: int) -> bool:
        """Whether there are more feasible plans than `number`; faster than counting them all."""
        return self._tree.exceeds(number)

    def possible(self) -> bool:
        """Whether any plan is feasible; `check` says why none is."""
        return self._tree.root is not None

    # The smallest student

    def smallest(self) -> tuple[Plan, dict[str, int]]:
        """Return the cheapest legal plan and its cost under every limit.

        It keeps as little of a single cross-attention as is a choice: of the one that violates
        the fewest limits and, among those, takes the smallest share of them; the first on a tie.
        """
        none = (0,) * len(self.units)

        def burden(unit: int) -> tuple[int, float]:
            price = self.price(unit, none)
            over = [need > left for need, left in zip(price, self.capacity, strict=True)]
            shares = [
                need / max(limit.maximum, 1)
                for need, limit in zip(price, self.budget.limits, strict=True)
            ]
            return sum(over), sum(shares)

        best = min(self.required, key=burden)
        costs = {
            name: allowed - capacity + need
            for name, allowed, capacity, need in zip(
                self.limits, self.allowed, self.capacity, self.price(best, none), strict=True
            )
        }
        return self.plan(tuple(int(unit == best) for unit in range(len(none)))), costs

    def check(self, measured: Mapping[str, int] | None = None) -> None:
        """Refuse a budget that no legal student meets.

        Args:
            measured: figures of the student of `smallest()` by limit. Without them, measured
                limits are judged by their predictions.

        Raises:
            InfeasibleError: names every impossible limit, the smallest legal student's cost under
                it and what to do.
        """
        plan, costs = self.smallest()
        problems = []
        for limit, allowed in zip(self.budget.limits, self.allowed, strict=True):
            known = limit.measured and limit.name in (measured or {})
            need = (measured or {})[limit.name] if known else costs[limit.name]
            if need > (limit.maximum if known else allowed):
                how = "was measured at" if known else "needs"
                how = "is predicted to need" if limit.measured and not known else how
                problems.append(
                    f"  - {limit.name}: the limit {limit.text!r} allows "
                    f"{limit.shown(limit.maximum)}, the smallest legal student {str(plan)!r} "
                    f"{how} {limit.shown(need)}"
                )
        if problems:
            raise InfeasibleError(
                "No legal student fits the budget:\n" + "\n".join(problems) + "\nA legal student "
                "keeps at least one cross-attention, which alone reads the page. Raise these "
                "limits to at least what it needs, or remove them."
            )

    def to_json(self) -> dict[str, Any]:
        """Return what defines the space (teacher, limits, choices) as plain JSON.

        Two spaces are the same for a study exactly when this is equal. A limit's text is left
        out: "31.25%" and the number it stands for are the same limit. Predictions are part of it
        where there are measured limits.
        """
        budget = self.budget.to_json()
        for limit in budget["limits"]:
            del limit["text"]
        about = {
            "teacher": self.shape.to_json(),
            "budget": budget,
            "choices": self.choices.to_json(),
        }
        if self.predictions:
            about["predictions"] = {
                name: known.to_json() for name, known in sorted(self.predictions.items())
            }
        return about

    @classmethod
    def from_json(cls, data: Any) -> Space:
        """Read what `to_json` wrote.

        Raises:
            DataError: a field is missing or unknown.
        """
        budget = {
            **data["budget"],
            "limits": [
                {**limit, "text": shown(limit["quantity"], limit["maximum"])}
                for limit in data["budget"]["limits"]
            ],
        }
        return cls(
            TeacherShape.from_json(data["teacher"]),
            Budget.from_json(budget),
            Choices.from_json(data["choices"]),
            {
                name: Prediction.from_json(known)
                for name, known in data.get("predictions", {}).items()
            },
        )


def _bits_of(part: Part, keep: Keep | None) -> Bits | None:
    """Return a part's bits for what a plan keeps of its sub-layer; None when it is no choice."""
    count = len(part.units)
    if keep is None:
        return (0,) * count
    if part.free and keep.replacement is None and keep.width is None:
        kept = range(part.heads) if keep.heads is None else keep.heads
        return tuple(
            int(not unit.alone and (unit.keep.heads or (-1,))[0] in kept) for unit in part.units
        )
    for place, unit in enumerate(part.units):
        if unit.keep == keep:
            if unit.alone:
                return tuple(int(index == place) for index in range(count))
            return (1,) * (place + 1) + (0,) * (count - place - 1)
    return None


def _table(columns: Sequence[Costs], limits: int) -> NDArray[np.int64]:
    """Return columns as an array of shape [limits, columns]."""
    return np.array(columns, dtype=np.int64).reshape(len(columns), limits).T
