"""Prices: what each unit, and each part that is opened, adds to every limit; integers.

Parameters and MACs are exact (`core.cost`). Of measured limits the prices are predicted
(`predictions`), and the capacity has room for what predictions err by.
"""

from __future__ import annotations

from collections.abc import Mapping

from circuitsearch.core.budget import Budget
from circuitsearch.core.components import SubLayer
from circuitsearch.core.cost import cost, entry_cost
from circuitsearch.core.errors import ConfigError, raise_together
from circuitsearch.core.keep import Keep
from circuitsearch.core.plan import Plan
from circuitsearch.core.shapes import TeacherShape
from circuitsearch.search.predictions import TOLERANCE_PERCENT, Prediction
from circuitsearch.search.units import Part

__all__ = ["Costs", "Prices", "minus", "plus"]

Costs = tuple[int, ...]
"""One integer per limit. Python integers: exact, and for so few faster to add up than an array."""


def plus(one: Costs, other: Costs) -> Costs:
    """Return the sum, limit by limit."""
    return tuple(a + b for a, b in zip(one, other, strict=True))


def minus(one: Costs, other: Costs) -> Costs:
    """Return the difference, limit by limit."""
    return tuple(a - b for a, b in zip(one, other, strict=True))


class Prices:
    """The prices of one decoder's units under one budget."""

    def __init__(
        self, shape: TeacherShape, budget: Budget, predictions: Mapping[str, Prediction]
    ) -> None:
        """Bind shape, budget and the predictions of its measured limits, by `Limit.name`.

        Raises:
            ConfigError: a measured limit has no prediction.
        """
        raise_together(
            [
                f"{limit.name}: a measured limit needs a prediction of what units cost; measure "
                "plans and fit one (predictions.fit_prediction)"
                for limit in budget.measured
                if limit.name not in predictions
            ],
            ConfigError,
            "Space",
        )
        self._shape = shape
        self._budget = budget
        self._predictions = predictions

    def allowed(self) -> Costs:
        """Return how much plans may cost: each maximum, of measured limits with the tolerance."""
        return tuple(
            limit.maximum * (100 + TOLERANCE_PERCENT) // 100 if limit.measured else limit.maximum
            for limit in self._budget.limits
        )

    def fixed(self) -> Costs:
        """Return what is counted whatever a plan keeps."""
        return tuple(
            self._predictions[limit.name].fixed
            if limit.measured
            else limit.used(
                cost(Plan(), self._shape, limit.accounting, self._budget.generation)  # type: ignore[arg-type]
            )
            for limit in self._budget.limits
        )

    def entry(self, sublayer: SubLayer, keep: Keep) -> Costs:
        """Return what keeping this of a sub-layer costs under every limit."""
        return tuple(
            self._predictions[limit.name].entry(sublayer, keep, self._shape.decoder)
            if limit.measured
            else getattr(
                entry_cost(sublayer, keep, self._shape, limit.accounting, self._budget.generation),  # type: ignore[arg-type]
                limit.quantity,
            )
            for limit in self._budget.limits
        )

    def opening(self, part: Part) -> Costs:
        """Return what a part of free heads costs beside its heads."""
        if not part.free:
            return (0,) * len(self._budget.limits)
        one = self.entry(part.sublayer, Keep(heads=(0,)))
        two = self.entry(part.sublayer, Keep(heads=(0, 1)))
        return tuple(a - (b - a) for a, b in zip(one, two, strict=True))

    def columns(self, part: Part) -> list[Costs]:
        """Return what each unit of a part adds to the cost."""
        opening = self.opening(part)
        prices = []
        for unit in part.units:
            whole = self.entry(part.sublayer, unit.keep)
            before = (0,) * len(self._budget.limits)
            if unit.after is not None:
                before = self.entry(part.sublayer, part.units[unit.after - part.first].keep)
            elif part.free and not unit.alone:
                before = opening
            prices.append(tuple(a - b for a, b in zip(whole, before, strict=True)))
        return prices
